"""What crosses the boundary of layer 3: signals and indicators in, decisions out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Action", "CascadeIndicators", "PositionSizingDecision", "Regime", "Stage", "TacticalSignal"]


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


@dataclass(frozen=True, slots=True)
class PositionSizingDecision:
    """How much, and everything that led there.

    ``base_fraction`` in [0, 0.5] is what the Phase 1 chain alone would hold; ``exposure`` is
    direction x base fraction x multiplier, clipped to the cap, as a signed fraction of equity;
    ``position_size_usd`` is exposure x portfolio value. ``multiplier_source`` says who gave the
    multiplier. ``cascade_action`` is one of NORMAL, REDUCE_50, REDUCE_75, EXIT.
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
    reason: str
    stages: tuple[Stage, ...]
