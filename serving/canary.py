"""Whether a candidate under canary does worse than the champion beside it: errors and latency, as counted by anyone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Comparison", "Limits", "Tally", "objection", "percentile"]


@dataclass(frozen=True, slots=True)
class Tally:
    """Requests of one revision; ``errors`` are those without an answer or with a 5xx, ``p99_seconds`` if known."""

    requests: int
    errors: int
    p99_seconds: float | None

    @property
    def error_rate(self) -> float:
        return self.errors / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides over the same time; ``champion`` is None where there is none. ``source`` is who counted."""

    source: str
    candidate: Tally
    champion: Tally | None

    def __str__(self) -> str:
        sides = [("candidate", self.candidate), *([("champion", self.champion)] if self.champion else [])]
        return f"{self.source}: " + ", ".join(
            f"{name} {tally.errors} of {tally.requests} failed"
            + (f", p99 {tally.p99_seconds * 1e3:.0f} ms" if tally.p99_seconds is not None else "")
            for name, tally in sides
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What a candidate may do worse.

    Its rate of errors may exceed the champion's by ``error_rate``, a single error aside. Its 99th percentile of
    latency, of at least ``p99_requests``, may exceed the champion's by ``p99_factor`` or by ``p99_seconds``, whichever
    allows more; without a champion it may be ``alone_p99_seconds``, the time that layer 3 gives an answer.
    """

    error_rate: float = 0.01
    p99_factor: float = 1.5
    p99_seconds: float = 0.05
    p99_requests: int = 100
    alone_p99_seconds: float = 0.15


def objection(found: Comparison, limits: Limits) -> str | None:
    """Why the candidate must be taken back, as a sentence; None where nothing speaks against it."""
    candidate, champion = found.candidate, found.champion
    allowed = (champion.error_rate if champion else 0.0) + limits.error_rate
    if candidate.errors > 1 and candidate.error_rate > allowed:
        return (
            f"{found}: {candidate.error_rate:.1%} of the candidate's requests failed, at most {allowed:.1%} are allowed"
        )
    if candidate.p99_seconds is None or candidate.requests < limits.p99_requests:
        return None
    longest = limits.alone_p99_seconds
    if champion is not None:
        if champion.p99_seconds is None or champion.requests < limits.p99_requests:
            return None
        longest = max(limits.p99_factor * champion.p99_seconds, champion.p99_seconds + limits.p99_seconds)
    if candidate.p99_seconds > longest:
        return (
            f"{found}: the candidate's 99th percentile is {candidate.p99_seconds * 1e3:.0f} ms, at most "
            f"{longest * 1e3:.0f} ms are allowed"
        )
    return None


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that at least ``percent`` of all do not exceed (nearest rank); None of none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
