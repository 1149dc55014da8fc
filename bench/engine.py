"""A decision of the engine, beside the floor of this machine in the same run."""

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.hot_path import random_policy
from layer3.engine import Layer3Phase1
from layer3.live.configuration import load_config
from layer3.sizing.chain import SizingChain
from layer3.sizing.request import EXAMPLE, parse_request
from layer3.types import ClosedTrade

CALLS = 5_000


def percentiles_us(call: Callable[[], object]) -> list[float]:
    """Median, 99th percentile and maximum of single calls, in microseconds."""
    took = []
    for _ in range(CALLS):
        start = time.perf_counter_ns()
        call()
        took.append(time.perf_counter_ns() - start)
    return [float(x) / 1e3 for x in np.percentile(took, [50, 99, 100])]


def main() -> None:
    request = parse_request(EXAMPLE)
    signal, cascade, now = request.signal, request.cascade, request.signal.timestamp_ns
    lock = threading.Lock()

    def locked() -> None:
        with lock:
            pass

    chain = SizingChain()
    state = np.zeros(16, np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "policy"
        policy = random_policy(np.random.default_rng(0), folder, 1)
        layers = [policy.tensors[w][0] for w in ("w1", "w2", "w3")]
        alone = Layer3Phase1(load_config(None, {"policy": {"enabled": False}}), clock=lambda: now)
        asking = Layer3Phase1(load_config(None, {"policy": {"model_path": str(folder)}}), clock=lambda: now)
    trades = [ClosedTrade(0.01, 10.0, now, str(i)) for i in range(10)]
    asked = {"without the policy": "<= 60", "with the local policy": "<= 100"}
    decision = asking.calculate_position(signal, cascade, 87_000.0)
    calls: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "a lock taken and given back": locked,
        "the policy's three matrix products": lambda: state @ layers[0] @ layers[1] @ layers[2],
        "the policy alone": lambda: policy.act(state),
        "the chain alone": lambda: chain.assess(signal, cascade),
        "without the policy": lambda: alone.calculate_position(signal, cascade, 87_000.0),
        "with the local policy": lambda: asking.calculate_position(signal, cascade, 87_000.0),
        "  and ten trades that are known": lambda: asking.calculate_position(
            signal, cascade, 87_000.0, recent_trades=trades
        ),
        "its account, when it is read": lambda: decision.diagnostics,
    }
    print(f"µs{'median':>41}{'p99':>9}{'max':>9}   median asked for")
    for name, call in calls.items():
        middle, high, worst = percentiles_us(call)
        print(f"{name:36s}{middle:7.1f}{high:9.1f}{worst:9.0f}   {asked.get(name, '')}")


if __name__ == "__main__":
    main()
