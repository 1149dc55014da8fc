"""Why the defaults are what they are: share of what an oracle gains over multiplier 1, on simulated markets.

Three synthetic markets of ``make run-local``'s kind, policies trained on the training part and scored on the
validation part. The oracle knows the rule that was planted, and holds twice the base size where it is worth more
than 0.2, else nothing.
"""

from __future__ import annotations

import time
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from bench.page import table, title
from layer3.agent.bars import Bars, prepare
from layer3.agent.environment import Account, EnvironmentConfig
from layer3.agent.policy import Policy, stack
from layer3.agent.population import Settings, train
from layer3.agent.ppo import PPOConfig
from layer3.market.candles import check
from layer3.market.simulator import MarketSpec, quality, simulate
from layer3.market.splits import Splits, split

Floats = NDArray[np.float64]
MARKETS, SEEDS = (1, 3, 4), range(8)
TRIED = {
    "narrow and slow": PPOConfig(log_sd_start=0.5, learning_rate=6e-4),
    "narrow": PPOConfig(log_sd_start=0.5),
    "slow": PPOConfig(learning_rate=6e-4),
    "half the steps": PPOConfig(steps=250_000),
    "defaults": PPOConfig(),
}


def market(seed: int) -> tuple[Bars, Splits, Floats]:
    """A simulated market, its split, and the oracle's multiplier per bar."""
    frame, report = check(simulate(MarketSpec(seed=seed)), f"synthetic:seed={seed}")
    bars, _ = prepare(frame, "SYNTH-USD", report.interval_seconds)
    turbulent = frame["regime"].isin(["high_volatility", "crisis"]).to_numpy()
    worth = quality(frame["signal_risk_score"].to_numpy(), frame["signal_confidence"].to_numpy(), turbulent)
    return bars, split(len(bars), purge=168), np.where(worth > 0.2, 2.0, 0.0)


def scores(bars: Bars, window: range, oracle: Floats, policies: list[Policy]) -> Floats:
    """Mean reward per bar without the baseline: multiplier 1, the oracle, each policy, and all policies' mean."""
    crowd = Policy(stack([{name: array[0] for name, array in one.tensors.items()} for one in policies]), {})
    config, n = EnvironmentConfig(), len(policies) + 3
    account, growth = Account(bars, n, config), np.empty((len(window) - 2, n))
    for t, bar in enumerate(range(window.start, window.stop - 2)):
        at = np.full(n, bar)
        states = account.observe(at)
        own = [float(policy.act(state)[0]) for policy, state in zip(policies, states[2:], strict=False)]
        chosen = np.array([1.0, oracle[bar], *own, float(crowd.act(states[-1])[0])])
        growth[t] = account.trade(at, account.target(at, chosen)).growth
    # The mean over the bars of a mean over the last ten is, but for the first ones, the mean.
    return np.asarray(100.0 * (growth - config.risk_aversion / 2.0 * growth**2).mean(axis=0))


def main() -> None:
    """Train and score every setting; two minutes or so each."""
    title(f"Share of the oracle's gain, validation parts of markets {MARKETS}, {len(SEEDS)} seeds each")
    worlds, rows = [market(seed) for seed in MARKETS], []
    for name, config in TRIED.items():
        alone, together, started = [], [], time.perf_counter()
        for bars, parts, oracle in worlds:
            trained = train(bars, seeds=SEEDS, folds=[parts.train], settings=[Settings(config)])
            constant, best, *reached = scores(
                bars, parts.validation, oracle, [Policy(stack([member.tensors]), {}) for member in trained]
            )
            *own, crowd = (np.array(reached) - constant) / (best - constant)
            alone.append(own)
            together.append(crowd)
        changed = {key: value for key, value in asdict(config).items() if value != getattr(PPOConfig(), key)}
        rows.append(
            (
                name,
                ", ".join(f"{key} {value:g}" for key, value in changed.items()),
                f"{np.mean(alone):.2f}",
                f"{np.min(alone):.2f}",
                ", ".join(f"{share:.2f}" for share in together),
                f"{time.perf_counter() - started:.0f} s",
            )
        )
    table(("", "differs in", "mean", "worst seed", "ensemble of 8, by market", "took"), rows)


if __name__ == "__main__":
    main()
