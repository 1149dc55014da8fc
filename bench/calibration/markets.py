"""Markets whose truth is known: without an edge, of several kinds, or with one that only a policy can earn.

A bar's return is ``drift + sigma * shock`` with shocks of mean 0, so that without drift the price is a
martingale. Signals are drawn apart from the shocks. Where an edge is planted, the drift of the next bar is

    drift[t + 1] = edge * sigma[t + 1] * side[t]   while the signal's risk tier is 1 or 2, and minus that in tier 3 or 4

so that following every signal alike, as the chain does alone, earns little, and a multiplier that reads
the tier earns. On the bars that policies learn from the edge is large, so that what they earn afterwards
depends on the edge of the record and hardly on how well they happened to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3 import contract
from layer3.errors import ConfigurationError
from layer3.types import Action, Regime

__all__ = ["KINDS", "LEARNING_EDGE", "YEAR", "Design", "Market", "make"]

Floats = NDArray[np.float64]

YEAR: Final = 8_760
#: Kinds of markets without an edge, and what they are.
KINDS: Final = {
    "random walk": "independent normal returns",
    "GARCH": "GARCH(1,1), Student-t shocks of 4 degrees of freedom",
    "regimes": "calm and rough times, told by the regime column, that say nothing of the direction",
    "permuted": "the bars of a path in random order",
    "trend": "a random walk with a drift: merely being long has a Sharpe ratio of 2",
}
_PRICES: Final = ("open", "high", "low", "close")
_ACTIONS: Final = np.array([Action.SELL, Action.HOLD, Action.BUY, Action.STRONG_SELL, Action.STRONG_BUY], dtype=object)
_SIGMA: Final = 0.01
_SIGNAL_HOURS: Final = 96.0
#: Planted where policies learn: enough that they do, so that the edge of the record alone decides what they earn.
LEARNING_EDGE: Final = 0.15
_TREND_SHARPE: Final = 2.0
#: Of the rough times' sigma over the calm times'; how long each lasts, in hours.
_ROUGH, _CALM_HOURS, _ROUGH_HOURS = 2.5, 400.0, 120.0
#: GARCH: the weights of the last shock and of the last variance.
_ALPHA, _BETA = 0.06, 0.93
#: Largest return of a bar either way, so that no price gets to zero and the cut takes no side.
_LARGEST: Final = 0.4


@dataclass(frozen=True, slots=True)
class Design:
    """How a market is made: its ``kind``, of KINDS or "planted"; whose ``signals`` it has, its own that know
    nothing of the shocks, or those that layer 3's baseline reads from the candles; the planted ``edge`` >= 0."""

    kind: str
    signals: Literal["own", "baseline"] = "own"
    edge: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, "planted"):
            raise ConfigurationError(f"kind of market is {self.kind!r}, expected planted or one of {', '.join(KINDS)}")
        if not 0.0 <= self.edge < 1.0:
            raise ConfigurationError(f"edge is {self.edge}, expected standard deviations of an hour in [0, 1)")

    def __str__(self) -> str:
        return f"planted, edge {self.edge:g}" if self.kind == "planted" else f"{self.kind}, {self.signals} signals"


_HAD_AN_EDGE: Final = Design("planted", edge=0.05)


@dataclass(frozen=True)
class Market:
    """``frame`` of candles and signals; per bar the ``drift`` of its own return and the multiplier of the ``oracle``
    that knows what the tiers mean, each (n,)."""

    frame: pd.DataFrame
    drift: Floats
    oracle: Floats


def make(design: Design, bars: int, seed: int, *, learning: int = 0, path: pd.DataFrame | None = None) -> Market:
    """A market of ``bars`` hours from 2000-01-01 UTC; the same arguments give the same bytes.

    ``learning``: first bars, on which a planted edge is LEARNING_EDGE whatever the design says of those after.
    ``path``: candles for the kind "permuted", without them a simulated path is
    put in random order, one that had an edge before.
    """
    rng = np.random.default_rng([seed, *str(design).encode()])
    rough = _spells(rng, bars) if design.kind == "regimes" else np.zeros(bars, dtype=bool)
    spell, side, risk, confidence = _signals(
        rng, bars, (0.1, 0.2, 0.7) if design.kind == "trend" else (0.45, 0.1, 0.45)
    )
    good = contract.tier_of(risk) <= 2
    drift = np.zeros(bars)
    if design.kind == "permuted":
        candles = _permuted(rng, path if path is not None else make(_HAD_AN_EDGE, bars, seed).frame, bars)
        sigma = np.full(bars, np.diff(np.log(candles["close"])).std())
    else:
        sigma, shock = _shocks(rng, design.kind, rough)
        if design.kind == "planted":
            edge = np.where(np.arange(1, bars) < learning, LEARNING_EDGE, design.edge)
            drift[1:] = edge * sigma[1:] * (np.where(good, 1.0, -1.0) * side)[:-1]
        elif design.kind == "trend":
            drift += _TREND_SHARPE / np.sqrt(YEAR) * sigma
        candles = _candles(rng, np.clip(drift + sigma * shock, -_LARGEST, _LARGEST), sigma)
    if design.signals == "own":
        strong = confidence > 0.85
        action = np.where(side == 0, 1, np.where(strong, np.where(side > 0, 4, 3), side + 1))
        candles |= {
            "signal_action": _ACTIONS[action].astype(str),
            "signal_confidence": confidence,
            "signal_risk_score": risk,
            "expected_return": 0.03 + 0.03 * confidence,
            # What a signal forecasts when it is given stays, or its size would be changed every hour at a cost.
            "predicted_volatility": sigma[np.searchsorted(spell, spell)] * np.sqrt(24.0),
            "volume_ratio": np.ones(bars),
            "regime": np.where(rough, str(Regime.HIGH_VOLATILITY), str(Regime.RANGING)),
        }
    stamps = pd.date_range("2000-01-01", periods=bars, freq="h", tz="UTC", unit="ns")
    return Market(pd.DataFrame({"timestamp": stamps, **candles}), drift, np.where(good, 2.0, 0.0))


def _signals(
    rng: np.random.Generator, n: int, chances: Sequence[float]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
    """Number of each bar's spell, and side, risk score and confidence, which stay for a spell; ``chances`` of SELL,
    HOLD and BUY, none of which comes twice in a row."""
    renewed = rng.random(n) < 1.0 / _SIGNAL_HOURS
    renewed[0] = True
    spell = np.cumsum(renewed) - 1
    k = int(spell[-1]) + 1
    side = rng.choice([-1, 0, 1], k, p=chances)
    for at in range(1, k):
        while side[at] == side[at - 1]:
            side[at] = rng.choice([-1, 0, 1], p=chances)
    return spell, side[spell], rng.uniform(0.0, 0.8, k)[spell], rng.uniform(0.5, 0.95, k)[spell]


def _spells(rng: np.random.Generator, n: int) -> NDArray[np.bool_]:
    """Whether times are rough."""
    calm = rng.exponential(_CALM_HOURS, n // 50 + 2)
    rough = rng.exponential(_ROUGH_HOURS, len(calm))
    edges = np.cumsum(np.column_stack([calm, rough]).ravel())
    return np.asarray(np.searchsorted(edges, np.arange(n), side="right") % 2 == 1)


def _shocks(rng: np.random.Generator, kind: str, rough: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Standard deviation of each bar's return, known before it, and shocks of mean 0 and deviation 1."""
    n = len(rough)
    if kind in ("random walk", "trend"):
        return np.full(n, _SIGMA), rng.standard_normal(n)
    if kind == "regimes":
        return _SIGMA * np.where(rough, _ROUGH, 1.0), rng.standard_normal(n)
    freedom = 4.0 if kind == "GARCH" else 5.0
    shock = rng.standard_t(freedom, n) / np.sqrt(freedom / (freedom - 2.0))
    if kind == "GARCH":
        return _garch(shock), shock
    # A slow and moderate rise and fall, after the first values' effect has died away.
    noise = pd.Series(rng.standard_normal(n + 1_000))
    level = noise.ewm(alpha=0.02, adjust=False).mean().to_numpy()[1_000:] * np.sqrt(1.98 / 0.02)
    return _SIGMA * np.exp(0.2 * level), shock


def _garch(shock: Floats) -> Floats:
    """Bollerslev (1986): the variance is a constant, a share of the last squared return, and one of itself."""
    out = np.empty(len(shock))
    variance = usual = _SIGMA**2
    for t, drawn in enumerate(shock.tolist()):
        out[t] = variance
        variance = (1.0 - _ALPHA - _BETA) * usual + variance * (_BETA + _ALPHA * drawn**2)
    # An hour of 6 % is rough enough.
    return np.asarray(np.minimum(np.sqrt(out), 0.06))


def _candles(rng: np.random.Generator, returns: Floats, sigma: Floats) -> dict[str, Any]:
    """Bars that open where the last one closed, from returns (n,)."""
    n = len(returns)
    close = 30_000.0 * np.cumprod(1.0 + returns)
    opened = np.concatenate(([30_000.0], close[:-1]))
    wick = 0.5 * sigma[:, None] * np.abs(rng.standard_normal((n, 2)))
    return {
        "open": opened,
        "high": np.maximum(opened, close) * np.exp(wick[:, 0]),
        "low": np.minimum(opened, close) * np.exp(-wick[:, 1]),
        "close": close,
        "volume": 500.0 * np.exp(0.3 * rng.standard_normal(n)),
    }


def _permuted(rng: np.random.Generator, path: pd.DataFrame, n: int) -> dict[str, Any]:
    """``n`` bars of ``path`` in random order, each with its own open, high, low and volume; of a path that has fewer,
    one random order after another."""
    have = len(path) - 1
    order = np.concatenate([rng.permutation(have) for _ in range(-(-n // have))])[:n] + 1
    close = path["close"].to_numpy(np.float64)
    steps = close[order] / close[order - 1]
    before = np.concatenate(([close[0]], close[0] * np.cumprod(steps)[:-1]))
    columns = {name: path[name].to_numpy(np.float64)[order] / close[order - 1] * before for name in _PRICES}
    return columns | {"volume": path["volume"].to_numpy(np.float64)[order]}
