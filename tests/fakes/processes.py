"""A process that a test starts together with whatever that starts, as a terminal does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["group", "is_alive"]


@contextlib.contextmanager
def group(command: Sequence[str | os.PathLike[str]], **settings: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process at the head of a group of its own: what is left of the group when the block ends is killed.

    ``settings`` are those of :class:`subprocess.Popen`.
    """
    with subprocess.Popen(command, **settings, start_new_session=True) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether there is such a process; one that has ended and was not waited for counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
