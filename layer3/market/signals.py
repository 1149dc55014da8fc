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

from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3.market.candles import CANDLE_COLUMNS, interval_of
from layer3.market.features import bars_of, daily_volatility
from layer3.market.signal_columns import CASCADE_COLUMNS, TIER_RISK
from layer3.types import Action, Regime

__all__ = ["BASELINE", "CANONICAL_COLUMNS", "FROM_FILE", "WARM_UP_HOURS", "Signals", "derived_columns", "with_signals"]

Floats = NDArray[np.float64]

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
    baseline = _baseline(frame) if derived else pd.DataFrame()
    columns = {name: frame[name] for name in CANDLE_COLUMNS}
    for name in CANONICAL_COLUMNS:
        if name in frame.columns:
            columns[name] = frame[name]
        elif name == "signal_risk_score" and "signal_tier" in frame.columns:
            tier = frame["signal_tier"].to_numpy(dtype=np.int64)
            columns[name] = pd.Series(TIER_RISK[tier - 1])
        elif name in derived:
            columns[name] = baseline[name]
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


def _baseline(frame: pd.DataFrame) -> pd.DataFrame:
    interval = interval_of(frame)
    close = frame["close"]
    log_close = np.log(close)
    known = np.arange(len(frame)) >= bars_of(WARM_UP_HOURS, interval)

    # A market that stands still has no volatility to measure by: no score, rather than an infinite one.
    usual = _rolling_volatility(log_close, _WEEK_HOURS, interval)
    reference = _rolling_volatility(log_close, _REFERENCE_HOURS, interval)
    recent = pd.Series(daily_volatility(close.to_numpy(), interval), index=frame.index)
    recent = recent.where(np.arange(len(frame)) >= max(2, bars_of(24, interval)))

    short, long = (_standard_move(log_close, usual, hours, interval) for hours in _MOMENTUM_HOURS)
    momentum = (short + long) / 2.0
    mean = log_close.rolling(bars_of(_REVERSION_HOURS, interval)).mean()
    stretch = (log_close - mean) / (usual * float(np.sqrt(_REVERSION_HOURS / 24)))

    action = _actions(momentum, stretch, known)
    active = (action != Action.HOLD).to_numpy(dtype=bool)
    strength = np.tanh(momentum.abs().fillna(0.0) / 2.0)
    confidence = pd.Series(np.where(active, 0.5 + 0.4 * strength, 0.5), index=frame.index).where(known, 0.0)
    claim = (_CLAIM * strength * usual * float(np.sqrt(_HORIZON_DAYS))).clip(upper=_LARGEST_CLAIM)
    expected = claim.where(active, 0.0).where(known)

    day = _standard_move(log_close, reference, 24, interval)
    trend = _standard_move(log_close, usual, _WEEK_HOURS, interval)
    rank = recent.rolling(bars_of(_RANK_HOURS, interval), min_periods=bars_of(_WEEK_HOURS, interval))
    usual_volume = frame["volume"].shift(1).rolling(bars_of(_WEEK_HOURS, interval), min_periods=bars_of(24, interval))
    level = usual_volume.mean()
    return pd.DataFrame(
        {
            "signal_action": action,
            "signal_confidence": confidence,
            "signal_risk_score": rank.rank(pct=True).fillna(0.5),
            "regime": _regimes(recent / reference, day, trend, known),
            "expected_return": expected,
            "predicted_volatility": recent.where(recent > 0.0),
            "volume_ratio": frame["volume"] / level.where(level > 0.0),
        }
    )


def _rolling_volatility(log_close: pd.Series, hours: int, interval: int) -> pd.Series:
    """Daily standard deviation over a time span; NaN before a day has passed, or where nothing moved."""
    window = max(2, bars_of(hours, interval))
    spread = log_close.diff().rolling(window, min_periods=max(2, bars_of(24, interval))).std()
    return spread.where(spread > 0.0) * float(np.sqrt(86_400 / interval))


def _standard_move(log_close: pd.Series, volatility: pd.Series, hours: int, interval: int) -> pd.Series:
    """Log return over a time span, in standard deviations of such a span."""
    return log_close.diff(bars_of(hours, interval)) / (volatility * float(np.sqrt(hours / 24)))


def _latch(enter: pd.Series, leave: pd.Series) -> NDArray[np.bool_]:
    """True from where ``enter`` holds until ``leave`` does; both shape (n,), never true together."""
    state = pd.Series(np.where(enter, 1.0, np.where(leave, 0.0, np.nan))).ffill().fillna(0.0)
    return np.asarray(state.to_numpy() > 0.5)


def _actions(momentum: pd.Series, stretch: pd.Series, known: NDArray[np.bool_]) -> pd.Series:
    action = np.full(len(momentum), str(Action.HOLD), dtype=object)
    for sign, plain, strong in ((1.0, Action.BUY, Action.STRONG_BUY), (-1.0, Action.SELL, Action.STRONG_SELL)):
        pull, away = sign * momentum, sign * stretch
        inside = known & _latch(
            (pull > 0.0) & (away < _ENTER_STRETCH) & known, (away > _LEAVE_STRETCH) | (pull < _LEAVE_MOMENTUM)
        )
        action[inside] = str(plain)
        action[inside & (pull > _STRONG).to_numpy()] = str(strong)
    return pd.Series(action, index=momentum.index, dtype="str")


def _regimes(turbulence: pd.Series, day: pd.Series, trend: pd.Series, known: NDArray[np.bool_]) -> pd.Series:
    regime = np.select(
        [
            ~known,
            (turbulence > _CRISIS) & (day < _CRISIS_FALL),
            turbulence > _TURBULENT,
            trend > _TREND,
            trend < -_TREND,
        ],
        [
            str(Regime.RANGING),
            str(Regime.CRISIS),
            str(Regime.HIGH_VOLATILITY),
            str(Regime.TRENDING_UP),
            str(Regime.TRENDING_DOWN),
        ],
        default=str(Regime.RANGING),
    )
    return pd.Series(regime, index=trend.index, dtype="str")
