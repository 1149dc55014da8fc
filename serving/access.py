"""The access log: one line of JSON for a request, as Cloud Logging reads it from standard output.

Of requests that went well so many lines a second are written, and errors always, until they come in a flood:
what is not written is counted, and a line says so every few seconds. Nothing here waits: a line for
which a full pipe has no room is counted too, and a reader that has gone costs no request its answer.
"""

from __future__ import annotations

import io
import json
import re
import select
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TextIO

__all__ = ["AccessLog"]

#: Lines of errors, of callers (4xx) and of ours (5xx) each, that are written at once, and each second from then on:
#: a day of nothing else is a third of a gigabyte.
_ERROR_BURST: Final = 1_000.0
_ERRORS_PER_SECOND: Final = 10.0
#: Seconds between two lines that tell how many were left out.
_SUMMARY: Final = 10.0
#: Characters of a path; escaped, both times that it appears, a line stays below 4 KiB.
_PATH_SHOWN: Final = 120
_CLASSES: Final = ("2xx", "4xx", "5xx")
_SEVERITY: Final = ("INFO", "WARNING", "ERROR")
#: A trace's id, a span's id in decimal, and whether it is sampled: https://cloud.google.com/trace/docs/trace-context
_GOOGLE: Final = re.compile(rb"([0-9a-fA-F]{32})(?:/([0-9]{1,20}))?(?:;o=([0-9]{1,2}))?")
#: https://www.w3.org/TR/trace-context: version, trace, span, flags.
_W3C: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


class _Bucket:
    """Lets ``rate`` lines a second through, and ``burst`` at once after a pause."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left = burst
        self._at = 0.0
        self.left_out = 0

    def takes(self, now: float) -> bool:
        left = min(self._left + (now - self._at) * self._rate, self._burst)
        self._at = now
        if left < 1.0:
            self._left = left
            self.left_out += 1
            return False
        self._left = left - 1.0
        return True


class AccessLog:
    """Writes at most ``per_second`` lines a second of requests that went well; 0 means errors only.

    ``project`` completes the names of traces, ``out`` is standard output unless given, ``clock`` is monotonic
    seconds and ``wall`` seconds since 1970. ``written`` and ``suppressed`` count lines.
    """

    def __init__(
        self,
        per_second: float,
        project: str = "",
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.written = 0
        self.suppressed = 0
        errors = (_Bucket(_ERRORS_PER_SECOND, _ERROR_BURST) for _ in range(2))
        self._buckets = (_Bucket(per_second, per_second), *errors)
        self._traces = f"projects/{project}/traces/" if project else ""
        self._out = sys.stdout if out is None else out
        self._pipe = _poll(self._out)
        self._clock, self._wall = clock, wall
        self._tell_at = clock() + _SUMMARY

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
        kind = 0 if status < 400 else 1 if status < 500 else 2
        now = self._clock()
        taken = self._buckets[kind].takes(now)
        if now >= self._tell_at:
            self._tell(now)
        if not taken:
            self.suppressed += 1
            return
        method = method[:16]
        shown = path if len(path) <= _PATH_SHOWN else f"{path[:_PATH_SHOWN]}…"
        request = {"requestMethod": method, "requestUrl": shown, "status": status, "latency": f"{seconds:.6f}s"}
        line = {
            "severity": _SEVERITY[kind],
            "message": f"{method} {shown} {status}",
            "httpRequest": request,
            "requestId": request_id,
            "caller": caller,
            **self._trace(trace),
        }
        if not self._put(line):
            self.suppressed += 1
            self._buckets[kind].left_out += 1

    def _trace(self, header: bytes | None) -> dict[str, Any]:
        if header is None:
            return {}
        if found := _W3C.fullmatch(header):
            trace, span, sampled = found[1], found[2].decode(), bool(int(found[3], 16) & 1)
        elif found := _GOOGLE.fullmatch(header):
            trace, span, sampled = found[1].lower(), f"{int(found[2] or 0):016x}", found[3] == b"1"
        else:
            return {}
        name = "logging.googleapis.com"
        told = {f"{name}/trace": self._traces + trace.decode(), f"{name}/trace_sampled": sampled}
        return told | ({f"{name}/spanId": span} if span.strip("0") else {})

    def _tell(self, now: float) -> None:
        """How many lines were left out since it was last told, if any."""
        self._tell_at = now + _SUMMARY
        left_out = {name: bucket.left_out for name, bucket in zip(_CLASSES, self._buckets, strict=True)}
        if not any(left_out.values()):
            return
        total = sum(left_out.values())
        severity = "WARNING" if left_out["4xx"] or left_out["5xx"] else "INFO"
        if self._put({"severity": severity, "message": f"{total} requests were not logged", "suppressed": left_out}):
            for bucket in self._buckets:
                bucket.left_out = 0

    def _put(self, line: dict[str, Any]) -> bool:
        """Write one line, unless that would have to wait or nobody reads any more; whether it was written."""
        if self._pipe is not None and not self._pipe.poll(0):
            return False
        moment = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds")
        # ASCII, so that nothing a caller sent can begin a line of its own.
        text = json.dumps({"time": moment, **line}, separators=(",", ":"))
        try:
            self._out.write(f"{text}\n")
            self._out.flush()
        except (OSError, ValueError):  # the reader has gone, the disk is full, the stream is closed
            return False
        self.written += 1
        return True


def _poll(out: TextIO) -> select.poll | None:
    """What says whether ``out`` has room for a line (a pipe: for 4 KiB, which no line exceeds); None if it always has.

    A text stream in memory has no descriptor.
    """
    try:
        descriptor = out.fileno()
    except (OSError, ValueError, io.UnsupportedOperation):
        return None
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll
