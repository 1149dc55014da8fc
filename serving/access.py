"""The access log: one line of JSON for a request, as Cloud Logging reads it from standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["AccessLog"]


class AccessLog:
    """Writes at most ``per_second`` lines a second of requests that went well, and counts the others."""

    def __init__(
        self,
        per_second: float,
        project: str = "",
        out: TextIO = sys.stdout,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.written = 0
        self.suppressed = 0

    def write(
        self,
        method: str,
        path: str,
        status: int,
        seconds: float,
        request_id: str,
        caller: str | None,
        trace: bytes | None,
    ) -> None:
        """Log one answer. ``trace`` is the header X-Cloud-Trace-Context or traceparent as it came."""
