"""Bounds on time for a machine that may stand still for a second: the best of several attempts, or its own noise."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["noise", "quickest"]


def quickest(call: Callable[[], object], below: float, attempts: int = 20) -> float:
    """Seconds of the fastest of ``attempts`` calls; the first that takes less than ``below`` is the last."""
    seconds = []
    for _ in range(attempts):
        start = time.monotonic()
        call()
        seconds.append(time.monotonic() - start)
        if seconds[-1] < below:
            break
    return min(seconds)


@contextmanager
def noise(seconds: float, threads: int) -> Iterator[list[float]]:
    """How late this machine and this interpreter are to end a plain wait of ``seconds``, meanwhile."""
    late: list[float] = []
    over = threading.Event()

    def wait() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            poll = select.poll()
            poll.register(ours, select.POLLIN)
            while not over.is_set():
                start = time.monotonic()
                poll.poll(seconds * 1e3)
                late.append(time.monotonic() - start - seconds)

    waiting = [threading.Thread(target=wait) for _ in range(threads)]
    for thread in waiting:
        thread.start()
    try:
        yield late
    finally:
        over.set()
        for thread in waiting:
            thread.join()
