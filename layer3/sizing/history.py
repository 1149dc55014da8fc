"""The Phase 1 chain run over a whole history, bar by bar and strictly causally.

What training and backtest need to know of Phase 1 does not depend on the policy's multiplier, so
it is computed once, by the very chain that production uses. At bar *t* everything is known up to
the close of *t*; in this order the chain

1. learns the *paper trade* that was left at the open of *t*, if one was: a run of bars with one
   assessed direction, entered at the open after the first of them and left at the open after the
   bar that ended it, less the round trip's cost, whatever any policy did;
2. learns the error of the forecast of a day ago: realised return from close *t - day* to close *t*
   less the signal's expected return (of the price: times the side) scaled to a day;
3. assesses the signal of bar *t*.

:mod:`layer3.sizing.batch` gives the same numbers in a few array operations; this loop is what defines them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3 import contract
from layer3.errors import ConfigurationError, DataError
from layer3.ledger import Costs
from layer3.market.signal_columns import CASCADE_COLUMNS
from layer3.sizing.chain import SizingChain
from layer3.sizing.config import ChainConfig
from layer3.types import Action, CascadeIndicators, Regime, TacticalSignal

__all__ = ["ROUND_TRIP_COST", "SignalHistory", "check_arguments", "replay"]

#: The ledger's commission and slippage, on the way in and on the way out.
ROUND_TRIP_COST: Final = 2.0 * (Costs().commission + Costs().slippage)

_DAY_SECONDS: Final = 86_400.0
_REQUIRED: Final = ("open", "close", "signal_confidence", "signal_risk_score")
_SIGNAL_OPTIONAL: Final = ("expected_return", "predicted_volatility", "sentiment_score")
_COLUMNS: Final = ("timestamp", *_REQUIRED, "signal_action", "regime", *_SIGNAL_OPTIONAL, *CASCADE_COLUMNS)


@dataclass(frozen=True)
class SignalHistory:
    """One number per bar, arrays of shape (n,).

    ``side`` int8, the direction that the chain would take; ``signal_side`` int8, that of the
    signal's action; ``confidence`` float64 in [0, 1]; ``tier`` int8, 1 to 4; ``base_fraction``
    float64 in [0, 0.5]; ``cascade_risk`` float64 in [0, 1].
    """

    side: NDArray[np.int8]
    signal_side: NDArray[np.int8]
    confidence: NDArray[np.float64]
    tier: NDArray[np.int8]
    base_fraction: NDArray[np.float64]
    cascade_risk: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.side)


def replay(
    frame: pd.DataFrame,
    symbol: str,
    interval_seconds: float,
    config: ChainConfig | None = None,
    *,
    round_trip_cost: float = ROUND_TRIP_COST,
    strategy_id: str = "replay",
) -> SignalHistory:
    """Run a fresh chain over ``frame``, one row per bar in the order of time.

    Parameters
    ----------
    frame : ``timestamp`` (datetime64[ns, UTC], the bar's open), ``open``, ``close``,
        ``signal_action``, ``signal_confidence``, ``signal_risk_score``, ``regime``, and the optional
        numbers (column required, NaN where unknown) ``expected_return``, ``predicted_volatility``,
        ``sentiment_score`` and the six of ``CascadeIndicators``
    interval_seconds : length of a bar, in (0, 86400]
    round_trip_cost : taken off each paper trade's return, as a fraction, in [0, 1)

    Returns
    -------
    SignalHistory : row t depends on rows up to t only: ``replay(frame[:k]) == replay(frame)[:k]``

    Raises
    ------
    ConfigurationError : ``interval_seconds`` or ``round_trip_cost`` out of range
    DataError : a column is missing, or a required value cannot be used; row and value are named.
        An optional number out of its range does not raise: the chain sizes that bar to zero.
    """
    config = ChainConfig() if config is None else config
    check_arguments(frame, interval_seconds, round_trip_cost)
    n = len(frame)
    actions = [Action(value) for value in frame["signal_action"]]
    regimes = [Regime(value) for value in frame["regime"]]
    stamps = frame["timestamp"].dt.as_unit("ns").astype("int64").to_numpy().tolist()
    confidence = frame["signal_confidence"].to_numpy(dtype=np.float64)
    risk_score = frame["signal_risk_score"].to_numpy(dtype=np.float64)
    confidences, risks = confidence.tolist(), risk_score.tolist()
    expected, volatility, sentiment = (_optional(frame, name) for name in _SIGNAL_OPTIONAL)
    feeds = list(zip(*(_optional(frame, name) for name in CASCADE_COLUMNS), strict=True))
    opens: list[float] = frame["open"].to_numpy(dtype=np.float64).tolist()
    closes: list[float] = frame["close"].to_numpy(dtype=np.float64).tolist()

    chain = SizingChain(config)
    day = max(1, round(_DAY_SECONDS / interval_seconds))
    to_a_day = 24.0 / config.kelly.horizon_hours
    side = np.zeros(n, dtype=np.int8)
    base_fraction = np.zeros(n)
    cascade_risk = np.zeros(n)
    forecasts: list[float] = []
    direction = held = 0  # assessed at t - 1; held by the paper account up to the open of t
    entry = 0.0
    for t in range(n):
        if direction != held:
            if held != 0:
                chain.record_trade(held * (opens[t] / entry - 1.0) - round_trip_cost)
            entry, held = opens[t], direction
        if t >= day:
            chain.record_residual(forecasts[t - day], closes[t] / closes[t - day] - 1.0)
        action = actions[t]
        hoped = expected[t]
        signal = TacticalSignal(
            strategy_id,
            symbol,
            action,
            confidences[t],
            risks[t],
            regimes[t],
            stamps[t],
            hoped,
            volatility[t],
            None,
            sentiment[t],
        )
        assessment = chain.assess(signal, CascadeIndicators(*feeds[t]))
        forecasts.append(action.side * (config.kelly.prior_mean_return if hoped is None else hoped) * to_a_day)
        direction = assessment.direction
        side[t] = direction
        base_fraction[t] = assessment.base_fraction
        cascade_risk[t] = assessment.cascade_risk
    return SignalHistory(
        side=side,
        signal_side=np.array([action.side for action in actions], dtype=np.int8),
        confidence=confidence.copy(),
        tier=contract.tier_of(risk_score).astype(np.int8),
        base_fraction=base_fraction,
        cascade_risk=cascade_risk,
    )


def _optional(frame: pd.DataFrame, name: str) -> list[float | None]:
    values: list[float] = frame[name].to_numpy(dtype=np.float64, na_value=np.nan).tolist()
    return [None if value != value else value for value in values]


def check_arguments(frame: pd.DataFrame, interval_seconds: float, round_trip_cost: float) -> None:
    """Raise what :func:`replay` promises at the first argument, column or value that cannot be used."""
    if not 0.0 < interval_seconds <= _DAY_SECONDS:
        raise ConfigurationError(f"interval_seconds is {interval_seconds!r}; it must be a number in (0, 86400]")
    if not 0.0 <= round_trip_cost < 1.0:
        raise ConfigurationError(f"round_trip_cost is {round_trip_cost!r}; it must be a number in [0, 1)")
    missing = [name for name in _COLUMNS if name not in frame.columns]
    if missing:
        raise DataError(f"columns missing from the signal history: {', '.join(missing)}")
    for name, high in zip(_REQUIRED, (np.inf, np.inf, 1.0, 1.0), strict=True):
        values = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
        usable = np.isfinite(values) & (values <= high) & (values > 0.0 if high == np.inf else values >= 0.0)
        if not usable.all():
            wanted = "a finite number above 0" if high == np.inf else "a number in [0, 1]"
            _refuse(name, int(np.argmin(usable)), frame, wanted)
    for name, known in (("signal_action", Action), ("regime", Regime)):
        usable = frame[name].isin(list(known)).to_numpy()
        if not usable.all():
            _refuse(name, int(np.argmin(usable)), frame, f"one of {', '.join(known)}")
    if not isinstance(frame["timestamp"].dtype, pd.DatetimeTZDtype):
        raise DataError(f"column timestamp is {frame['timestamp'].dtype}, expected datetime64[ns, UTC]")


def _refuse(column: str, row: int, frame: pd.DataFrame, wanted: str) -> None:
    raise DataError(f"row {row}, column {column} is {frame[column].iloc[row]!r}, expected {wanted}")
