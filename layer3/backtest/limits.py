"""What the gate asks, as numbers: their defaults, ranges and strict loader. ``config/gate.yaml`` holds the same.

Every limit is on the held-out period unless it says otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from layer3 import settings
from layer3.settings import one_of, true_or_false, within

__all__ = [
    "PERMUTATIONS",
    "GateConfig",
    "WalkForwardLimits",
    "gate_config_text",
    "load_gate_config",
    "parse_gate_config",
]

#: Permuted paths of each kind that an evaluation walks; what the gate asks cannot need more.
PERMUTATIONS: Final = 200
_WHAT: Final = "the gate's configuration"


@dataclass(frozen=True, slots=True)
class WalkForwardLimits:
    """What is asked of the procedure that made the candidate.

    Its stitched record is three times as long as the held-out one (18 test pieces on three quarters of the
    data, against one quarter), so at 95 % it asks 1 / sqrt(3) = 58 % of the Sharpe ratio that the same level
    asks of the candidate: room for policies that had a quarter of the data to learn from. Below 95 % the
    criterion would no longer be a test of its own.
    """

    #: False: the walk-forward is not asked for, which shows in the verdict's limits.
    required: bool = True
    #: Least probability that the stitched record's true Sharpe ratio is above 0.
    probabilistic_sharpe: float = 0.95

    def __post_init__(self) -> None:
        true_or_false(self, "required")
        within(self, "probabilistic_sharpe", 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class GateConfig:
    """What a candidate must reach, on the held-out period unless said otherwise. ``config/gate.yaml`` holds the same.

    ``claim`` is what the policy is for. ``return``: it earns more for its risk than Kelly only, so the
    interval of the difference must lie above 0. ``risk``: it takes less risk for the same ratio, so it must
    not be worse, and the volatility must be lower by ``risk_reduction``. The second asks less: sizing
    everything down satisfies it, because that is what it claims.

    "Not worse" (than the champion; with the claim ``risk``, than Kelly only) has two halves: the interval of
    the difference does not lie below 0, and its lower end not below ``-margin``. The first alone would be
    the easier, the shorter the record.
    """

    #: Least annualised Sharpe ratio.
    sharpe: float = 1.0
    #: Least probability that the true Sharpe ratio is above 0.
    probabilistic_sharpe: float = 0.95
    #: Least probability that it is above what the best of all trials without an edge would show.
    deflated_sharpe: float = 0.95
    #: Largest p value on permuted prices, of the worst kind of permutation.
    permutation_p: float = 0.05
    #: Fewest permuted paths of each kind.
    permutation_paths: int = 100
    #: Largest fall from a peak, as a fraction.
    max_drawdown: float = 0.20
    #: Fewest closed round trips.
    trades: int = 30
    #: Shortest record in months, however good.
    min_record_months: float = 3.0
    claim: Literal["return", "risk"] = "return"
    #: With the claim "risk": least reduction of volatility against Kelly only, as a fraction.
    risk_reduction: float = 0.1
    #: What "not worse" may cost at most, in annualised Sharpe ratio, at the lower end of the difference's interval.
    margin: float = 0.5
    #: Least standard deviation of the multiplier where the chain holds anything.
    spread: float = 0.02
    walk_forward: WalkForwardLimits = field(default_factory=WalkForwardLimits)

    def __post_init__(self) -> None:
        # 20 for "20 %" would wave every drawdown through.
        within(self, "sharpe", -100.0, 100.0)
        for name in ("probabilistic_sharpe", "deflated_sharpe", "max_drawdown", "spread"):
            within(self, name, 0.0, 1.0)
        # The least p value of n paths is 1 / (1 + n): with fewer no policy could ever pass.
        within(self, "permutation_p", 1.0 / (1.0 + PERMUTATIONS), 1.0)
        within(self, "permutation_paths", math.ceil(1.0 / self.permutation_p - 1e-9) - 1, PERMUTATIONS, whole=True)
        within(self, "trades", 0, 1_000_000, whole=True)
        within(self, "min_record_months", 0.0, 1_200.0)
        one_of(self, "claim", ("return", "risk"))
        within(self, "risk_reduction", 0.0, 1.0, open_high=True)
        within(self, "margin", 0.0, 100.0)


def load_gate_config(path: Path) -> GateConfig:
    """Read a YAML file of the shape of ``config/gate.yaml``, as :func:`layer3.settings.load` says."""
    return settings.load(GateConfig(), path, _WHAT)


def parse_gate_config(text: str, origin: str) -> GateConfig:
    """The configuration that a YAML document gives, as :func:`layer3.settings.parse` says; "" is the defaults."""
    return settings.parse(GateConfig(), text, origin)


def gate_config_text(path: Path | None) -> str:
    """The file's text, checked (:func:`layer3.settings.text_of`); "" for none."""
    return settings.text_of(GateConfig(), path, _WHAT)
