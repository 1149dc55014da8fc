"""Who gets which arm: by a keyed hash of the unit, so that the same unit gets the same arm in every process.

Everything that a result depends on is settled here before the first decision, and kept in the store:
what was chosen after looking at the data would prove nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Literal, Protocol

from layer3 import settings
from layer3.errors import ConfigurationError
from layer3.types import How, TacticalSignal

__all__ = ["DAY_NS", "UNITS", "Arm", "Assigner", "Assignment", "Design", "UnitKind", "bucket", "unit_of"]

DAY_NS: Final = 86_400_000_000_000
UnitKind = Literal["signal", "symbol_day", "strategy"]
UNITS: Final[tuple[UnitKind, ...]] = ("signal", "symbol_day", "strategy")


class Arm(StrEnum):
    """Whose size is held."""

    POLICY = "policy"
    KELLY = "kelly"


@dataclass(frozen=True, slots=True)
class Assignment:
    """Whose size a signal gets and how that came; ``share`` of units that got the policy when its unit was
    assigned, ``None`` where it was not."""

    experiment: str
    arm: Arm
    how: How
    unit: str
    symbol: str
    strategy: str
    share: float | None


class Assigner(Protocol):
    """Who says whose size a signal gets; for any number of threads, and without waiting for a disk."""

    def assign(self, signal: TacticalSignal) -> Assignment | None:
        """Whose size ``signal`` gets, ``None`` where it is in no experiment; never raises."""


@dataclass(frozen=True, slots=True)
class Design:
    """An experiment, as it is before it begins. Returns are fractions of the portfolio's value.

    ``ramp`` are pairs (days since the start, share of units that get the policy from then on); shares in
    [0, 1] never fall, and a unit keeps the arm that it once got.
    """

    name: str
    #: What is assigned as one: each signal, all signals of a symbol on a UTC day, or all of a strategy.
    unit: UnitKind = "signal"
    ramp: tuple[tuple[float, float], ...] = ((0.0, 0.5),)
    #: Days after which the experiment ends without a result.
    planned_days: float = 28.0
    #: Units with an outcome, both arms together, at which the sequential test is sharpest.
    expected_units: int = 2_000
    #: Units that each arm needs before anything is concluded: below, no variance can be relied upon.
    least_units: int = 50
    #: Probability that the sequential interval holds the true difference on all days at once.
    level: float = 0.95
    #: Smallest difference of mean return that matters, per year.
    smallest_effect: float = 0.05
    #: Guardrails of the policy's arm: fall from a peak, and loss on one UTC day.
    max_drawdown: float = 0.10
    daily_loss: float = 0.02

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or not self.name.isprintable():
            raise ConfigurationError(f"Design.name is {self.name!r}; it must be printable, and not empty")
        settings.one_of(self, "unit", UNITS)
        settings.within(self, "planned_days", 0.0, 3_650.0, open_low=True)
        settings.within(self, "expected_units", 10, 1_000_000_000, whole=True)
        settings.within(self, "least_units", 10, 1_000_000, whole=True)
        settings.within(self, "level", 0.5, 1.0, open_low=True, open_high=True)
        settings.within(self, "smallest_effect", 0.0, 100.0, open_low=True)
        settings.within(self, "max_drawdown", 0.0, 1.0, open_low=True)
        settings.within(self, "daily_loss", 0.0, 1.0, open_low=True)
        _check_ramp(self.ramp)

    def share_at(self, start_ns: int, now_ns: int) -> float:
        """Share of units that get the policy at ``now_ns``, for an experiment that began at ``start_ns``."""
        days = (now_ns - start_ns) / DAY_NS
        begun = [share for since, share in self.ramp if since <= days]
        return begun[-1] if begun else self.ramp[0][1]

    def as_text(self) -> str:
        """The design as JSON, the same text for the same design."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_text(cls, text: str) -> Design:
        """Read what :meth:`as_text` wrote."""
        content: dict[str, Any] = json.loads(text)
        content["ramp"] = tuple((float(day), float(share)) for day, share in content["ramp"])
        return cls(**content)


def bucket(experiment: str, unit: str) -> float:
    """Where a unit stands in [0, 1), for one experiment: below the share it gets the policy.

    BLAKE2b of the unit keyed by the experiment's name, so that a unit's places in two experiments have
    nothing to do with each other.
    """
    key = hashlib.sha256(experiment.encode()).digest()
    digest = hashlib.blake2b(unit.encode(), key=key, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2.0**53


def unit_of(kind: UnitKind, *, strategy_id: str, symbol: str, timestamp_ns: int) -> str:
    """The unit that a signal belongs to, as text; ``timestamp_ns`` is UTC nanoseconds."""
    parts: dict[UnitKind, list[str | int]] = {
        "signal": [strategy_id, symbol, timestamp_ns],
        "symbol_day": [symbol, f"{datetime.fromtimestamp(timestamp_ns // 1_000_000_000, tz=UTC):%Y-%m-%d}"],
        "strategy": [strategy_id],
    }
    # JSON, because a separator that may stand in a name would make one unit of two.
    return json.dumps(parts[kind], ensure_ascii=False)


def _check_ramp(ramp: object) -> None:
    told = f"Design.ramp is {ramp!r}; it must be pairs (day, share)"
    if not isinstance(ramp, tuple) or not ramp:
        raise ConfigurationError(f"{told}, for example ((0.0, 0.5),)")
    for step in ramp:
        numbers = isinstance(step, tuple) and len(step) == 2
        if not numbers or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in step):
            raise ConfigurationError(f"{told}: {step!r} is no pair of numbers")
        if not (0.0 <= step[0] < math.inf and 0.0 <= step[1] <= 1.0):
            raise ConfigurationError(f"{told}: {step!r} is no day from 0 with a share in [0, 1]")
    days, shares = [step[0] for step in ramp], [step[1] for step in ramp]
    if days[0] != 0.0 or days != sorted(set(days)) or shares != sorted(shares):
        raise ConfigurationError(f"{told} that begin on day 0, on later and later days, with shares that never fall")
