"""The paths that run thousands of times, each beside a floor or a plain peer in the same run."""

import statistics
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np

from layer3.agent.bars import prepare
from layer3.agent.environment import EnvironmentConfig, TradingEnvironment, episode_starts
from layer3.agent.policy import Policy, stack
from layer3.agent.policy_file import save_policy
from layer3.market import sources
from layer3.sizing.chain import SizingChain
from layer3.sizing.request import EXAMPLE, parse_request

REPEATS = 7


def median_seconds(call: Callable[[], object], number: int) -> float:
    return statistics.median(timeit.repeat(call, number=number, repeat=REPEATS)) / number


def random_member(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = {"w1": (16, 128), "b1": (128,), "w2": (128, 128), "b2": (128,), "w3": (128, 2), "b3": (2,)}
    tensors = {name: rng.normal(0.0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    return tensors | {"mean": np.zeros(16, np.float32), "std": np.ones(16, np.float32)}


def random_policy(rng: np.random.Generator, folder: Path, members: int) -> Policy:
    states = rng.uniform(-1.0, 1.0, (64, 16)).astype(np.float32)
    tensors = stack([random_member(rng) for _ in range(members)])
    return save_policy(folder, tensors, {"data": {"end": "2026-01-01"}, "seed": 0}, states)


def main() -> None:
    rng = np.random.default_rng(0)
    states = rng.uniform(-1.0, 1.0, (1_024, 16)).astype(np.float32)
    state = states[0]
    for members in (1, 8):
        with tempfile.TemporaryDirectory() as folder:
            policy = random_policy(rng, Path(folder), members)
        layers = list(zip(*(policy.tensors[name] for name in ("w1", "w2", "w3")), strict=True))
        floor = median_seconds(lambda w=layers: [state @ w1 @ w2 @ w3 for w1, w2, w3 in w], 2_000)
        one = median_seconds(lambda p=policy: p.act(state), 2_000)
        each = median_seconds(lambda p=policy: p.act(states), 20) / len(states)
        print(
            f"policy, {members} member{'s' * (members > 1)}: one state {one * 1e6:6.1f} µs, of {len(states):,} each "
            f"{each * 1e6:6.2f} µs   matrix products of one state, one by one {floor * 1e6:6.1f} µs"
        )

    request = parse_request(EXAMPLE)
    chain = SizingChain()
    assess = median_seconds(lambda: chain.assess(request.signal, request.cascade), 2_000)
    print(f"sizing chain, one signal {assess * 1e6:7.1f} µs")

    frame, report = sources.load("synthetic:default,bars=12000", "SYNTH-USD")
    bars, _ = prepare(frame, "SYNTH-USD", report.interval_seconds)
    config = EnvironmentConfig()
    possible = episode_starts([range(len(bars))], config)
    rates = {}
    for n in (1, 128, 2_048):
        environment = TradingEnvironment(bars, n, config)
        starts, multiplier = rng.choice(possible, n), rng.uniform(0.0, 2.0, n)
        environment.reset(starts, np.arange(n) * config.episode_steps // n)
        rates[n] = n / median_seconds(lambda env=environment, m=multiplier, s=starts: env.step(m, s), 200)
        print(f"environment, {n:5d} windows {rates[n]:12,.0f} steps/s   {rates[n] / rates[1]:6.1f}x one window")


if __name__ == "__main__":
    main()
