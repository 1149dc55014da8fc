"""The held-out period, walked once from its first bar to its last, for every strategy at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from layer3.agent.bars import Bars
from layer3.agent.environment import Account, EnvironmentConfig
from layer3.agent.policy import Policy
from layer3.backtest.metrics import summarise
from layer3.backtest.record import BUY_AND_HOLD, CHAMPION, FLAT, KELLY_ONLY, POLICY, Evaluation, Evidence, Track
from layer3.errors import EvaluationError
from layer3.ledger import Ledger
from layer3.moments import nanoseconds

__all__ = ["MIN_DECISIONS", "SECTIONS", "Decide", "asking", "evaluate", "run", "run_buy_and_hold"]

Floats = NDArray[np.float64]
#: Multiplier for one state (16,) at decision t of the window.
Decide = Callable[[NDArray[np.float32], int], float]

#: Fewest decisions that a backtest is worth anything on: three weeks of hours.
MIN_DECISIONS: Final = 500
#: What evidence consists of, by the names that ``Evidence.problems`` uses.
SECTIONS: Final = tuple(entry.name for entry in fields(Evidence) if entry.name != "problems")


def run(
    bars: Bars, window: range, strategies: Mapping[str, Decide], config: EnvironmentConfig | None = None
) -> dict[str, Track]:
    """Walk ``bars[window]`` with one account per strategy; decisions at a close, trades at the next open.

    A window of w bars holds w - 2 decisions: the last one needs two more opens.

    Raises
    ------
    EvaluationError : the window holds no decision, or a number was not finite
    """
    if len(window) < 3:
        raise EvaluationError(f"{len(window)} bars hold no decision: at least 3 are needed")
    tracks, broken = _walk(bars, window, strategies, config or EnvironmentConfig())
    if broken:
        raise EvaluationError(broken)
    return tracks


def _walk(
    bars: Bars, window: range, strategies: Mapping[str, Decide], config: EnvironmentConfig
) -> tuple[dict[str, Track], str]:
    """The tracks up to the first number that is not finite, and a sentence about it, empty where all were."""
    n, steps = len(strategies), max(len(window) - 2, 0)
    account = Account(bars, n, config)
    equity = np.full((steps + 1, n), config.capital)
    exposure, multiplier = np.zeros((steps, n)), np.zeros((steps, n))
    turnover, cost, funding = (np.zeros((steps, n)) for _ in range(3))
    trades: list[list[float]] = [[] for _ in range(n)]
    deciders = list(strategies.values())
    at = np.empty(n, dtype=np.intp)
    broken = ""
    for t, bar in enumerate(range(window.start, window.start + steps)):
        at.fill(bar)
        states = account.observe(at)
        multiplier[t] = [decide(state, t) for decide, state in zip(deciders, states, strict=True)]
        if not np.isfinite(multiplier[t]).all():
            broken = f"{_lost(strategies, multiplier[t])} answered no finite multiplier at bar {bar}: check the data"
            steps = t
            break
        exposure[t] = account.target(at, multiplier[t])
        fill, paid, _, _ = account.trade(at, exposure[t])
        turnover[t] = fill.notional / equity[t]
        cost[t] = fill.cost
        if paid is not None:
            funding[t] = paid
        equity[t + 1] = account.ledger.equity(bars.open[bar + 2])
        if not np.isfinite(equity[t + 1]).all():
            broken = f"the equity of {_lost(strategies, equity[t + 1])} is not finite at bar {bar + 2}: check the data"
            steps = t
            break
        for row in np.flatnonzero(fill.closed):
            trades[row].append(float(fill.trade_return[row]))
    return {
        name: Track(
            equity[: steps + 1, i],
            exposure[:steps, i],
            multiplier[:steps, i],
            turnover[:steps, i],
            cost[:steps, i],
            funding[:steps, i],
            np.array(trades[i]),
        )
        for i, name in enumerate(strategies)
    }, broken


def _lost(strategies: Mapping[str, Decide], values: Floats) -> str:
    """The first of ``strategies`` whose number is not finite."""
    return list(strategies)[int(np.argmin(np.isfinite(values)))]


def run_buy_and_hold(bars: Bars, window: range, config: EnvironmentConfig | None = None) -> Track:
    """All capital into the asset at the first open, held to the end: the asset itself, without funding or cap."""
    config = config or EnvironmentConfig()
    steps = max(len(window) - 2, 0)
    if not steps:
        return Track(np.array([config.capital]), *(np.empty(0) for _ in range(6)))
    opens = bars.open[window.start + 1 : window.stop]
    ledger = Ledger(1, config.capital, config.costs)
    fill = ledger.rebalance(1.0, opens[0])
    equity = np.concatenate(([config.capital], ledger.cash + ledger.units * opens[1:]))
    turnover, cost = np.zeros(steps), np.zeros(steps)
    turnover[0], cost[0] = fill.notional[0] / config.capital, fill.cost[0]
    return Track(equity, ledger.exposure(opens[:-1]), np.ones(steps), turnover, cost, np.zeros(steps), np.empty(0))


def evaluate(
    bars: Bars,
    window: range,
    policy: Policy,
    info: Mapping[str, Any],
    config: EnvironmentConfig | None = None,
    champion: Policy | None = None,
) -> Evaluation:
    """Walk ``policy`` over ``bars[window]`` beside Kelly only (multiplier 1), buy and hold, flat, and ``champion``.

    ``info`` is what ingest knows of the data (symbol, source, synthetic, sha256, signals). A record that cannot
    carry a verdict (fewer than ``MIN_DECISIONS`` decisions, or cut off where a number was not finite) is no error:
    every section of its evidence is missing, and ``evidence.problems`` says why.

    Raises
    ------
    EvaluationError : the period overlaps the one that the policy was trained on, or its manifest does
        not say what that was
    """
    config = config or EnvironmentConfig()
    trained = _training_period(policy)
    first = bars.timestamp[min(window.start, len(bars) - 1)]
    if nanoseconds(trained["end"]) >= int(first):
        raise EvaluationError(
            f"policy {policy.model_id} was trained on data up to {trained['end']}, the held-out period "
            f"starts at {_iso(first)}: what was trained on cannot judge; choose a later period"
        )
    strategies = {POLICY: asking(policy), KELLY_ONLY: lambda *_: 1.0, FLAT: lambda *_: 0.0}
    if champion is not None:
        strategies[CHAMPION] = asking(champion)
    with np.errstate(invalid="ignore"):
        tracks, broken = _walk(bars, window, strategies, config)
    steps = len(tracks[POLICY].exposure)
    tracks[BUY_AND_HOLD] = run_buy_and_hold(bars, window[: steps + 2], config)
    timestamps = bars.timestamp[window.start : window.start + steps]
    metrics = {name: summarise(track, bars.interval_seconds) for name, track in tracks.items()}
    at = slice(window.start, window.start + steps)
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
        "period": {"start": _iso(first), "end": _iso(timestamps[-1] if steps else first)},
        "interval_seconds": bars.interval_seconds,
        "capital": config.capital,
        "costs": {"commission": config.costs.commission, "slippage": config.costs.slippage},
    }
    if broken:
        broken = f"the record ends after {steps:,} decisions: {broken}"
    elif steps < MIN_DECISIONS:
        broken = f"the held-out period has {steps:,} decisions, at least {MIN_DECISIONS} are needed: supply more data"
    missing = dict.fromkeys(SECTIONS, broken) if broken else {}
    return Evaluation(timestamps, tracks, metrics, context, Evidence(problems=missing))


def asking(policy: Policy) -> Decide:
    """The deterministic answers of ``policy``, as it is served."""
    return lambda state, _: float(policy.act(state)[0])


def _training_period(policy: Policy) -> dict[str, str]:
    """``start`` and ``end`` of what ``policy`` was trained on; refuses a manifest that cannot be traced."""
    lacking = {"data", "seed", "code_version"} - set(policy.manifest)
    try:
        period = {name: str(policy.manifest["data"][name]) for name in ("start", "end")}
        for moment in period.values():
            nanoseconds(moment)
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
