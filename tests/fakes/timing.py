"""Bounds on time for a machine that may stand still for a second: the best of several attempts, or its own noise."""

from __future__ import annotations

import functools
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

__all__ = ["best_of_three", "noise", "quickest"]


P = ParamSpec("P")


def quickest(call: Callable[[], object], attempts: int = 3) -> float:
    """Seconds of the fastest of ``attempts`` calls."""
    seconds = []
    for _ in range(attempts):
        start = time.monotonic()
        call()
        seconds.append(time.monotonic() - start)
    return min(seconds)


def best_of_three(test: Callable[P, None]) -> Callable[P, None]:
    """A test that passes if one of three attempts does; for what is about time from its first line to its last."""

    @functools.wraps(test)
    def attempts(*args: P.args, **kwargs: P.kwargs) -> None:
        for _ in range(2):
            try:
                return test(*args, **kwargs)
            except AssertionError:
                continue
        return test(*args, **kwargs)

    return attempts


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
