"""A clock that moves when it is told to."""

from __future__ import annotations

from typing import Any

__all__ = ["Clock"]


class Clock:
    """Called, it says ``now``, which is the test's to change: seconds, or whatever else it was given."""

    def __init__(self, now: Any = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> Any:
        return self.now
