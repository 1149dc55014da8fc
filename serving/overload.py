"""Room for requests that are under way: beyond it they are turned away at once, so that nobody waits for seconds.

A request that arrives whole is answered in the same moment and needs none. Room is for those whose body is still
coming, which hold memory for as long as their sender takes, and for those of many states, which wait for their turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final

from serving.problems import Problem

__all__ = ["BODY_SECONDS", "Overloaded", "Receive", "Room", "read_body", "too_large"]

#: Seconds a sender may take for its body.
BODY_SECONDS: Final = 10.0
#: Bytes of bodies that are held at one moment, of all senders together.
_HELD_BYTES: Final = 32 * 1024 * 1024

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Overloaded(Problem):
    """The 503 of a request for which there is no room."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "more requests are under way than this server holds at once; ask again in a second",
            headers={"Retry-After": "1"},
        )


class Room:
    """Counts requests (``taken``, each with its weight, of ``size``) and the bytes they hold (``held``)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self.held = 0

    @contextmanager
    def enter(self, weight: int) -> Iterator[None]:
        """Room for one request of ``weight`` while the block lasts; the first one always fits."""
        if self.taken and self.taken + weight > self.size:
            raise Overloaded
        self.taken += weight
        try:
            yield
        finally:
            self.taken -= weight

    def hold(self, size: int) -> None:
        """Room for ``size`` bytes more; whoever got it gives it back with :meth:`release`."""
        if self.held + size > _HELD_BYTES:
            raise Overloaded
        self.held += size

    def release(self, size: int) -> None:
        self.held -= size


def too_large(limit: int, got: str) -> Problem:
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected a body of at most {limit} bytes: {got}")


async def read_body(receive: Receive, announced: bytes | None, limit: int, room: Room) -> bytes:
    """The body of a request, read no further than ``limit`` whatever its header Content-Length (``announced``) says.

    Raises
    ------
    Problem : 413 when too large, 408 when too slow, 400 when the caller has gone, 503 when there is no room
    """
    if announced is not None and announced.isdigit() and int(announced) > limit:
        raise too_large(limit, f"announced {int(announced)} bytes")
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            more = True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise Problem(HTTPStatus.BAD_REQUEST, "the caller went before its body was complete")
                chunk, more = message.get("body", b""), message.get("more_body", False)
                if size + len(chunk) > limit:
                    raise too_large(limit, "the body goes on after that")
                room.hold(len(chunk))
                size += len(chunk)
                chunks.append(chunk)
    except TimeoutError:
        raise Problem(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the body did not arrive within {BODY_SECONDS:g} s; got {size} bytes of it",
            headers={"Connection": "close"},
        ) from None
    finally:
        room.release(size)
    return b"".join(chunks)
