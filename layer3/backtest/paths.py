"""The permutation test: the same policy and chain on price paths that hold nothing to be found.

An edge is a relation between what was known and what came after it. On a path of permuted bars
(:mod:`layer3.market.permutation`) there is none, so a strategy that earns as much there as on the real
path has no edge, however good its record looks. The share of paths that do at least as well, the real
one counted among them, is the test's p value (Phipson & Smyth 2010, "Permutation p-values should never
be zero").

Where the file brings layer 2's signals, they stay at their bars, and the null says that they know
nothing of the returns that follow them. What the candles themselves tell, such as the baseline's signals,
is computed anew on each path, by the code that computes it on the real one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3 import contract
from layer3.agent.bars import Bars, concatenate
from layer3.agent.environment import Account, EnvironmentConfig
from layer3.agent.policy import Policy
from layer3.backtest.metrics import periods_per_year, sharpe
from layer3.backtest.record import Permutation
from layer3.errors import EvaluationError
from layer3.market.features import bars_of, market_features
from layer3.market.permutation import permuted
from layer3.market.signals import FROM_FILE, derived_columns, with_signals
from layer3.sizing.batch import Assessed, assess, join, size
from layer3.sizing.config import ChainConfig
from layer3.sizing.history import ROUND_TRIP_COST, check_arguments

__all__ = ["MIN_BLOCKS", "permutation_test", "walk"]

Floats = NDArray[np.float64]

#: Fewest blocks in a window: with less, the real order comes up again too often.
MIN_BLOCKS: Final = 10
#: Real history before the window that the signals of a path are computed with: the 90 days of the risk rank, and a
#: few days for what is ranked. (A baseline side that has been held for more than 70 days would start as HOLD.) What
#: is learnt from trades and forecasts has no such end: it is all carried over.
_LOOK_BACK_HOURS: Final = 100 * 24
#: Logarithms of prices that differ by less are equal.
_ROUNDING: Final = 1e-12
#: States of one batch of the policy's: a product of another shape rounds otherwise.
_ROWS: Final = 16
#: Paths that are walked together: more do not make it faster. Fewer where they would not fit.
_TOGETHER: Final = 13 * _ROWS
_MEMORY_BYTES: Final = 1.2e9
#: Of one path: its bars twice, while all are put together, then states and accounts.
_BYTES_PER_BAR: Final = 320


def permutation_test(
    candles: pd.DataFrame,
    symbol: str,
    interval_seconds: int,
    chain: ChainConfig,
    window: range,
    policy: Policy,
    *,
    kind: Literal["bars", "blocks"],
    real: float,
    seed: int,
    paths: int = 200,
    block_hours: float = 24.0,
    environment: EnvironmentConfig | None = None,
) -> Permutation:
    """Walk ``policy`` over ``paths`` permutations of ``window``, the bars that it was judged on.

    As many paths at a time as fit into about 1 GB: 200 paths of two years of hours.

    Parameters
    ----------
    candles : checked candles (:func:`layer3.market.candles.check`) of ``symbol``, with the file's own columns
    real : the policy's annualised Sharpe ratio on the real path
    seed : path k's order is drawn from (``seed``, k); its value depends on nothing else, neither on how many paths
        there are nor on how many fit into the memory
    block_hours : length of a block of ``kind`` "blocks"

    Raises
    ------
    EvaluationError : the window is too short, its bars are all alike, no path holds a position, ``real`` is no
        number, or the policy answers none
    """
    environment = environment or EnvironmentConfig()
    block = 1 if kind == "bars" else bars_of(block_hours, interval_seconds)
    if not math.isfinite(real):
        raise EvaluationError(f"the real path's Sharpe ratio is {real}: there is nothing to compare permutations with")
    if paths < 1:
        raise EvaluationError(f"a permutation test of {paths} paths says nothing: ask for at least 1")
    _check_window(candles, symbol, window, block)
    market = _Market.of(candles, interval_seconds, chain, window)
    fitting = int(_MEMORY_BYTES // (_BYTES_PER_BAR * len(window)))
    together = max(_ROWS, min(_TOGETHER, fitting // _ROWS * _ROWS))
    values: list[float | None] = []
    for first in range(0, paths, together):
        numbers = range(first, min(first + together, paths))
        bars = concatenate([market.path(block, np.random.default_rng([seed, k])) for k in numbers])
        values += _sharpes(walk(bars, len(numbers), policy, environment), interval_seconds)
    if all(value is None for value in values):
        raise EvaluationError(
            f"no position is held on any of {paths} paths of {symbol}: the chain takes no side there, or the policy "
            "answers 0 throughout"
        )
    numbers_only = tuple(0.0 if value is None else value for value in values)
    return Permutation(
        kind=kind,
        block_bars=block,
        signals="kept" if market.from_file else "recomputed",
        real=real,
        values=numbers_only,
        p=(1 + sum(value >= real for value in numbers_only)) / (1 + paths),
    )


def walk(bars: Bars, paths: int, policy: Policy, config: EnvironmentConfig) -> Floats:
    """Equity (paths, n - 1) of ``policy`` on every path, each begun anew.

    ``bars`` holds ``paths`` histories of n bars one after another. Decisions and trades are those of
    :func:`layer3.backtest.engine.run` on each of them: n - 2 decisions, whose multipliers differ by what matrix
    products of other shapes round (about 1e-6).

    Raises
    ------
    EvaluationError : the policy answered a number that is not finite
    """
    n = len(bars) // paths
    account = Account(bars, paths, config)
    equity = np.empty((n - 1, paths))
    equity[0] = config.capital
    at = np.arange(paths) * n
    multiplier = np.ones(paths)
    seen = np.zeros((-(-paths // _ROWS), _ROWS, contract.STATE_DIM), dtype=np.float32)
    rows = seen.reshape(-1, contract.STATE_DIM)[:paths]
    for t in range(n - 2):
        # Where the chain holds nothing, no answer could change that.
        if account.base[at].any():
            rows[:] = account.observe(at)
            multiplier[:] = policy.act(seen)[0].reshape(-1)[:paths]
            if not np.isfinite(multiplier).all():
                raise EvaluationError(f"the policy answered no finite multiplier at bar {t} of a permuted path")
        account.trade(at, account.target(at, multiplier))
        at += 1
        equity[t + 1] = account.ledger.equity(account.open[at + 1])
    return np.ascontiguousarray(equity.T)


def _sharpes(equity: Floats, interval_seconds: int) -> Iterator[float | None]:
    """Annualised Sharpe ratio of each path's equity (paths, n); ``None`` without spread, or where equity was lost."""
    periods = periods_per_year(interval_seconds)
    for path in equity:
        yield sharpe(path[1:] / path[:-1] - 1.0, periods) if (path > 0.0).all() else None


def _check_window(candles: pd.DataFrame, symbol: str, window: range, block: int) -> None:
    if len(window) < MIN_BLOCKS * block:
        raise EvaluationError(
            f"{len(window):,} bars hold {len(window) // block} blocks of {block:,}, a permutation test needs "
            f"{MIN_BLOCKS}: supply a longer record, or permute shorter blocks"
        )
    if window.stop > len(candles):
        raise EvaluationError(f"the window ends at bar {window.stop:,}, there are {len(candles):,}: give the same bars")
    rows = slice(window.start, window.stop)
    opens, closes = (candles[name].to_numpy(np.float64)[rows] for name in ("open", "close"))
    moves = np.log(closes / opens), np.log(opens[1:] / closes[:-1])
    if all(float(np.ptp(move)) <= _ROUNDING for move in moves):
        raise EvaluationError(
            f"all {len(window):,} bars of {symbol} are alike, the price stands still or moves evenly: in any order "
            "they are the same"
        )


@dataclass(frozen=True)
class _Market:
    """What all paths of one market share."""

    candles: pd.DataFrame
    opens: Floats
    closes: Floats
    timestamp: NDArray[np.int64]
    funding_rate: Floats
    interval_seconds: int
    chain: ChainConfig
    window: range
    assessed: Assessed
    """Up to the window's end, or up to its start where signals are computed anew on each path."""
    from_file: bool
    recomputed: bool
    look_back: int

    @classmethod
    def of(cls, candles: pd.DataFrame, interval_seconds: int, chain: ChainConfig, window: range) -> _Market:
        candles = candles.iloc[: window.stop].reset_index(drop=True)
        signals = with_signals(candles)
        check_arguments(signals.frame, interval_seconds, ROUND_TRIP_COST)
        recomputed = bool(derived_columns(candles))
        known = window.start if recomputed else window.stop
        rows = slice(window.start, window.stop)
        return cls(
            candles=candles,
            opens=candles["open"].to_numpy(np.float64),
            closes=candles["close"].to_numpy(np.float64),
            timestamp=np.asarray(candles["timestamp"].astype("datetime64[ns, UTC]").astype("int64"), np.int64)[rows],
            funding_rate=np.nan_to_num(signals.frame["funding_rate"].to_numpy(np.float64))[rows],
            interval_seconds=interval_seconds,
            chain=chain,
            window=window,
            assessed=assess(signals.frame.iloc[:known], chain),
            from_file=signals.source == FROM_FILE,
            recomputed=recomputed,
            look_back=min(window.start, bars_of(_LOOK_BACK_HOURS, interval_seconds)),
        )

    def path(self, block: int, rng: np.random.Generator) -> Bars:
        """The window's bars on a path in random order."""
        first = self.window.start - self.look_back
        piece = self.candles.iloc[first:].reset_index(drop=True)
        path = permuted(piece, range(self.look_back, len(piece)), block=block, rng=rng)
        opens, closes = (path[name].to_numpy(np.float64) for name in ("open", "close"))
        assessed = self.assessed
        if self.recomputed:
            assessed = join([assessed, assess(with_signals(path).frame.iloc[self.look_back :], self.chain)])
        history = size(
            assessed,
            np.concatenate((self.opens[:first], opens)),
            np.concatenate((self.closes[:first], closes)),
            self.interval_seconds,
            self.chain,
            start=self.window.start,
        )
        features = market_features(closes, self.interval_seconds)
        return Bars(
            timestamp=self.timestamp,
            open=opens[self.look_back :],
            close=closes[self.look_back :],
            signal_side=history.signal_side,
            direction=history.side,
            confidence=history.confidence,
            tier=history.tier,
            base_fraction=history.base_fraction,
            cascade_risk=history.cascade_risk,
            funding_rate=self.funding_rate,
            **{name: values[self.look_back :] for name, values in features._asdict().items()},
        )
