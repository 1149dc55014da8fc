"""What came of all messages so far, in a few numbers: for the table, the log's last line, and the summary."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from layer3.types import PositionSizingDecision

__all__ = ["Tally"]

#: Decisions whose latency is remembered.
_LATENCIES: Final = 100_000


class Tally:
    """Counts; ``answered`` are messages whose answer is out. ``timer`` gives seconds."""

    def __init__(self, timer: Callable[[], float] = time.monotonic) -> None:
        self.answered = self.decisions = self.rejected = self.late = 0
        #: Of decisions that judged a signal by who gave the multiplier, of the others by why not; of other messages
        #: by what they were; and of those in an experiment by whose size is held.
        self.sources: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self.arms: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._timer, self._started = timer, timer()

    def add(self, decision: PositionSizingDecision) -> None:
        """Take in one decision."""
        self.decisions += 1
        self._latencies.append(decision.latency_ms)
        if decision.refusal is None:
            self.sources[decision.multiplier_source] += 1
        else:
            self.refusals[decision.refusal] += 1
        arms = decision.experiment
        if arms is not None:
            self.arms["unrecorded" if arms.how == "unrecorded" else arms.arm] += 1

    @property
    def refused(self) -> int:
        """Decisions that were zero without judging the signal."""
        return self.refusals.total()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return max(self._timer() - self._started, 1e-9)

    def latency_ms(self, *shares: float) -> tuple[float, ...]:
        """The quantiles ``shares`` of the latest latencies, milliseconds; () before any."""
        ordered = sorted(self._latencies)
        return tuple(ordered[min(int(len(ordered) * share), len(ordered) - 1)] for share in shares) if ordered else ()

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        found: dict[str, Any] = {
            "answered": self.answered,
            "decisions": self.decisions,
            "refused": self.refused,
            "no_signals": self.rejected,
            "by_source": dict(self.sources),
            "refused_by_reason": dict(self.refusals),
        }
        if self.arms:
            found |= {"by_arm": dict(self.arms), "recorded_late": self.late}
        for name, value in zip(("p50_ms", "p99_ms"), self.latency_ms(0.5, 0.99), strict=False):
            found[name] = round(value, 4)
        return found

    def text(self, places: Mapping[str, str]) -> str:
        """A few lines for people; ``places`` says by a word what else there is to see, and where."""
        kinds = {"decision": self.decisions, **self.others, "message that could not be read": self.rejected}
        parts = [_counted(count, kind) for kind, count in kinds.items() if count]
        rows = {_counted(self.answered, "message"): f"{', '.join(parts) or 'none'} in {self.seconds:,.2f} s"}
        for name, counts in (("multiplier from", self.sources), ("refused", self.refusals), ("size of", self.arms)):
            if counts:
                rows[name] = ", ".join(f"{word} {count:,}" for word, count in sorted(counts.items()))
        latency = self.latency_ms(0.5, 0.99)
        if latency:
            rows["latency"] = "p50 {:.3f} ms, p99 {:.3f} ms".format(*latency)
        if self.late:
            rows["recorded late"] = f"{_counted(self.late, 'record')} followed after the answer: the disk is slow"
        width = max(map(len, (*rows, *places)))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in {**rows, **places}.items())


def _counted(count: int, kind: str) -> str:
    first, space, rest = kind.partition(" ")
    return f"{count:,} {first}{'' if count == 1 else 's'}{space}{rest}"
