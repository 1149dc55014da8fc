"""What crosses the boundary of layer 3: signals and indicators in, decisions out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FALLBACK_KELLY",
    "GCP_API",
    "LOCAL_MODEL",
    "Action",
    "Arms",
    "CascadeIndicators",
    "ClosedTrade",
    "Explanation",
    "How",
    "PositionSizingDecision",
    "Regime",
    "Stage",
    "TacticalSignal",
    "Written",
]

#: Who gave a multiplier: the served champion, a policy file on this machine, or nobody (1.0 by default).
GCP_API: Final = "gcp_api"
LOCAL_MODEL: Final = "local_model"
FALLBACK_KELLY: Final = "fallback_kelly"


#: How a decision in an experiment came to its arm: by the hash, by a caller's force, because the policy's arm was
#: stopped, or because it could not have been recorded.
How = Literal["assigned", "forced", "stopped", "unrecorded"]


class Action(StrEnum):
    """What layer 2 wants done."""

    STRONG_BUY = "strong_buy"
    BUY = "buy"
    HOLD = "hold"
    SELL = "sell"
    STRONG_SELL = "strong_sell"

    @property
    def side(self) -> int:
        """+1 to be long, -1 to be short, 0 to hold nothing."""
        return _SIDES[self]


_SIDES = {Action.STRONG_BUY: 1, Action.BUY: 1, Action.HOLD: 0, Action.SELL: -1, Action.STRONG_SELL: -1}


class Regime(StrEnum):
    """The market's regime as layer 2 sees it."""

    TRENDING_UP = "trending_up"
    TRENDING_DOWN = "trending_down"
    RANGING = "ranging"
    HIGH_VOLATILITY = "high_volatility"
    CRISIS = "crisis"


@dataclass(frozen=True, slots=True)
class TacticalSignal:
    """One signal of layer 2.

    ``expected_return`` is the return of *following the signal* (a SELL that expects the price
    to fall 3 % says +0.03), over the Kelly horizon (30 days by default); ``None`` means that
    layer 2 does not say, 0.0 means zero. ``predicted_volatility`` is the standard deviation of
    the daily return, as a fraction. ``timestamp_ns`` is UTC nanoseconds.
    """

    strategy_id: str
    symbol: str
    action: Action
    confidence: float
    risk_score: float
    regime: Regime
    timestamp_ns: int
    expected_return: float | None = None
    predicted_volatility: float | None = None
    signal_strength: float | None = None
    sentiment_score: float | None = None


@dataclass(frozen=True, slots=True)
class CascadeIndicators:
    """What warns of a liquidation cascade; ``None`` means that the feed is missing.

    ``funding_rate`` per 8 hours as a fraction; ``oi_change_pct`` change of open interest as a
    fraction (-0.30 is a fall of 30 %); ``volume_ratio`` volume over its usual level;
    ``onchain_whale_pressure`` in [0, 1]; ``exchange_netflow_zscore`` in standard deviations;
    ``liquidation_volume_24h`` in dollars.
    """

    funding_rate: float | None = None
    oi_change_pct: float | None = None
    volume_ratio: float | None = None
    onchain_whale_pressure: float | None = None
    exchange_netflow_zscore: float | None = None
    liquidation_volume_24h: float | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """One link of the chain: the fraction that came in, the one that went out, and why."""

    name: str
    input: float
    output: float
    reason: str


class Explanation(Protocol):
    """The account of a decision: each stage, and one sentence."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage in order; each starts where the one before it ended."""

    @property
    def reason(self) -> str:
        """One sentence."""


@dataclass(frozen=True, slots=True)
class Written:
    """An :class:`Explanation` that is written out."""

    stages: tuple[Stage, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class ClosedTrade:
    """A trade that was closed.

    ``trade_return`` after costs, as a fraction of what was in it; ``pnl_usd`` the same in dollars; one of the
    two may be ``None``, not known. ``closed_at_ns`` UTC nanoseconds; ``trade_id`` the broker's name for it.
    """

    trade_return: float | None
    pnl_usd: float | None = None
    closed_at_ns: int | None = None
    trade_id: str | None = None


@dataclass(frozen=True, slots=True)
class Arms:
    """Of a decision that is part of an experiment: whose size is held, and what either would hold.

    ``arm`` is ``policy`` or ``kelly``; ``unit`` is what was assigned as one, and ``share`` that of the units that got
    the policy then, ``None`` where it was not assigned. Both sizes are signed dollars after all limits.
    """

    experiment: str
    unit: str
    arm: str
    how: How
    share: float | None
    kelly_usd: float
    policy_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionSizingDecision:
    """How much, and everything that led there.

    ``base_fraction`` in [0, 0.5] is what the Phase 1 chain alone would hold; ``exposure`` is
    direction x base fraction x multiplier, clipped to the cap and the risk limits, as a signed fraction of
    equity; ``position_size_usd`` is exposure x portfolio value: the position to *hold*, not the change.
    ``multiplier_source`` says who gave the multiplier: ``GCP_API``, ``LOCAL_MODEL`` or ``FALLBACK_KELLY``, and
    ``passed_over`` who did not and why. ``cascade_action`` is one of NORMAL, REDUCE_50, REDUCE_75, EXIT.
    ``experiment`` says of a decision in an experiment whose size it is: the exposure is then the arm's, and
    ``multiplier`` what the policy said all the same.

    ``refusal`` is a word for why the engine sized to zero without judging the signal (see
    :mod:`layer3.live.risk`), ``None`` where it judged. ``state`` (16,) float32 is what the policy saw, ``None``
    where it was not built. ``timestamp_ns`` is the engine's clock, ``latency_ms`` how long the decision took.
    The fields from ``decision_id`` on are the engine's; a bare chain leaves them empty.
    """

    strategy_id: str
    symbol: str
    action: Action
    direction: int
    kelly_fraction: float
    conformal_scale: float
    sentiment_multiplier: float
    regime_multiplier: float
    cascade_risk: float
    cascade_action: str
    base_fraction: float
    multiplier: float
    multiplier_source: str
    exposure: float
    position_size_usd: float
    portfolio_value: float
    explanation: Explanation = dataclasses.field(repr=False, compare=False)
    decision_id: str = ""
    timestamp_ns: int = 0
    latency_ms: float = dataclasses.field(default=0.0, compare=False)
    config_hash: str = ""
    refusal: str | None = None
    passed_over: tuple[str, ...] = ()
    multiplier_confidence: float | None = None
    model_version: str | None = None
    experiment: Arms | None = None
    state: NDArray[np.float32] | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage with what came in, what went out, and why; written anew at each reading."""
        return self.explanation.stages

    @property
    def reason(self) -> str:
        """One sentence: how much and by what, or what made it zero."""
        return self.explanation.reason

    @property
    def kelly_position_usd(self) -> float:
        """What Kelly alone would hold, in dollars, signed."""
        return self.direction * self.kelly_fraction * self.portfolio_value + 0.0

    @property
    def cascade_adjusted_usd(self) -> float:
        """What the whole Phase 1 chain would hold, in dollars, signed: the base that the policy multiplies."""
        return self.direction * self.base_fraction * self.portfolio_value + 0.0

    @property
    def diagnostics(self) -> dict[str, Any]:
        """All of the account as plain data, every number finite; ``rl`` is the policy's part of it."""
        state = None if self.state is None else [float(x) for x in self.state]
        return {
            "decision_id": self.decision_id,
            "latency_ms": self.latency_ms,
            "config_hash": self.config_hash,
            "refusal": self.refusal,
            "reason": self.reason,
            "stages": [{f: getattr(stage, f) for f in _STAGE} for stage in self.stages],
            "state": state,
            "multiplier": self.multiplier,
            "source": self.multiplier_source,
            "passed_over": list(self.passed_over),
            "experiment": _plain(self.experiment),
            "rl": {
                "multiplier": self.multiplier,
                "source": self.multiplier_source,
                "confidence": self.multiplier_confidence,
                "model_version": self.model_version,
                "base_position_usd": self.cascade_adjusted_usd,
                "rl_adjusted_usd": self.position_size_usd,
                "state_features": state,
            },
        }

    def to_json(self) -> dict[str, Any]:
        """Every field and the account, as plain data."""
        skipped = ("explanation", "state", "passed_over")
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in skipped}
        return {
            **fields,
            "action": self.action.value,
            "passed_over": list(self.passed_over),
            "experiment": _plain(self.experiment),
            "state": None if self.state is None else [float(x) for x in self.state],
            "reason": self.reason,
            "stages": [{f: getattr(stage, f) for f in _STAGE} for stage in self.stages],
        }


def _plain(arms: Arms | None) -> dict[str, Any] | None:
    return None if arms is None else dataclasses.asdict(arms)


_STAGE: Final = tuple(f.name for f in dataclasses.fields(Stage))
