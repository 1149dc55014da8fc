"""The paths that run thousands of times, each beside a floor or a plain peer in the same run."""

import statistics
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np

from layer3.agent.bars import prepare
from layer3.agent.environment import EnvironmentConfig, TradingEnvironment
from layer3.agent.policy import Policy, save_policy
from layer3.market import sources
from layer3.sizing.chain import SizingChain
from layer3.sizing.request import EXAMPLE, parse_request

REPEATS = 7


def median_seconds(call: Callable[[], object], number: int) -> float:
    return statistics.median(timeit.repeat(call, number=number, repeat=REPEATS)) / number


def random_policy(rng: np.random.Generator, folder: Path) -> Policy:
    shapes = {"w1": (16, 128), "b1": (128,), "w2": (128, 128), "b2": (128,), "w3": (128, 2), "b3": (2,)}
    tensors = {name: rng.normal(0.0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    tensors |= {"mean": np.zeros(16, np.float32), "std": np.ones(16, np.float32)}
    states = rng.uniform(-1.0, 1.0, (64, 16)).astype(np.float32)
    return save_policy(folder, tensors, {"data": {"end": "2026-01-01"}, "seed": 0}, states)


def main() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        policy = random_policy(rng, Path(folder))
    state, t = rng.uniform(-1.0, 1.0, 16).astype(np.float32), policy.tensors
    floor = median_seconds(lambda: np.zeros(16, np.float32) @ t["w1"] @ t["w2"] @ t["w3"], 2_000)
    act = median_seconds(lambda: policy.act(state), 2_000)
    ratio = f"its three matrix products {floor * 1e6:.1f} µs   {act / floor:.1f}x"
    print(f"policy, one state       {act * 1e6:8.1f} µs   {ratio}")

    request = parse_request(EXAMPLE)
    chain = SizingChain()
    assess = median_seconds(lambda: chain.assess(request.signal, request.cascade), 2_000)
    print(f"sizing chain, one signal {assess * 1e6:7.1f} µs")

    frame, report = sources.load("synthetic:default,bars=12000", "SYNTH-USD")
    bars, _ = prepare(frame, "SYNTH-USD", report.interval_seconds)
    rates = {}
    for n in (1, 128, 2_048):
        environment = TradingEnvironment(bars, range(len(bars)), n, EnvironmentConfig(), rng)
        environment.reset()
        multiplier = rng.uniform(0.0, 2.0, n)
        rates[n] = n / median_seconds(lambda env=environment, m=multiplier: env.step(m), 200)
        print(f"environment, {n:5d} windows {rates[n]:12,.0f} steps/s   {rates[n] / rates[1]:6.1f}x one window")


if __name__ == "__main__":
    main()
