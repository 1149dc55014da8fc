"""A synthetic market with a known, adjustable edge; everything it makes is labelled synthetic.

Hourly candles follow a five-state regime chain that switches volatility, with Student-t shocks.
Layer 2's signals are drawn before the return they speak of, and the return's drift is

    drift[t+1] = edge * IC * sigma[t+1] * quality[t] * side[t]

where ``quality`` depends only on what the state shows at *t*: the risk tier (T1, T2 good; T3, T4
misleading), the confidence, and turbulence (signals mislead in high volatility and crisis). So a
policy that reads the state can earn what a constant multiplier cannot. With ``edge = 0`` the
returns are independent of everything that came before: a martingale, on which nothing can be earned.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3 import contract
from layer3.errors import ConfigurationError
from layer3.types import Action, Regime

__all__ = ["PRESETS", "MarketSpec", "load_synthetic", "named", "parse", "quality", "simulate"]

Floats = NDArray[np.float64]

#: Drift of the next return, in its own standard deviations, per unit of quality x side and of edge.
IC: Final = 0.15
_REGIMES: Final = tuple(Regime)
_SIGMA: Final = np.array([0.0042, 0.0045, 0.0032, 0.0085, 0.0150])
_HOURS: Final = np.array([140.0, 140.0, 180.0, 60.0, 16.0])
_NEXT: Final = np.array(
    [
        [0.00, 0.25, 0.50, 0.20, 0.05],
        [0.25, 0.00, 0.45, 0.20, 0.10],
        [0.40, 0.40, 0.00, 0.18, 0.02],
        [0.20, 0.25, 0.40, 0.00, 0.15],
        [0.10, 0.20, 0.20, 0.50, 0.00],
    ]
)
#: Chance of SELL, HOLD, BUY when a new signal is drawn, by regime.
_SIDES: Final = np.array(
    [[0.15, 0.15, 0.70], [0.70, 0.15, 0.15], [0.40, 0.20, 0.40], [0.40, 0.20, 0.40], [0.40, 0.20, 0.40]]
)
_SIGNAL_HOURS: Final = 30.0
_TIER_QUALITY: Final = np.array([1.0, 0.8, -0.3, -0.7])
_TURBULENCE_PENALTY: Final = 0.7
_SHOCK_DF: Final = 5.0


@dataclass(frozen=True, slots=True)
class MarketSpec:
    """What to simulate: ``edge`` (0 = none, 1 = the default), number of hourly ``bars``, ``seed``."""

    edge: float = 1.0
    bars: int = 35_040
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.edge <= 10.0:
            raise ConfigurationError(f"edge is {self.edge}, expected a number in [0, 10]; 0 means no edge")
        if not 2_000 <= self.bars <= 1_000_000:
            raise ConfigurationError(f"bars is {self.bars}, expected 2,000 to 1,000,000 hourly bars")
        if not 0 <= self.seed < 2**32:
            raise ConfigurationError(f"seed is {self.seed}, expected an integer in [0, 2^32)")


#: The market without an edge is one on which the chain goes on trading, so that it is the gate that says no.
PRESETS: Final = {"default": MarketSpec(), "no-edge": MarketSpec(edge=0.0, seed=2)}


def parse(name: str) -> MarketSpec:
    """A preset's name, or settings such as ``edge=0.5,bars=20000,seed=3`` (a preset may come first)."""
    head, *rest = [part.strip() for part in name.split(",")]
    if "=" in head:
        rest, head = [head, *rest], "default"
    if head not in PRESETS:
        raise ConfigurationError(
            f"synthetic market {name!r} is not known: use {', '.join(PRESETS)}, or settings such as edge=0.5,seed=3"
        )
    values = {field.name: getattr(PRESETS[head], field.name) for field in fields(MarketSpec)}
    for part in rest:
        key, _, text = part.partition("=")
        if key not in values:
            raise ConfigurationError(f"synthetic market has no setting {key!r}: there are {', '.join(values)}")
        try:
            values[key] = type(values[key])(text)
        except ValueError as error:
            raise ConfigurationError(f"synthetic market: {key}={text!r} is not a number of the right kind") from error
    return MarketSpec(**values)


def named(data: str, symbol: str) -> MarketSpec:
    """What a data name such as ``synthetic:no-edge`` asks for; ``symbol`` must say that it is synthetic."""
    if not symbol.upper().startswith("SYNTH"):
        raise ConfigurationError(f"symbol {symbol!r} names a real market, the data are synthetic: use SYNTH-USD")
    return parse(data.partition(":")[2])


def load_synthetic(data: str, symbol: str) -> pd.DataFrame:
    """The simulated frame behind a data name (:func:`named`)."""
    return simulate(named(data, symbol))


def quality(risk_score: Floats, confidence: Floats, turbulent: NDArray[np.bool_]) -> Floats:
    """How much a signal is worth, in [-1.4, 1]: the planted rule, for simulator and oracle alike."""
    return np.asarray(
        _TIER_QUALITY[contract.tier_of(risk_score) - 1] * (0.5 + 0.5 * confidence) - _TURBULENCE_PENALTY * turbulent
    )


def simulate(spec: MarketSpec) -> pd.DataFrame:
    """Candles and signals of a synthetic market, ``spec.bars`` rows of hours from 2022-01-01 UTC.

    The same spec gives the same bytes. Columns: timestamp, open, high, low, close, volume, and
    every signal and cascade column that layer 3 knows.
    """
    rng = np.random.default_rng(spec.seed)
    n = spec.bars
    regime = _regimes(rng, n)
    signal = _signals(rng, regime)
    turbulent = regime >= 3
    sigma = _SIGMA[regime] * np.exp(_autoregressive(rng, n, 0.98, 0.15))
    shock = rng.standard_t(_SHOCK_DF, n) / np.sqrt(_SHOCK_DF / (_SHOCK_DF - 2.0))
    worth = quality(signal["signal_risk_score"], signal["signal_confidence"], turbulent) * signal["side"]
    drift = np.zeros(n)
    drift[1:] = spec.edge * IC * worth[:-1]
    # exp(-sigma^2 / 2) makes the price, not its logarithm, the martingale when there is no edge
    # (to second order in sigma: an hour's sigma is about half a percent).
    log_return = sigma * (drift + shock) - 0.5 * sigma**2
    close = 30_000.0 * np.exp(np.cumsum(log_return))
    opened = np.concatenate(([30_000.0], close[:-1]))
    spread = sigma[:, None] * np.abs(rng.standard_normal((n, 2))) * 0.5
    volume_noise = np.exp(_autoregressive(rng, n, 0.9, 0.25))
    volume = 500.0 * volume_noise * (1.0 + np.abs(log_return) / 0.004)
    predicted = _trailing_volatility(log_return) * np.exp(0.05 * rng.standard_normal(n))

    columns: dict[str, object] = {
        "timestamp": pd.date_range("2022-01-01", periods=n, freq="h", tz="UTC", unit="ns"),
        "open": opened,
        "high": np.maximum(opened, close) * np.exp(spread[:, 0]),
        "low": np.minimum(opened, close) * np.exp(-spread[:, 1]),
        "close": close,
        "volume": volume,
        "regime": np.array([str(r) for r in _REGIMES])[regime],
        "predicted_volatility": predicted,
        **{name: values for name, values in signal.items() if name != "side"},
        **_cascade(rng, regime, volume),
    }
    return pd.DataFrame(columns)


def _regimes(rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    out = np.empty(n, dtype=np.int64)
    state, at = 2, 0
    while at < n:
        stay = 1 + int(rng.geometric(1.0 / _HOURS[state]))
        out[at : at + stay] = state
        at += stay
        state = int(rng.choice(5, p=_NEXT[state]))
    return out


def _signals(rng: np.random.Generator, regime: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    n = len(regime)
    renewed = rng.random(n) < 1.0 / _SIGNAL_HOURS
    renewed[0] = True
    episode = np.cumsum(renewed) - 1
    start = np.flatnonzero(renewed)
    k = len(start)
    draw = rng.random(k)
    thresholds = np.cumsum(_SIDES[regime[start]], axis=1)
    side = ((draw > thresholds[:, 0]).astype(np.int64) + (draw > thresholds[:, 1]) - 1)[episode]
    turbulent = regime[start] >= 3
    risk = np.where(turbulent, rng.beta(3.0, 3.0, k), rng.beta(2.0, 3.2, k))[episode]
    confidence = np.clip(rng.uniform(0.5, 0.95, k)[episode] + _autoregressive(rng, n, 0.9, 0.02), 0.05, 0.99)
    claimed = np.clip(0.04 + 0.08 * confidence + 0.01 * rng.standard_normal(k)[episode], 0.0, None)
    strong = confidence > 0.85
    names = np.array([Action.SELL, Action.HOLD, Action.BUY, Action.STRONG_SELL, Action.STRONG_BUY], dtype=object)
    action = np.where(side == 0, 1, np.where(strong, np.where(side > 0, 4, 3), side + 1))
    return {
        "side": side,
        "signal_action": names[action].astype(str),
        "signal_confidence": confidence,
        "signal_risk_score": risk,
        "expected_return": claimed,
        "sentiment_score": np.clip(0.5 + 0.05 * side + _autoregressive(rng, n, 0.95, 0.1), 0.0, 1.0),
    }


def _cascade(rng: np.random.Generator, regime: NDArray[np.int64], volume: Floats) -> dict[str, Floats]:
    n = len(regime)
    crisis, rough = regime == 4, regime == 3
    stress = 0.1 + 0.25 * rough + 0.9 * crisis + _autoregressive(rng, n, 0.9, 0.1)
    usual = pd.Series(volume).rolling(168, min_periods=1).median().to_numpy()
    return {
        "funding_rate": 0.0001 + 0.004 * stress * rng.choice([-1.0, 1.0], n),
        "oi_change_pct": -0.12 * stress + 0.02 * rng.standard_normal(n),
        "volume_ratio": volume / usual * (1.0 + 2.0 * crisis),
        "onchain_whale_pressure": np.clip(0.25 + 0.5 * stress, 0.0, 1.0),
        "exchange_netflow_zscore": 2.0 * stress + 0.5 * rng.standard_normal(n),
    }


def _autoregressive(rng: np.random.Generator, n: int, phi: float, sd: float) -> Floats:
    """A stationary AR(1) of standard deviation ``sd``, as a causal exponential filter of white noise."""
    noise = rng.standard_normal(n) * sd * np.sqrt(1.0 - phi**2)
    noise[0] = rng.standard_normal() * sd
    ewm = pd.Series(noise).ewm(alpha=1.0 - phi, adjust=False).mean().to_numpy() / (1.0 - phi)
    # ewm(adjust=False) starts at the first value itself, not at (1 - phi) times it.
    return np.asarray(ewm - noise[0] * phi ** np.arange(n) * (1.0 / (1.0 - phi) - 1.0))


def _trailing_volatility(log_return: Floats) -> Floats:
    """Layer 2's forecast of the daily volatility, from returns up to t only."""
    variance = pd.Series(log_return**2).ewm(halflife=24.0).mean().to_numpy()
    return np.asarray(np.sqrt(24.0 * variance))
