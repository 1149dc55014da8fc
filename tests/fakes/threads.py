"""Work on several threads: what one of them raises is raised, and what hangs is named and fails the test."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["at_once", "beside"]

A = TypeVar("A")

#: Twenty times what the slowest work takes; less than what ends a hanging test, and with it the whole run.
_SECONDS = 300.0


def at_once(work: Callable[[A], object], each: Iterable[A], seconds: float = _SECONDS) -> None:
    """``work`` of every one of ``each``, on a thread of its own.

    Raises
    ------
    whatever a thread raised : the first of them
    AssertionError : a thread has not ended after ``seconds``; it says which, and where it stands
    """
    with beside(work, each, seconds):
        pass


@contextmanager
def beside(work: Callable[[A], object], each: Iterable[A], seconds: float = _SECONDS) -> Iterator[None]:
    """As :func:`at_once`, with the block beside it; ``seconds`` begin when the block ends.

    A block that raises leaves the threads to themselves: they may wait for what it did not come to.
    """
    raised: list[BaseException] = []

    def run(argument: A) -> None:
        try:
            work(argument)
        except BaseException as error:  # noqa: BLE001 - raised where the thread is waited for
            raised.append(error)

    threads = [threading.Thread(target=run, args=(a,), name=f"{work.__name__}({a!r})", daemon=True) for a in each]
    for thread in threads:
        thread.start()
    try:
        yield
    except BaseException as error:
        for other in raised:
            error.add_note(f"before, on a thread: {other!r}")
        raise
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if raised:
        raise raised[0]
    hanging = [thread for thread in threads if thread.is_alive()]
    assert not hanging, f"not ended after {seconds:g} s:\n" + "\n".join(_whereabouts(thread) for thread in hanging)


def _whereabouts(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    stack = traceback.format_stack(frame) if frame else ["  (ended just now)\n"]
    return f"{thread.name}, here:\n{''.join(stack)}"
