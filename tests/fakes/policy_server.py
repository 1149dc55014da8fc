"""A prediction server on loopback that misbehaves on command, in a process of its own.

``with PolicyServer() as server: server.behave("drip_body")``. What it does to a request is named by
:data:`BEHAVIOURS`; ``gone`` closes the port and every connection, any other name opens the port again.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from layer3 import contract

__all__ = ["ANSWER", "BEHAVIOURS", "GONE", "PolicyServer"]

ANSWER = {"position_multiplier": 1.25, "confidence": 0.6, "latency_ms": 0.4, "model_version": "20250101-abc"}
GONE = "gone"


def _http(
    body: bytes | None = None, status: str = "200 OK", version: str = contract.VERSION, length: int | None = None
) -> bytes:
    body = json.dumps(ANSWER).encode() if body is None else body
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{contract.HEADER}: {version}\r\n\r\n".encode() + body


def _changed(**changes: object) -> bytes:
    return _http(json.dumps(ANSWER | changes).encode())


GOOD = _http()
_CLOSE, _RESET = "close", "reset"
#: What follows one byte each 4 ms: a minute of it, but for the last bytes of a good answer, which take 80 ms.
_HEAD_DRIP, _BODY_DRIP, _END_DRIP = b"HTTP/1.1 200 OK\r\nX: " + b"x" * 15_000, b" " * 15_000, GOOD[-20:]
_DRIP_SECONDS = 0.004
#: What is sent at once, and what follows: "", close, reset, or the bytes that drip.
BEHAVIOURS: dict[str, tuple[bytes, str | bytes]] = {
    "healthy": (GOOD, ""),
    "chunked": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
        len(json.dumps(ANSWER)), json.dumps(ANSWER).encode()), ""),
    "interim": (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + GOOD, ""),
    "closing": (GOOD.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), _CLOSE),
    "leaving": (GOOD, _CLOSE),
    "silent": (b"", ""),
    "drip_head": (b"", _HEAD_DRIP),
    "drip_body": (_http(b"", length=15_001), _BODY_DRIP),
    "drip_end": (GOOD[:-20], _END_DRIP),
    "stops": (GOOD[:-20], ""),
    "half": (GOOD[:-20], _CLOSE),
    "hangs_up": (b"", _CLOSE),
    "resets": (b"", _RESET),
    "resets_late": (GOOD[:60], _RESET),
    "garbage": (b"\x00\xff\x80garbage\r\n\r\n", ""),
    "another_protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", ""),
    "twice": (GOOD + GOOD, ""),
    "too_short": (_http(length=10), ""),
    "too_long": (_http(length=2_000), _CLOSE),
    "huge_head": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000, ""),
    "huge_body": (_http(b" " * 70_000), ""),
    "not_json": (_http(b"<html>"), ""),
    "utf16": (_http(json.dumps(ANSWER).encode("utf-16")), ""),
    "nan": (_changed(position_multiplier=float("nan")), ""),
    "infinite": (_http(json.dumps(ANSWER).replace("1.25", "1e400").encode()), ""),
    "nan_elsewhere": (_changed(latency_ms=float("nan")), ""),
    "out_of_range": (_changed(position_multiplier=2.01), ""),
    "twice_a_key": (_http(json.dumps(ANSWER).replace("}", ', "confidence": 0.1}').encode()), ""),
    "another_contract": (_http(version="himari-state-9/1"), ""),
    "another_request": (GOOD.replace(b"\r\n", b"\r\nX-Request-Id: not-yours\r\n", 1), ""),
    "error_500": (_http(b"oops", "500 Internal Server Error"), ""),
    "error_503": (_http(b"no model yet", "503 Service Unavailable"), ""),
    "redirect": (_http(b"", "302 Found"), ""),
    "error_404": (_http(b"not here", "404 Not Found"), ""),
    "error_422": (_http(b"state[3]", "422 Unprocessable Entity"), ""),
}  # fmt: skip


class PolicyServer:
    """The process; ``port`` and ``url`` stay the same however often it is gone and back."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.policy_server"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.port = int(self._line())
        self.url = f"http://127.0.0.1:{self.port}"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def behave(self, how: str) -> None:
        """From now on; the answers that are on their way end as they began."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{how}\n")
        assert self._line() == f"{how}\n"

    def __enter__(self) -> PolicyServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


class _Connection(asyncio.Protocol):
    behaviour = "healthy"
    open_ones: set[_Connection] = set()  # noqa: RUF012

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.buffer = b""
        self.open_ones.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_ones.discard(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while self.buffer.find(b"]}") >= 0:
            self.buffer = self.buffer[self.buffer.find(b"]}") + 2 :]
            at_once, then = BEHAVIOURS[self.behaviour]
            self.transport.write(at_once)
            if then == _CLOSE:
                self.transport.close()
            elif then == _RESET:
                self.reset()
            elif isinstance(then, bytes):
                self.drip(memoryview(then))

    def reset(self) -> None:
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def drip(self, rest: memoryview) -> None:
        if rest and not self.transport.is_closing():
            self.transport.write(rest[:1])
            asyncio.get_running_loop().call_later(_DRIP_SECONDS, self.drip, rest[1:])


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", 0, backlog=512)
    port = server.sockets[0].getsockname()[1]
    print(port, flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        how = line.strip()
        if how == GONE:
            server.close()
            for connection in tuple(_Connection.open_ones):
                connection.reset()
        else:
            _Connection.behaviour = how
            if not server.is_serving():
                server = await loop.create_server(_Connection, "127.0.0.1", port, backlog=512)
        print(how, flush=True)


if __name__ == "__main__":
    asyncio.run(_serve())
