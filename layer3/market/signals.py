"""Tactical signals for every bar: the file's own columns, or a documented baseline.

The baseline stands in for layer 2 where a file has no signals. It is plain on purpose and claims
no edge: momentum picks the side, mean reversion the moment. Everything is in units of the market's
own volatility, and row *t* depends on bars up to *t* only.

    momentum = mean over 7 d and 30 d of  log(close / close before) / (sd * sqrt(days))
    stretch  = (log close - its 48 h mean) / (sd * sqrt(2 days))

A long is entered where momentum is above 0 and the price is stretched below -0.5, and left where
it has come back above +0.1 or momentum has fallen below -0.5; a short is its mirror. Trades that
end at the mean win about as often as they lose, so that the Kelly posterior neither dies nor
explodes; on the real candles that this form was tried on they earn nothing after costs. STRONG_
is a side with |momentum| above 1. Confidence and expected return grow with |momentum|. The risk
score is the rank of the two-day volatility among those of the past 90 days. The regime looks at
the two-day volatility over that of the past 30 days, and at the moves of the past day (crisis)
and week (trend).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3.market.candles import CANDLE_COLUMNS, interval_of
from layer3.market.features import bars_of, daily_volatility
from layer3.market.signal_columns import CASCADE_COLUMNS, TIER_RISK
from layer3.types import Action, Regime

__all__ = ["BASELINE", "CANONICAL_COLUMNS", "FROM_FILE", "WARM_UP_HOURS", "Signals", "derived_columns", "with_signals"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

FROM_FILE: Final = "columns of the file"
BASELINE: Final = "baseline momentum and mean reversion"
#: The signal's columns in every frame that comes out.
CANONICAL_COLUMNS: Final[tuple[str, ...]] = (
    "signal_action",
    "signal_confidence",
    "signal_risk_score",
    "regime",
    "expected_return",
    "predicted_volatility",
    *CASCADE_COLUMNS,
    "sentiment_score",
)
#: History behind the baseline's first signal; before it HOLD with confidence 0.
WARM_UP_HOURS: Final = 30 * 24

_MOMENTUM_HOURS: Final = (7 * 24, WARM_UP_HOURS)
_REVERSION_HOURS: Final = 48
_WEEK_HOURS: Final = 7 * 24
_REFERENCE_HOURS: Final = 30 * 24
_RANK_HOURS: Final = 90 * 24
_ENTER_STRETCH, _LEAVE_STRETCH = -0.5, 0.1
_LEAVE_MOMENTUM: Final = -0.5
_STRONG: Final = 1.0
#: Share of a month's standard deviation that a signal of full strength claims to earn; unproven.
_CLAIM: Final = 0.5
_LARGEST_CLAIM: Final = 0.10
_HORIZON_DAYS: Final = 30
_TREND: Final = 1.0
#: Two-day volatility over that of 30 days (it can reach the square root of 15): turbulent, and
#: crisis together with a fall of 2 standard deviations within a day.
_TURBULENT: Final = 1.5
_CRISIS: Final = 2.0
_CRISIS_FALL: Final = -2.0
_PLACE: Final = {action: number for number, action in enumerate(Action)}


class Signals(NamedTuple):
    """Candles with a signal at every bar, and where the signals came from (FROM_FILE or BASELINE).

    ``frame`` has the candle columns and CANONICAL_COLUMNS: ``signal_action`` and ``regime`` are
    values of :class:`layer3.types.Action` and :class:`layer3.types.Regime` as text, all others
    float64. NaN in ``expected_return``, ``predicted_volatility``, ``sentiment_score`` or a
    cascade column means that it is not known.
    """

    frame: pd.DataFrame
    source: str


def with_signals(frame: pd.DataFrame) -> Signals:
    """Give every bar of checked candles (:func:`layer3.market.candles.check`) its signal.

    A file with ``signal_action`` and ``signal_confidence`` is followed. What it leaves out of
    risk and regime comes from the baseline; what it leaves out of the expected return, the
    predicted volatility, sentiment and the feeds stays NaN, except ``volume_ratio``, which the
    candles themselves tell. Without the two columns action, confidence and expected return are
    the baseline's, and the file's other columns are still followed where there are any.
    """
    derived = derived_columns(frame)
    baseline = _baseline(frame) if derived else {}
    columns = {name: frame[name] for name in CANDLE_COLUMNS}
    for name in CANONICAL_COLUMNS:
        if name in frame.columns:
            columns[name] = frame[name]
        elif name == "signal_risk_score" and "signal_tier" in frame.columns:
            tier = frame["signal_tier"].to_numpy(dtype=np.int64)
            columns[name] = pd.Series(TIER_RISK[tier - 1])
        elif name in derived:
            columns[name] = pd.Series(baseline[name], index=frame.index)
        else:
            columns[name] = pd.Series(np.full(len(frame), np.nan))
    return Signals(pd.DataFrame(columns), FROM_FILE if _from_file(frame) else BASELINE)


def derived_columns(frame: pd.DataFrame) -> frozenset[str]:
    """The columns that :func:`with_signals` computes from the candles, as the file does not bring them."""
    derived = {"signal_risk_score", "regime", "volume_ratio"}
    if not _from_file(frame):
        derived |= {"signal_action", "signal_confidence", "expected_return", "predicted_volatility"}
    if "signal_tier" in frame.columns:
        derived.discard("signal_risk_score")
    return frozenset(derived.difference(frame.columns))


def _from_file(frame: pd.DataFrame) -> bool:
    return "signal_action" in frame.columns and "signal_confidence" in frame.columns


def _baseline(frame: pd.DataFrame) -> dict[str, Any]:
    """The derived columns by name, each (n,): float64, or text as pandas keeps it."""
    interval = interval_of(frame)
    close, volume = (frame[name].to_numpy(dtype=np.float64) for name in ("close", "volume"))
    log_close, bar = np.log(close), np.arange(len(frame))
    known: Mask = bar >= bars_of(WARM_UP_HOURS, interval)

    # A market that stands still has no volatility to measure by: no score, rather than an infinite one.
    usual = _rolling_volatility(log_close, _WEEK_HOURS, interval)
    reference = _rolling_volatility(log_close, _REFERENCE_HOURS, interval)
    recent = np.where(bar >= max(2, bars_of(24, interval)), daily_volatility(close, interval), np.nan)

    short, long = (_standard_move(log_close, usual, hours, interval) for hours in _MOMENTUM_HOURS)
    momentum = (short + long) / 2.0
    mean = pd.Series(log_close).rolling(bars_of(_REVERSION_HOURS, interval)).mean().to_numpy()
    stretch = (log_close - mean) / (usual * float(np.sqrt(_REVERSION_HOURS / 24)))

    action = _actions(momentum, stretch, known)
    active = action != _PLACE[Action.HOLD]
    strength = np.tanh(np.where(np.isnan(momentum), 0.0, np.abs(momentum)) / 2.0)
    confidence = np.where(known, np.where(active, 0.5 + 0.4 * strength, 0.5), 0.0)
    claim = np.minimum(_CLAIM * strength * usual * float(np.sqrt(_HORIZON_DAYS)), _LARGEST_CLAIM)
    expected = np.where(known, np.where(active, claim, 0.0), np.nan)

    day = _standard_move(log_close, reference, 24, interval)
    trend = _standard_move(log_close, usual, _WEEK_HOURS, interval)
    past = pd.Series(recent).rolling(bars_of(_RANK_HOURS, interval), min_periods=bars_of(_WEEK_HOURS, interval))
    before = pd.Series(volume).shift(1).rolling(bars_of(_WEEK_HOURS, interval), min_periods=bars_of(24, interval))
    level = before.mean().to_numpy()
    return {
        "signal_action": _text(tuple(Action), action),
        "signal_confidence": confidence,
        "signal_risk_score": past.rank(pct=True).fillna(0.5).to_numpy(),
        "regime": _text(tuple(Regime), _regimes(recent / reference, day, trend, known)),
        "expected_return": expected,
        "predicted_volatility": np.where(recent > 0.0, recent, np.nan),
        "volume_ratio": volume / np.where(level > 0.0, level, np.nan),
    }


def _rolling_volatility(log_close: Floats, hours: int, interval: int) -> Floats:
    """Daily standard deviation over a time span; NaN before a day has passed, or where nothing moved."""
    window = max(2, bars_of(hours, interval))
    changes = pd.Series(log_close).diff().rolling(window, min_periods=max(2, bars_of(24, interval)))
    spread = changes.std().to_numpy()
    return np.where(spread > 0.0, spread, np.nan) * float(np.sqrt(86_400 / interval))


def _standard_move(log_close: Floats, volatility: Floats, hours: int, interval: int) -> Floats:
    """Log return over a time span, in standard deviations of such a span."""
    bars = bars_of(hours, interval)
    move = np.full(len(log_close), np.nan)
    move[bars:] = log_close[bars:] - log_close[:-bars]
    standard: Floats = move / (volatility * float(np.sqrt(hours / 24)))
    return standard


def _latch(enter: Mask, leave: Mask) -> Mask:
    """True from where ``enter`` holds until ``leave`` does; both shape (n,), never true together."""
    latest = np.maximum.accumulate(np.where(enter | leave, np.arange(len(enter)), -1))
    return np.asarray((latest >= 0) & enter[latest])


def _actions(momentum: Floats, stretch: Floats, known: Mask) -> NDArray[np.intp]:
    """Which of ``Action`` each bar says, (n,)."""
    action = np.full(len(momentum), _PLACE[Action.HOLD], dtype=np.intp)
    for sign, plain, strong in ((1.0, Action.BUY, Action.STRONG_BUY), (-1.0, Action.SELL, Action.STRONG_SELL)):
        pull, away = sign * momentum, sign * stretch
        inside = known & _latch(
            (pull > 0.0) & (away < _ENTER_STRETCH) & known, (away > _LEAVE_STRETCH) | (pull < _LEAVE_MOMENTUM)
        )
        action[inside] = _PLACE[plain]
        action[inside & (pull > _STRONG)] = _PLACE[strong]
    return action


def _regimes(turbulence: Floats, day: Floats, trend: Floats, known: Mask) -> NDArray[np.intp]:
    """Which of ``Regime`` each bar is in, (n,)."""
    place = {regime: number for number, regime in enumerate(Regime)}
    return np.select(
        [
            ~known,
            (turbulence > _CRISIS) & (day < _CRISIS_FALL),
            turbulence > _TURBULENT,
            trend > _TREND,
            trend < -_TREND,
        ],
        [
            place[Regime.RANGING],
            place[Regime.CRISIS],
            place[Regime.HIGH_VOLATILITY],
            place[Regime.TRENDING_UP],
            place[Regime.TRENDING_DOWN],
        ],
        default=place[Regime.RANGING],
    )


def _text(names: Sequence[str], places: NDArray[np.intp]) -> Any:
    """The names at ``places``, without a Python string for every bar."""
    return pd.array([str(name) for name in names], dtype="str").take(places)
