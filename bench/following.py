"""One task for three engines: hold given shares of equity, traded anew every hour, for a commission.

Ours is asked in three ways: the backtest with one account and everything that a policy would see, and as many
accounts as there are paths, without and with a policy. The peers get the same prices and the same targets.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.calibration.markets import YEAR, Design, make
from layer3.agent.bars import Bars, concatenate, prepare
from layer3.agent.environment import Account, EnvironmentConfig
from layer3.backtest.engine import run
from layer3.backtest.record import POLICY
from layer3.ledger import Costs

__all__ = ["ENGINES", "Followed", "follow", "versions"]

Floats = NDArray[np.float64]
COMMISSION: Final = 0.0015
ENVIRONMENT: Final = EnvironmentConfig(costs=Costs(commission=COMMISSION, slippage=0.0))
_YEARS: Final = 2
#: Hours for which a target stays.
_STAYS: Final = 48
#: So much that whole units of the asset are as good as parts of them, for the peer that knows only whole ones.
_CASH: Final = 1e12


@dataclass(frozen=True)
class Followed:
    """``seconds`` the fastest of a few repeats took, ``bars`` walked in it, and the final ``equity`` over the start
    of each path."""

    seconds: float
    bars: int
    equity: tuple[float, ...]


@dataclass(frozen=True)
class _Task:
    """Paths one after another in ``bars``; ``targets`` (paths, n - 2): the share to hold after each bar."""

    bars: Bars
    paths: int
    targets: Floats

    @property
    def opens(self) -> Floats:
        """(paths, n - 1): what is traded at, and what the last position is marked at."""
        return np.ascontiguousarray(self.bars.open.reshape(self.paths, -1)[:, 1:])


def _task(paths: int) -> _Task:
    made = [
        prepare(make(Design("planted", edge=0.03), _YEARS * YEAR, seed).frame, "SYNTH-USD", 3_600)[0]
        for seed in range(paths)
    ]
    rng = np.random.default_rng(1)
    n = len(made[0])
    # Of either side, within the cap.
    drawn = rng.uniform(-0.4, 0.4, (paths, n // _STAYS + 1))
    targets = np.repeat(drawn, _STAYS, axis=1)[:, :n]
    always = np.ones(paths * n, dtype=np.int8)
    bars = concatenate(made)
    held = targets.ravel()
    bars = replace(bars, direction=np.where(held < 0.0, -always, always), base_fraction=np.abs(held))
    return _Task(bars, paths, np.ascontiguousarray(targets[:, :-2]))


def ours_backtest(task: _Task) -> tuple[float, ...]:
    track = run(task.bars, range(len(task.bars)), {POLICY: lambda *_: 1.0}, ENVIRONMENT)[POLICY]
    return (float(track.equity[-1] / track.equity[0]),)


def ours_accounts(task: _Task) -> tuple[float, ...]:
    n = len(task.bars) // task.paths
    account = Account(task.bars, task.paths, ENVIRONMENT)
    at, one = np.arange(task.paths) * n, np.ones(task.paths)
    for _ in range(n - 2):
        account.trade(at, account.target(at, one))
        at += 1
    return tuple((account.ledger.equity(account.open[at + 1]) / ENVIRONMENT.capital).tolist())


def vectorbt(task: _Task) -> tuple[float, ...]:
    import vectorbt as vbt

    opens = task.opens.T
    size = np.vstack([task.targets.T, np.full(task.paths, np.nan)])
    portfolio = vbt.Portfolio.from_orders(
        opens, size=size, size_type="targetpercent", direction="both", fees=COMMISSION, init_cash=_CASH, freq="1h"
    )
    return tuple((np.atleast_1d(np.asarray(portfolio.final_value())) / _CASH).tolist())


def backtesting(task: _Task) -> tuple[float, ...]:
    import backtesting as peer

    targets = task.targets[0]

    class Follow(peer.Strategy):  # type: ignore[misc, name-defined]
        def init(self) -> None:
            pass

        def next(self) -> None:
            at = len(self.data) - 1
            if at < len(targets):
                wanted = int(targets[at] * self.equity / self.data.Close[-1]) - self.position.size
                if wanted > 0:
                    self.buy(size=wanted)
                elif wanted < 0:
                    self.sell(size=-wanted)

    # A bar whose close is the next open: what is decided there is filled at that price, as in ours.
    opens = task.opens[0]
    frame = pd.DataFrame({"Open": np.append(opens[0], opens[:-1]), "Close": opens})
    frame["High"], frame["Low"] = frame.max(axis=1), frame.min(axis=1)
    frame.index = pd.date_range("2000-01-01", periods=len(frame), freq="h")
    with warnings.catch_warnings():
        # It advises on units of an asset that is dear, and closes what is open at the end without being asked.
        warnings.simplefilter("ignore")
        result = peer.Backtest(frame, Follow, cash=_CASH, commission=COMMISSION, exclusive_orders=False).run()
    return (float(result["_equity_curve"]["Equity"].iloc[-1]) / _CASH,)


ENGINES: Final[dict[str, Callable[[_Task], tuple[float, ...]]]] = {
    "ours, the backtest": ours_backtest,
    "ours, accounts side by side": ours_accounts,
    "vectorbt": vectorbt,
    "backtesting.py": backtesting,
}


def follow(engine: str, paths: int, repeats: int = 3) -> Followed:
    """Have ``engine`` follow the targets on so many ``paths`` of two years, warmed up first."""
    task, work = _task(paths), ENGINES[engine]
    if engine == "vectorbt":
        # Compiled at the first call.
        vectorbt(_task(1) if paths == 1 else task)
    seconds, equity = [], ()
    for _ in range(repeats):
        started = time.perf_counter()
        equity = work(task)
        seconds.append(time.perf_counter() - started)
    return Followed(min(seconds), task.targets.size, equity)


def versions() -> dict[str, Any]:
    """Of the peers that are installed."""
    from importlib import metadata

    return {name: metadata.version(name) for name in ("backtesting", "vectorbt")}
