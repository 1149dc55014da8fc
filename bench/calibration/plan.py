"""Which markets the calibration is made of, and how many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from bench.calibration.markets import KINDS, Design

__all__ = ["EDGES", "FULL", "PLANTED", "YEARS", "Plan", "Task", "tasks"]

#: Lengths of a record, in years.
YEARS: Final = (0.5, 1.0, 2.0, 4.0)
#: The planted edge for each true Sharpe ratio that is wanted; what it really comes to is measured in each run.
EDGES: Final = {1.0: 0.0235, 1.5: 0.0322, 2.0: 0.0415, 3.0: 0.06}
#: Markets for each true ratio that are judged after a record of each length: more where the theory asks for 80 %
#: and the gate is not far from it.
PLANTED: Final = {
    1.0: {0.5: 40, 1.0: 40, 2.0: 40, 4.0: 16},
    1.5: {0.5: 40, 1.0: 40, 2.0: 40, 4.0: 40},
    2.0: {0.5: 40, 1.0: 40, 2.0: 40, 4.0: 16},
    3.0: {0.5: 40, 1.0: 40, 2.0: 32, 4.0: 16},
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything.

    ``markets`` without an edge of each kind and kind of signals, a quarter of them for each length of record;
    ``planted``: markets for each true Sharpe ratio that are judged after each length, the same ones after several;
    ``truth`` markets of ``truth_years`` on which each true ratio is measured. ``together`` candidates are
    trained in one call.
    """

    markets: int = 48
    planted: Mapping[float, Mapping[float, int]] = field(default_factory=lambda: PLANTED)
    truth: int = 4
    truth_years: float = 20.0
    training_years: float = 3.0
    together: int = 4


FULL: Final = Plan()


@dataclass(frozen=True, slots=True)
class Task:
    """Markets of one design that are trained together: ``numbers`` are their seeds, ``left`` those not yet judged.

    ``aim``: what is asked of them, a verdict after each of ``years``, or their true Sharpe ratio over the one
    length in ``years``. ``level``: the true ratio that the planted edge is meant for.
    """

    aim: Literal["verdict", "truth"]
    design: Design
    level: float | None
    years: tuple[float, ...]
    training_years: float
    numbers: tuple[int, ...]
    left: tuple[int, ...]

    @property
    def weight(self) -> float:
        """About how long it takes, for the time left; measured, in units of half a second."""
        if self.aim == "truth":
            return 2.0 * max(self.years) * len(self.left)
        # The dear stages come the more often, the larger the edge.
        return (2.0 + max(self.years) + 5.0 * (self.level or 0.0) * sum(self.years)) * len(self.left)


def tasks(plan: Plan) -> list[Task]:
    """Everything that ``plan`` asks for: what the truth is, markets without an edge, markets with one."""
    found = []
    for level in plan.planted:
        design = Design("planted", edge=EDGES[level])
        for part in _groups(range(9_001, 9_001 + plan.truth), plan.together):
            found.append(_task(plan, "truth", design, level, (plan.truth_years,), part))
    for kind in KINDS:
        for signals in ("own", "baseline"):
            for place, years in enumerate(YEARS):
                for part in _groups(range(1 + place, plan.markets + 1, len(YEARS)), plan.together):
                    found.append(_task(plan, "verdict", Design(kind, signals), None, (years,), part))
    for level, counts in plan.planted.items():
        design = Design("planted", edge=EDGES[level])
        for part in _groups(range(1, max(counts.values()) + 1), plan.together):
            years = tuple(length for length, count in counts.items() if part[0] <= count)
            found.append(_task(plan, "verdict", design, level, years, part))
    return found


def _groups(numbers: range, size: int) -> list[range]:
    return [numbers[first : first + size] for first in range(0, len(numbers), size)]


def _task(
    plan: Plan,
    aim: Literal["verdict", "truth"],
    design: Design,
    level: float | None,
    years: tuple[float, ...],
    numbers: Sequence[int],
) -> Task:
    return Task(aim, design, level, years, plan.training_years, tuple(numbers), tuple(numbers))
