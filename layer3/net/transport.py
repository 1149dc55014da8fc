"""Exchanges over pooled connections, each within a deadline that nothing on the other side can stretch.

A socket's timeout bounds one read, not an answer: a server that sends one byte at a time can hold
a caller for ever. So sockets never block here. An exchange is a generator that yields what it waits
for, until when; :func:`run` waits in the caller's thread, :func:`arun` in the caller's event loop.
Connections belong to neither, so that both share one pool and a loop that ended takes none with it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from layer3.errors import SourceError
from layer3.net.wire import MAX_BODY, Answer, AnswerReader

__all__ = ["Address", "Budget", "Pool", "Steps", "arun", "run"]

T = TypeVar("T")
#: The socket, POLLIN or POLLOUT, and until when (monotonic seconds); no socket: look again in a moment.
Waiting: TypeAlias = tuple[socket.socket | None, int, float]
#: Sent back: whether what was waited for came in time.
Steps: TypeAlias = Generator[Waiting, bool, T]
#: Family and what ``connect`` takes.
Address: TypeAlias = tuple[int, tuple[Any, ...]]

_MOMENT: Final = 0.002
_READ_SIZE: Final = 16_384
#: Seconds after which an idle connection is not kept, and how many are.
_IDLE_SECONDS: Final = 120.0
_MAX_IDLE: Final = 128


@dataclass(frozen=True, slots=True)
class Budget:
    """The time of one call: it ends at ``end`` (monotonic), ``seconds`` after it began; ``where`` is for errors."""

    where: str
    seconds: float
    end: float

    @classmethod
    def start(cls, where: str, seconds: float) -> Budget:
        return cls(where, seconds, time.monotonic() + seconds)

    def late(self) -> SourceError:
        return SourceError(f"{self.where} did not answer in full within {self.seconds * 1000:.0f} ms")

    def failed(self, error: OSError) -> SourceError:
        return SourceError(f"{self.where} did not answer: {error.strerror or f'{type(error).__name__}: {error}'}")


def run(steps: Steps[T]) -> T:
    """Run to the end, waiting in this thread."""
    try:
        waiting = next(steps)
        while True:
            waiting = steps.send(_wait(*waiting))
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()


async def arun(steps: Steps[T]) -> T:
    """Run to the end, waiting in the running event loop, which must be one that can watch sockets (on Unix all can)."""
    try:
        waiting = next(steps)
        while True:
            waiting = steps.send(await _await(*waiting))
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()


def _wait(sock: socket.socket | None, mask: int, until: float) -> bool:
    left = until - time.monotonic()
    if left <= 0.0:
        return False
    if sock is None:
        time.sleep(min(left, _MOMENT))
        return True
    poll = select.poll()
    poll.register(sock, mask)
    return bool(poll.poll(left * 1e3))


async def _await(sock: socket.socket | None, mask: int, until: float) -> bool:
    left = until - time.monotonic()
    if left <= 0.0:
        return False
    if sock is None:
        await asyncio.sleep(min(left, _MOMENT))
        return True
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[bool] = loop.create_future()
    reading = mask == select.POLLIN
    watch, leave = (loop.add_reader, loop.remove_reader) if reading else (loop.add_writer, loop.remove_writer)
    watch(sock, _resolve, ready, True)
    alarm = loop.call_later(left, _resolve, ready, False)
    try:
        return await ready
    finally:
        alarm.cancel()
        leave(sock)


def _resolve(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)


class _DroppedError(OSError):
    """The connection ended before a byte of an answer."""


class Pool:
    """Keep-alive connections to one place, for any number of threads and event loops.

    ``addresses`` gives where to connect, ``None`` while that is not known yet, or raises a SourceError.
    With ``tls`` the server's certificate is checked against ``host``. An answer's body has at most
    ``max_body`` bytes.
    """

    def __init__(
        self,
        addresses: Callable[[], tuple[Address, ...] | None],
        host: str,
        tls: ssl.SSLContext | None,
        max_body: int = MAX_BODY,
    ) -> None:
        self._addresses = addresses
        self._host = host
        self._tls = tls
        self._max_body = max_body
        # A deque's ends are atomic: no lock. The newest is taken first, the oldest dies of age.
        self._idle: deque[tuple[socket.socket, float]] = deque()
        self._process = os.getpid()
        self._preferred = 0
        self._closed = False

    def exchange(self, request: bytes, budget: Budget) -> Steps[Answer]:
        """Send ``request`` and read the whole answer.

        A pooled connection that ends before a byte of an answer is replaced by a fresh one, once.

        Raises
        ------
        SourceError : no connection, no complete answer in time, or something that is no HTTP answer
        """
        try:
            sock = self._take()
            if sock is not None:
                try:
                    return (yield from self._converse(sock, request, budget))
                except _DroppedError:
                    pass
            sock = yield from self._connect(budget)
            return (yield from self._converse(sock, request, budget))
        except OSError as error:
            raise budget.failed(error) from error

    def drop_idle(self) -> None:
        """Close the idle connections: whoever found one out of step trusts none."""
        while self._idle:
            self._drop_oldest()

    def close(self) -> None:
        """Close the idle connections now and each other one after its exchange."""
        self._closed = True
        self.drop_idle()

    def _take(self) -> socket.socket | None:
        if os.getpid() != self._process:
            # After a fork both processes hold the same connections: they are the parent's.
            self._process = os.getpid()
            self.drop_idle()
        while True:
            try:
                sock, _ = self._idle.pop()
            except IndexError:
                return None
            if _is_quiet(sock):
                return sock
            sock.close()

    def _give_back(self, sock: socket.socket) -> None:
        now = time.monotonic()
        self._idle.append((sock, now))
        while self._idle and (self._closed or len(self._idle) > _MAX_IDLE or self._idle[0][1] < now - _IDLE_SECONDS):
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        try:
            sock, _ = self._idle.popleft()
        except IndexError:  # another thread took it
            return
        sock.close()

    def _converse(self, sock: socket.socket, request: bytes, budget: Budget) -> Steps[Answer]:
        reusable = False
        reader = AnswerReader(budget.where, self._max_body)
        try:
            yield from _send(sock, request, budget)
            while True:
                data = yield from _receive(sock, budget)
                if not data and not reader.begun:
                    raise _DroppedError(errno.ECONNRESET, "the connection was closed without an answer")
                answer = reader.feed(data) if data else reader.finish()
                if answer is not None:
                    reusable = answer.reusable
                    return answer
        except (ConnectionError, ssl.SSLError) as error:
            if reader.begun:
                raise
            raise _DroppedError(*error.args) from error
        finally:
            if reusable:
                self._give_back(sock)
            else:
                sock.close()

    def _connect(self, budget: Budget) -> Steps[socket.socket]:
        while (addresses := self._addresses()) is None:
            if not (yield None, 0, budget.end):
                raise budget.late()
        failure: OSError = TimeoutError()
        first = self._preferred
        for tried in range(len(addresses)):
            choice = (first + tried) % len(addresses)
            now = time.monotonic()
            # Each address gets its share of what is left: one that swallows everything costs no answer.
            until = now + (budget.end - now) / (len(addresses) - tried)
            try:
                sock = yield from self._dial(addresses[choice], until)
            except OSError as error:
                failure = error
            else:
                self._preferred = choice
                return sock
        raise budget.late() if isinstance(failure, TimeoutError) else failure

    def _dial(self, address: Address, until: float) -> Steps[socket.socket]:
        family, target = address
        sock = socket.socket(family, socket.SOCK_STREAM)
        connected = False
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex(target)
            if code == errno.EINPROGRESS:
                if not (yield sock, select.POLLOUT, until):
                    raise TimeoutError
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self._host, do_handshake_on_connect=False)
                yield from _shake_hands(sock, until)
            connected = True
            return sock
        finally:
            if not connected:
                sock.close()


def _is_quiet(sock: socket.socket) -> bool:
    """Whether an idle connection is open and holds nothing that would be taken for the next answer."""
    try:
        sock.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False
    return False


def _shake_hands(sock: ssl.SSLSocket, until: float) -> Steps[None]:
    while True:
        try:
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            mask = select.POLLIN
        except ssl.SSLWantWriteError:
            mask = select.POLLOUT
        if not (yield sock, mask, until):
            raise TimeoutError


def _send(sock: socket.socket, data: bytes, budget: Budget) -> Steps[None]:
    left = memoryview(data)
    while True:
        try:
            left = left[sock.send(left) :]
            if not left:
                return
            mask = select.POLLOUT
        except (BlockingIOError, ssl.SSLWantWriteError):
            mask = select.POLLOUT
        except ssl.SSLWantReadError:
            mask = select.POLLIN
        if not (yield sock, mask, budget.end):
            raise budget.late()


def _receive(sock: socket.socket, budget: Budget) -> Steps[bytes]:
    mask = select.POLLIN
    while True:
        # What TLS has decrypted already is not seen by whoever watches the socket.
        buffered = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        if not buffered and not (yield sock, mask, budget.end):
            raise budget.late()
        try:
            return sock.recv(_READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):
            mask = select.POLLIN
        except ssl.SSLWantWriteError:
            mask = select.POLLOUT
