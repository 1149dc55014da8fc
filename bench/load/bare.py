"""The floor: uvicorn on PORT with nothing in it; reads each request's body and answers the same JSON."""

from __future__ import annotations

import os
from typing import Any

import uvicorn

#: As long as a prediction.
_ANSWER = (
    b'{"position_multiplier":1.1423397064208984,"confidence":0.6134239435195923,"latency_ms":0.0123,'
    b'"model_version":"20260101-0123456789ab"}'
)
_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(_ANSWER)).encode())],
}
_BODY = {"type": "http.response.body", "body": _ANSWER}


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application."""
    while (await receive()).get("more_body"):
        continue
    await send(_START)
    await send(_BODY)


if __name__ == "__main__":
    uvicorn.run(
        answer,
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        server_header=False,
        log_level="warning",
    )
