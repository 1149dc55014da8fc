"""Whether anything knew the future: all of it computed again on data that end earlier must come out the same."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3.agent.bars import Bars, prepare
from layer3.agent.environment import Account, EnvironmentConfig
from layer3.agent.policy import Policy
from layer3.backtest.engine import run
from layer3.backtest.record import POLICY, Leak
from layer3.errors import EvaluationError
from layer3.market.signals import CANONICAL_COLUMNS, with_signals
from layer3.sizing.config import ChainConfig

__all__ = ["find_leaks"]

#: A decision is traded at the next open and earns until the one after: a walk's last two bars hold none.
_UNTRADED: Final = 2


def find_leaks(
    candles: pd.DataFrame,
    symbol: str,
    interval_seconds: int,
    chain: ChainConfig | None,
    bars: Bars,
    window: range,
    policy: Policy,
    *,
    cuts: int = 3,
    environment: EnvironmentConfig | None = None,
) -> Leak:
    """Compute everything on ``candles[:cut]`` anew, for ``cuts`` places spread evenly in ``window``.

    ``bars`` is what training and evaluation used, made of all ``candles`` under ``chain``. Compared bit
    for bit (NaN equals NaN) over all bars before the cut: each column of the signals, each column of
    the bars (features and what the sizing chain would hold), the market's part of the states; and over
    the decisions of ``policy`` from the window's first bar on, walked one state at a time as the engine
    does, the states it met and the multipliers it answered. A column that differs is named once, with
    the first bar at which it does, counted from 0.

    Columns of layer 2's signal that came with the candles are taken as they are: whether whoever made
    them saw the future cannot be found out from here.

    Raises
    ------
    EvaluationError : the window is too short to be cut ``cuts`` times
    HimariError : the shortened data, or the policy's answers on them, cannot be used
    """
    places = tuple(window.start + (k + 1) * len(window) // (cuts + 1) for k in range(cuts))
    if not places or places[0] < window.start + _UNTRADED + 1:
        raise EvaluationError(
            f"{len(window):,} bars cannot be cut at {cuts} places: at least {_UNTRADED + 1} bars before each"
        )
    whole = _everything(candles, bars, range(window.start, places[-1]), policy, environment)
    first: dict[str, int] = {}
    for cut in places:
        shorter = candles.iloc[:cut]
        again, _ = prepare(shorter, symbol, interval_seconds, chain)
        part = _everything(shorter, again, range(window.start, cut), policy, environment)
        for name, (values, start, missing) in whole.items():
            at = _first_difference(values[: cut - start - missing], part[name].values)
            if at is not None:
                first[name] = min(start + at, first.get(name, cut))
    return Leak(tuple(whole), places, tuple(f"{name} at bar {first[name]:,}" for name in whole if name in first))


class _Column(NamedTuple):
    """Values (n, ...) of bars ``start`` and after, without those of the last ``missing`` ones."""

    values: NDArray[Any]
    start: int = 0
    missing: int = 0


def _everything(
    candles: pd.DataFrame, bars: Bars, window: range, policy: Policy, environment: EnvironmentConfig | None
) -> dict[str, _Column]:
    """All that is computed from ``candles``, and what ``policy`` makes of it, by the names it is reported under."""
    signals = with_signals(candles).frame
    seen = []

    def ask(state: NDArray[np.float32], _: int) -> float:
        seen.append(state)
        return float(policy.act(state)[0])

    track = run(bars, window, {POLICY: ask}, environment)[POLICY]
    walked = window.start, _UNTRADED
    return {
        **{f"signals' {name}": _Column(signals[name].to_numpy()) for name in CANONICAL_COLUMNS},
        **{field.name: _Column(getattr(bars, field.name)) for field in fields(Bars)},
        "market's part of the state": _Column(Account(bars, 1, environment or EnvironmentConfig()).flat_states),
        "state": _Column(np.array(seen), *walked),
        "decision": _Column(track.multiplier, *walked),
    }


def _first_difference(one: NDArray[Any], other: NDArray[Any]) -> int | None:
    """First row at which two arrays (n, ...) are not the same, or at which one of them has ended."""
    n = min(len(one), len(other))
    same = (one[:n] == other[:n]) | ((one[:n] != one[:n]) & (other[:n] != other[:n]))
    rows = np.asarray(same, dtype=bool).reshape(n, -1).all(axis=1)
    if not rows.all():
        return int(np.argmin(rows))
    return None if len(one) == len(other) else n
