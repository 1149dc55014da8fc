"""The held-out period, walked once from its first bar to its last, for every strategy at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from layer3.agent.bars import Bars
from layer3.agent.environment import Account, EnvironmentConfig
from layer3.agent.policy import Policy
from layer3.backtest.metrics import summarise
from layer3.backtest.record import BUY_AND_HOLD, FLAT, KELLY_ONLY, POLICY, Evaluation, Track
from layer3.errors import EvaluationError
from layer3.ledger import Ledger

__all__ = ["MIN_DECISIONS", "Decide", "evaluate", "run", "run_buy_and_hold"]

Floats = NDArray[np.float64]
#: Multiplier for one state (16,) at decision t of the window.
Decide = Callable[[NDArray[np.float32], int], float]

#: Fewest decisions that a backtest is worth anything on: three weeks of hours.
MIN_DECISIONS: Final = 500


def run(
    bars: Bars, window: range, strategies: Mapping[str, Decide], config: EnvironmentConfig | None = None
) -> dict[str, Track]:
    """Walk ``bars[window]`` with one account per strategy; decisions at a close, trades at the next open.

    A window of w bars holds w - 2 decisions: the last one needs two more opens.
    """
    config = config or EnvironmentConfig()
    n, steps = len(strategies), len(window) - 2
    if steps < 1:
        raise EvaluationError(f"{len(window)} bars hold no decision: at least 3 are needed")
    account = Account(bars, n, config)
    equity = np.full((steps + 1, n), config.capital)
    exposure, multiplier = np.zeros((steps, n)), np.zeros((steps, n))
    turnover, cost, funding = (np.zeros((steps, n)) for _ in range(3))
    trades: list[list[float]] = [[] for _ in range(n)]
    deciders = list(strategies.values())
    at = np.empty(n, dtype=np.intp)
    for t, bar in enumerate(range(window.start, window.stop - 2)):
        at.fill(bar)
        states = account.observe(at)
        multiplier[t] = [decide(state, t) for decide, state in zip(deciders, states, strict=True)]
        if not np.isfinite(multiplier[t]).all():
            name = list(strategies)[int(np.argmin(np.isfinite(multiplier[t])))]
            raise EvaluationError(f"{name} answered no finite multiplier at bar {bar}: check the data and the policy")
        exposure[t] = account.target(at, multiplier[t])
        fill, paid, _, _ = account.trade(at, exposure[t])
        turnover[t] = fill.notional / equity[t]
        cost[t] = fill.cost
        if paid is not None:
            funding[t] = paid
        equity[t + 1] = account.ledger.equity(bars.open[bar + 2])
        for row in np.flatnonzero(fill.closed):
            trades[row].append(float(fill.trade_return[row]))
    return {
        name: Track(
            equity[:, i],
            exposure[:, i],
            multiplier[:, i],
            turnover[:, i],
            cost[:, i],
            funding[:, i],
            np.array(trades[i]),
        )
        for i, name in enumerate(strategies)
    }


def run_buy_and_hold(bars: Bars, window: range, config: EnvironmentConfig | None = None) -> Track:
    """All capital into the asset at the first open, held to the end: the asset itself, without funding or cap."""
    config = config or EnvironmentConfig()
    steps = len(window) - 2
    opens = bars.open[window.start + 1 : window.stop]
    ledger = Ledger(1, config.capital, config.costs)
    fill = ledger.rebalance(1.0, opens[0])
    equity = np.concatenate(([config.capital], ledger.cash + ledger.units * opens[1:]))
    turnover, cost = np.zeros(steps), np.zeros(steps)
    turnover[0], cost[0] = fill.notional[0] / config.capital, fill.cost[0]
    return Track(equity, ledger.exposure(opens[:-1]), np.ones(steps), turnover, cost, np.zeros(steps), np.empty(0))


def evaluate(
    bars: Bars, window: range, policy: Policy, info: Mapping[str, Any], config: EnvironmentConfig | None = None
) -> Evaluation:
    """Judge ``policy`` on ``bars[window]`` against Kelly only (multiplier 1), buy and hold, and flat.

    ``info`` is what ingest knows of the data (symbol, source, synthetic, sha256, signals).

    Raises
    ------
    EvaluationError : fewer than ``MIN_DECISIONS`` decisions, or the period overlaps the one that
        the policy was trained on, or its manifest does not say what that was
    """
    config = config or EnvironmentConfig()
    steps = len(window) - 2
    if steps < MIN_DECISIONS:
        raise EvaluationError(
            f"the held-out period has {max(steps, 0)} decisions, at least {MIN_DECISIONS} are needed: supply more data"
        )
    timestamps = bars.timestamp[window.start : window.stop - 2]
    trained = _training_period(policy)
    if np.datetime64(trained["end"][:19]).astype("datetime64[ns]").astype(np.int64) >= timestamps[0]:
        raise EvaluationError(
            f"policy {policy.model_id} was trained on data up to {trained['end']}, the held-out period "
            f"starts at {_iso(timestamps[0])}: what was trained on cannot judge; choose a later period"
        )

    def ask(state: NDArray[np.float32], _: int) -> float:
        return float(policy.act(state)[0])

    tracks = run(bars, window, {POLICY: ask, KELLY_ONLY: lambda *_: 1.0, FLAT: lambda *_: 0.0}, config)
    tracks[BUY_AND_HOLD] = run_buy_and_hold(bars, window, config)
    metrics = {name: summarise(track, bars.interval_seconds) for name, track in tracks.items()}
    at = slice(window.start, window.stop - 2)
    tradeable = bars.base_fraction[at] * bars.direction[at] != 0.0
    chosen = tracks[POLICY].multiplier[tradeable]
    metrics[POLICY]["multiplier_mean"] = float(chosen.mean()) if chosen.size else None
    metrics[POLICY]["multiplier_sd"] = float(chosen.std()) if chosen.size else None
    context = {
        **info,
        "model_id": policy.model_id,
        "policy_sha256": policy.manifest["policy_sha256"],
        "contract": policy.manifest["contract"],
        "seed": policy.manifest["seed"],
        "code_version": policy.manifest["code_version"],
        "training_period": trained,
        "period": {"start": _iso(timestamps[0]), "end": _iso(timestamps[-1])},
        "interval_seconds": bars.interval_seconds,
        "capital": config.capital,
        "costs": {"commission": config.costs.commission, "slippage": config.costs.slippage},
    }
    return Evaluation(timestamps, tracks, metrics, context)


def _training_period(policy: Policy) -> dict[str, str]:
    """``start`` and ``end`` of what ``policy`` was trained on; refuses a manifest that cannot be traced."""
    lacking = {"data", "seed", "code_version"} - set(policy.manifest)
    try:
        period = {name: str(policy.manifest["data"][name]) for name in ("start", "end")}
        for moment in period.values():
            np.datetime64(moment[:19], "s")
    except (KeyError, TypeError, ValueError):
        lacking.add("data")
    if lacking:
        raise EvaluationError(
            f"the manifest of policy {policy.model_id} lacks {', '.join(sorted(lacking))}: what it was trained on is "
            "not known, so nothing can be held out from it; train it again"
        )
    return period


def _iso(timestamp: np.int64) -> str:
    return f"{np.datetime64(int(timestamp), 'ns').astype('datetime64[s]')}+00:00"
