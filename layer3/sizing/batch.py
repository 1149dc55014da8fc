"""The chain over a whole history in a few array operations: :func:`layer3.sizing.history.replay`, bit for bit.

The chain's direction depends on the signal alone, never on what was learnt, and so does everything but
two things: the Kelly posterior, whose paper trades follow from the directions and the opens, and the
conformal scale, whose residuals follow from the forecasts and the closes. Hence two steps: :func:`assess`
once for the signals, :func:`size` for each price path on which they are traded.

Every number comes of the same operations in the same order as in the chain, so that nothing is rounded
otherwise. The loop over the chain itself stays the definition; the tests hold this one to it.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3 import contract
from layer3.market.signal_columns import CASCADE_COLUMNS
from layer3.sizing.config import CascadeConfig, ChainConfig, ComponentConfig, ConformalConfig, KellyConfig
from layer3.sizing.history import ROUND_TRIP_COST, SignalHistory, check_arguments
from layer3.sizing.validation import CASCADE_RULES, SIGNAL_RULES, Rule
from layer3.types import Action, Regime

__all__ = ["Assessed", "assess", "join", "replay_at_once", "size"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_DAY_SECONDS: Final = 86_400.0
_OPTIONAL: Final = ("expected_return", "predicted_volatility", "sentiment_score")


@dataclass(frozen=True)
class Assessed:
    """What the chain makes of n signals before it has seen a price, arrays (n,).

    ``signal_side`` and ``direction`` int8, the signal's side and the chain's; ``usable`` whether signal and
    feeds could be used; ``confidence`` and ``cascade_risk`` in [0, 1]; ``tier`` int8, 1 to 4; ``edge`` and
    ``variance`` over Kelly's horizon; ``risk_factor``, ``mood``, ``cascade_factor``: the stages' factors;
    ``regime_factor``: the observed regime's, before any hysteresis; ``forecast``: of the price, over a day.
    """

    signal_side: NDArray[np.int8]
    direction: NDArray[np.int8]
    usable: Mask
    confidence: Floats
    tier: NDArray[np.int8]
    edge: Floats
    variance: Floats
    risk_factor: Floats
    mood: Floats
    regime_factor: Floats
    cascade_risk: Floats
    cascade_factor: Floats
    forecast: Floats


def replay_at_once(
    frame: pd.DataFrame,
    interval_seconds: float,
    config: ChainConfig | None = None,
    *,
    round_trip_cost: float = ROUND_TRIP_COST,
) -> SignalHistory:
    """What :func:`layer3.sizing.history.replay` gives for the same arguments, with the same refusals."""
    check_arguments(frame, interval_seconds, round_trip_cost)
    config = ChainConfig() if config is None else config
    opens, closes = (frame[name].to_numpy(dtype=np.float64) for name in ("open", "close"))
    return size(assess(frame, config), opens, closes, interval_seconds, config, round_trip_cost=round_trip_cost)


def assess(frame: pd.DataFrame, config: ChainConfig) -> Assessed:
    """Everything about the signals of ``frame`` that no price can change.

    ``frame`` has the columns that :func:`layer3.sizing.history.replay` wants, checked, but for the prices.
    """
    numbers = {name: frame[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in (*_OPTIONAL, *CASCADE_COLUMNS)}
    confidence, risk_score = (
        frame[name].to_numpy(dtype=np.float64) for name in ("signal_confidence", "signal_risk_score")
    )
    numbers["timestamp_ns"] = frame["timestamp"].dt.as_unit("ns").astype("int64").to_numpy().astype(np.float64)
    codes, actions = pd.factorize(frame["signal_action"])
    side = np.array([Action(action).side for action in actions], dtype=np.int8)[codes]
    seen, regimes = pd.factorize(frame["regime"])
    factors = np.array([float(getattr(config.regime, Regime(regime).value)) for regime in regimes])
    feeds_usable = _usable(numbers, CASCADE_RULES)
    usable = feeds_usable & _usable(numbers, SIGNAL_RULES)
    # What is out of range must not reach the formulas; what is said of such a bar does not depend on it.
    hoped, volatility, sentiment = (np.where(usable, numbers[name], np.nan) for name in _OPTIONAL)
    feeds = {name: np.where(feeds_usable, numbers[name], np.nan) for name in CASCADE_COLUMNS}

    tradeable = usable if config.allow_shorts else usable & (side > 0)
    direction = np.where(tradeable, side, 0).astype(np.int8)
    edge, variance = _edge_and_variance(config.kelly, confidence, hoped, volatility)
    risk = np.where(feeds_usable, _cascade_risk(config.cascade, feeds), 1.0)
    raw = numbers["expected_return"]
    said: Floats = np.where(np.isnan(raw), config.kelly.prior_mean_return, raw)
    with np.errstate(invalid="ignore", over="ignore"):
        forecast = side.astype(np.float64) * said * (24.0 / config.kelly.horizon_hours)
    return Assessed(
        signal_side=side,
        direction=direction,
        usable=usable,
        confidence=confidence.copy(),
        tier=contract.tier_of(risk_score).astype(np.int8),
        edge=edge,
        variance=variance,
        risk_factor=1.0 - config.kelly.risk_weight * risk_score,
        mood=_moods(config, sentiment, direction),
        regime_factor=factors[seen],
        cascade_risk=risk,
        cascade_factor=_cascade_factor(config.cascade, risk),
        forecast=forecast,
    )


def join(parts: Sequence[Assessed]) -> Assessed:
    """Signals of one history that were assessed in pieces, in the order of time."""
    return Assessed(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Assessed)}
    )


def size(
    assessed: Assessed,
    opens: Floats,
    closes: Floats,
    interval_seconds: float,
    config: ChainConfig,
    *,
    round_trip_cost: float = ROUND_TRIP_COST,
    start: int = 0,
) -> SignalHistory:
    """Trade the signals on one price path: the history's rows from ``start`` on.

    ``opens`` and ``closes`` (n,), finite and above 0, begin with the first bar: what was learnt then counts.
    """
    rows = slice(start, None)
    p = _win_probability(config.kelly, assessed.direction, opens, round_trip_cost)[rows]
    scale = _conformal_scale(config.conformal, _residuals(assessed.forecast, closes, interval_seconds), start)
    regime = np.ones(len(opens))
    regime[assessed.usable] = _settled(assessed.regime_factor[assessed.usable], config.regime.confirmations)
    kelly, edge = config.kelly, assessed.edge[rows]
    holds = (assessed.direction[rows] != 0) & (p >= kelly.min_win_probability) & (edge >= kelly.min_edge)
    with np.errstate(over="ignore"):
        uncapped = np.maximum(p * edge / assessed.variance[rows] * kelly.kelly_share, 0.0)
    fraction = np.where(holds, np.minimum(uncapped, kelly.max_fraction) * assessed.risk_factor[rows], 0.0)
    fraction = fraction * scale * assessed.mood[rows] * regime[rows] * assessed.cascade_factor[rows]
    return SignalHistory(
        side=assessed.direction[rows],
        signal_side=assessed.signal_side[rows],
        confidence=assessed.confidence[rows],
        tier=assessed.tier[rows],
        base_fraction=np.minimum(fraction, config.max_exposure),
        cascade_risk=assessed.cascade_risk[rows],
    )


def _usable(numbers: Mapping[str, Floats], rules: Sequence[Rule]) -> Mask:
    """Where every number of ``numbers`` keeps its rule; NaN is what is not given."""
    usable: Mask = np.ones(len(numbers["timestamp_ns"]), dtype=bool)
    for name, low, high, optional in rules:
        if name in numbers:
            values = numbers[name]
            within = (values >= low) & (values <= high)
            usable &= within | np.isnan(values) if optional else within
    return usable


def _edge_and_variance(
    config: KellyConfig, confidence: Floats, hoped: Floats, volatility: Floats
) -> tuple[Floats, Floats]:
    """As :func:`layer3.sizing.kelly.estimate`; NaN is what is not given."""
    signal_weight = config.signal_weight * confidence
    prior_weight = 1.0 - config.signal_weight
    silent = np.isnan(hoped)
    edge = prior_weight * config.prior_mean_return + signal_weight * np.where(silent, config.prior_mean_return, hoped)
    doubt = np.full(len(edge), (prior_weight * config.prior_sd_return) ** 2)
    # The C library's power, which the chain takes squares with, is not always x * x to the last bit.
    doubt[silent] = [x**2 for x in ((prior_weight + signal_weight[silent]) * config.prior_sd_return).tolist()]
    assumed = np.where(np.isnan(volatility), config.default_daily_volatility, volatility)
    assumed = np.maximum(assumed, config.min_daily_volatility)
    return edge, assumed * assumed * (config.horizon_hours / 24.0) + doubt


def _moods(config: ChainConfig, score: Floats, direction: NDArray[np.int8]) -> Floats:
    """As :func:`layer3.sizing.sentiment.multiplier`."""
    sentiment, mood = config.sentiment, np.ones(len(score))
    for outside, neutral, span in (
        (score > sentiment.neutral_high, sentiment.neutral_high, 1.0 - sentiment.neutral_high),
        (score < sentiment.neutral_low, sentiment.neutral_low, sentiment.neutral_low),
    ):
        rows = outside & (direction != 0)
        mood[rows] = 1.0 + sentiment.weight * direction[rows] * ((score[rows] - neutral) / span)
    return mood


def _cascade_risk(config: CascadeConfig, feeds: Mapping[str, Floats]) -> Floats:
    """As :func:`layer3.sizing.cascade.risk`, (n,)."""
    signs = (
        (config.funding, np.abs(feeds["funding_rate"])),
        (config.open_interest, -feeds["oi_change_pct"]),
        (config.volume, feeds["volume_ratio"]),
        (config.whale, feeds["onchain_whale_pressure"]),
        (config.netflow, feeds["exchange_netflow_zscore"]),
    )
    n = len(feeds["funding_rate"])
    weights, risk = np.zeros(n), np.zeros(n)
    for sign, x in signs:
        weights += np.where(np.isnan(x), 0.0, sign.weight)
    for sign, x in signs:
        rows = np.flatnonzero(x > sign.normal)
        risk[rows] += _share(sign, config.saturation, sign.weight / weights[rows], x[rows])
    dollars = feeds["liquidation_volume_24h"]
    rows = np.flatnonzero(dollars > config.liquidation.normal)
    alone = np.where(weights[rows] > 0.0, config.liquidation.weight, 1.0)
    risk[rows] += _share(config.liquidation, config.saturation, alone, dollars[rows])
    return np.minimum(risk, 1.0)


def _share(config: ComponentConfig, saturation: float, weight: Floats, x: Floats) -> Floats:
    """The share of signs ``x`` above normal."""
    with np.errstate(over="ignore"):
        up_to_trigger = weight * 0.5 * (x - config.normal) / (config.trigger - config.normal)
        up_to_extreme = weight * (0.5 + 0.5 * (x - config.trigger) / (config.extreme - config.trigger))
        overshoot = np.minimum((x - config.extreme) / ((saturation - 1.0) * config.extreme), 1.0)
    beyond = weight + (1.0 - weight) * overshoot
    return np.where(x <= config.trigger, up_to_trigger, np.where(x <= config.extreme, up_to_extreme, beyond))


def _cascade_factor(config: CascadeConfig, risk: Floats) -> Floats:
    """As :func:`layer3.sizing.cascade.action`, (n,)."""
    levels = [risk > config.exit_above, risk > config.reduce_75_above, risk > config.reduce_50_above]
    return np.select(levels, [0.0, config.reduce_75_factor, config.reduce_50_factor], 1.0)


def _win_probability(config: KellyConfig, direction: NDArray[np.int8], opens: Floats, round_trip_cost: float) -> Floats:
    """The posterior's mean at every bar, taught by the paper trades that were left up to its open, (n,)."""
    held = np.concatenate(([0, 0], direction))[:-1]  # of bar t - 2, then t - 1, ...: held before and after the open
    changes = np.flatnonzero(held[1:] != held[:-1])
    left, entered = changes[1:], changes[:-1]
    side = held[:-1][left]
    with np.errstate(over="ignore"):
        earned = side * (opens[left] / opens[entered] - 1.0) - round_trip_cost
    taught = (side != 0) & np.isfinite(earned)
    won, lost = np.zeros(len(opens) + 1), np.zeros(len(opens) + 1)
    won[0], lost[0] = config.prior_alpha, config.prior_beta
    won[1 + left] = taught & (earned > 0.0)
    lost[1 + left] = taught & (earned <= 0.0)
    # A running sum adds one after the other, as the posterior does.
    alpha, beta = np.cumsum(won)[1:], np.cumsum(lost)[1:]
    return alpha / (alpha + beta)


def _residuals(forecast: Floats, closes: Floats, interval_seconds: float) -> Floats:
    """|realised - predicted| of the day that ends at each bar, (n,); NaN in the first day."""
    day = max(1, round(_DAY_SECONDS / interval_seconds))
    out = np.full(len(closes), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        out[day:] = np.abs(closes[day:] / closes[:-day] - 1.0 - forecast[:-day])
    return out


def _conformal_scale(config: ConformalConfig, residuals: Floats, start: int) -> Floats:
    """As :class:`layer3.sizing.conformal.ConformalWindow`: the scale at the bars from ``start`` on."""
    known = np.isfinite(residuals)
    count = np.cumsum(known)[start:]
    window = config.window
    # Residuals that have left the window by then need not be ordered.
    gone = max(0, int(count[0]) - window) if len(count) else 0
    latest = residuals[known][gone:]
    scale = np.ones(len(latest) + 1)  # after so many of the latest
    if gone == 0:
        ordered: list[float] = []
        for n, residual in enumerate(latest[: window - 1].tolist(), 1):
            insort(ordered, residual)
            if n >= config.min_residuals:
                scale[n] = 1.0 / (1.0 + ordered[_rank(config, n)])
    if len(latest) >= window:
        # Between two ranks, so that rounding cannot move it; "lower" then is the wanted element itself.
        share = min((_rank(config, window) + 0.5) / max(window - 1, 1), 1.0)
        quantile: Floats = pd.Series(latest).rolling(window).quantile(share, interpolation="lower").to_numpy()
        scale[window:] = 1.0 / (1.0 + quantile[window - 1 :])
    after: Floats = scale[count - gone]
    return after


def _rank(config: ConformalConfig, n: int) -> int:
    """Which of n residuals in the order of size, from 0, is the quantile."""
    return math.ceil((n + 1) * config.coverage - 1e-9) - 1


def _settled(factors: Floats, confirmations: int) -> Floats:
    """As :class:`layer3.sizing.regime.RegimeHysteresis`: the factor that holds at each bar, run by run."""
    starts = np.flatnonzero(np.concatenate(([True], factors[1:] != factors[:-1]))[: len(factors)])
    lengths = np.diff(np.append(starts, len(factors)))
    values: list[float] = []
    counts: list[int] = []
    current = following = math.inf
    pending = 0
    for factor, length in zip(factors[starts].tolist(), lengths.tolist(), strict=True):
        left = length
        while left and factor > current:
            following = min(following, factor)
            waits = min(left, confirmations - pending - 1)
            values.append(current)
            counts.append(waits)
            pending += waits
            left -= waits
            if left:  # the bar that confirms
                current, following, pending = following, math.inf, 0
                values.append(current)
                counts.append(1)
                left -= 1
        if left:
            current, following, pending = factor, math.inf, 0
            values.append(factor)
            counts.append(left)
    return np.repeat(np.array(values), np.array(counts, dtype=np.intp))
