"""A client that keeps up with the servers: one thread, many kept connections, every answer looked at.

Closed loop: each connection asks again when it is answered, until so many answers came. Open loop: requests are
meant to leave at random moments of a given rate, whoever is slow, and latency counts from that moment, so that a
server that stalls pays for all who wait.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Outcome", "closed_loop", "open_loop"]

#: Seconds without any answer after which a run is given up.
_SILENCE_S = 20.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Outcome:
    """Seconds to every answer (n,), in order of arrival; answers by status, 0 where a connection broke."""

    latencies: NDArray[np.float64]
    seconds: float
    statuses: Counter[int]
    wrong: list[bytes] = field(repr=False)

    @property
    def failed(self) -> int:
        """Requests that were not answered with 200, or whose answer was not the right one."""
        return sum(count for status, count in self.statuses.items() if status != 200) + len(self.wrong)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Seconds within which that share of the answers came."""
        return float(np.percentile(self.latencies, percent))


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_SILENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.since = 0.0

    def send(self, request: bytes, since: float) -> None:
        self.since, self.received = since, b""
        self.socket.sendall(request)

    def read(self) -> tuple[int, bytes] | None:
        """Status and body once they are complete; status 0 where the connection ended before that."""
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionError:
            data = b""
        if not data:
            return 0, b""
        self.received += data
        head, separator, body = self.received.partition(b"\r\n\r\n")
        if not separator:
            return None
        length = _LENGTH.search(head + b"\r\n")
        if length is None:
            return 0, head
        return (int(head[9:12]), body) if len(body) >= int(length[1]) else None


class _Crowd:
    """Connections that wait for answers, and what came of them so far."""

    def __init__(self, port: int, count: int, check: Callable[[bytes], bool]) -> None:
        self._port, self._check = port, check
        self.idle = deque(_Connection(port) for _ in range(count))
        self._by_number = {connection.socket.fileno(): connection for connection in self.idle}
        self._epoll = select.epoll()
        for number in self._by_number:
            self._epoll.register(number, select.EPOLLIN)
        self.latencies: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.wrong: list[bytes] = []
        self._heard = time.perf_counter()

    def collect(self, timeout: float) -> None:
        """Wait so many seconds at most for answers; whoever is answered is idle again."""
        for number, _ in self._epoll.poll(timeout):
            connection = self._by_number[number]
            answer = connection.read()
            if answer is None:
                continue
            status, body = answer
            now = time.perf_counter()
            self._heard = now
            self.statuses[status] += 1
            self.latencies.append(now - connection.since)
            if status == 0:
                connection = self._replaced(number)
            elif status == 200 and not self._check(body):
                self.wrong.append(body[:200])
            self.idle.append(connection)
        if time.perf_counter() - self._heard > _SILENCE_S:
            raise TimeoutError(f"no answer for {_SILENCE_S:g} s; so far {dict(self.statuses)}")

    def _replaced(self, number: int) -> _Connection:
        self._by_number.pop(number).socket.close()
        connection = _Connection(self._port)
        self._by_number[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket.fileno(), select.EPOLLIN)
        return connection

    def close(self) -> None:
        for connection in self._by_number.values():
            connection.socket.close()
        self._epoll.close()


@contextmanager
def _crowd(port: int, count: int, check: Callable[[bytes], bool]) -> Iterator[_Crowd]:
    crowd = _Crowd(port, count, check)
    try:
        yield crowd
    finally:
        crowd.close()


def _outcome(crowd: _Crowd, seconds: float) -> Outcome:
    return Outcome(np.array(crowd.latencies), seconds, crowd.statuses, crowd.wrong)


def _anything(_: bytes) -> bool:
    return True


def closed_loop(
    port: int,
    requests: Sequence[bytes],
    *,
    connections: int,
    until: Callable[[int], bool],
    check: Callable[[bytes], bool] = _anything,
) -> Outcome:
    """Ask ``requests`` in turn on every connection until ``until`` of the number of requests sent is true.

    ``check`` says of the body of each 200 whether it is a right answer.
    """
    with _crowd(port, connections, check) as crowd:
        started, sent = time.perf_counter(), 0
        while True:
            while crowd.idle and not until(sent):
                crowd.idle.popleft().send(requests[sent % len(requests)], time.perf_counter())
                sent += 1
            if len(crowd.latencies) == sent:
                return _outcome(crowd, time.perf_counter() - started)
            crowd.collect(1.0)


def open_loop(
    port: int, requests: Sequence[bytes], *, connections: int, rate: float, seconds: float, seed: int
) -> Outcome:
    """Requests at ``rate`` per second on average, independent of each other (a Poisson process).

    Where all connections wait, a request waits for one of them, and its latency runs.
    """
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, round(rate * seconds))
    due = np.cumsum(gaps).tolist()
    with _crowd(port, connections, _anything) as crowd:
        started, sent = time.perf_counter(), 0
        while len(crowd.latencies) < len(due):
            elapsed = time.perf_counter() - started
            while sent < len(due) and due[sent] <= elapsed and crowd.idle:
                crowd.idle.popleft().send(requests[sent % len(requests)], started + due[sent])
                sent += 1
            # Not slept: a core that wakes up is later than what is measured here.
            crowd.collect(0.0 if sent < len(due) else 0.1)
        return _outcome(crowd, time.perf_counter() - started)
