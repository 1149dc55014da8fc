"""A decision of the engine, beside the floor of this machine in the same run: alone, and with a policy to ask."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from logging import NullHandler, getLogger
from pathlib import Path

import numpy as np

from bench.hot_path import random_policy
from bench.page import Requirement, at_most, table, title
from bench.remote import BUDGET_S, Call, bare, latencies, percentiles, raw, served
from layer3.ab.assignment import Design
from layer3.ab.live import LiveExperiment
from layer3.ab.store import Store
from layer3.engine import Layer3Phase1
from layer3.live.configuration import load_config
from layer3.live.decision_log import DecisionLog, Fsync
from layer3.live.recorder import Recorder, head
from layer3.sizing.chain import SizingChain
from layer3.sizing.request import EXAMPLE, parse_request
from layer3.types import ClosedTrade

CALLS = 2_000
ROUNDS = 5
REPEATS = 5
PRICE = 87_000.0
SERVING = "python -m serving"
REQUEST = parse_request(EXAMPLE)
SIGNAL, CASCADE, NOW = REQUEST.signal, REQUEST.cascade, REQUEST.signal.timestamp_ns
POLICIES: tuple[Fsync, ...] = ("none", "interval", "each")
#: Opens never: every decision asks.
PATIENT = {"failures": 10**9, "minimum_calls": 10**9, "window_calls": 10**9}


def percentiles_us(call: Callable[[], object]) -> list[float]:
    """Median, 99th percentile and maximum of single calls, in microseconds; of a table, the medians of its rounds."""
    took = []
    for _ in range(CALLS):
        start = time.perf_counter_ns()
        call()
        took.append(time.perf_counter_ns() - start)
    return [float(x) / 1e3 for x in np.percentile(took, [50, 99, 100])]


def decisions(engine: Layer3Phase1) -> Call:
    return lambda: engine.calculate_position(SIGNAL, CASCADE, PRICE)


def alone(folder: Path, held: ExitStack) -> list[Requirement]:
    """Decisions without a server."""
    policy = random_policy(np.random.default_rng(0), folder / "policy", 1)
    quiet = Layer3Phase1(load_config(None, {"policy": {"enabled": False}}), clock=lambda: NOW)
    asking = Layer3Phase1(load_config(None, {"policy": {"model_path": str(folder / "policy")}}), clock=lambda: NOW)
    lock = threading.Lock()

    def locked() -> None:
        with lock:
            pass

    chain, state = SizingChain(), np.zeros(16, np.float32)
    layers = [policy.tensors[w][0] for w in ("w1", "w2", "w3")]
    trades = [ClosedTrade(0.01, 10.0, NOW, str(i)) for i in range(10)]
    decision = asking.calculate_position(SIGNAL, CASCADE, PRICE)
    calls: dict[str, Call] = {
        "nothing": lambda: None,
        "a lock taken and given back": locked,
        "the policy's three matrix products": lambda: state @ layers[0] @ layers[1] @ layers[2],
        "the policy alone": lambda: policy.act(state),
        "the chain alone": lambda: chain.assess(SIGNAL, CASCADE),
        "without the policy": decisions(quiet),
        "with the local policy": decisions(asking),
        "  and ten trades that are known": lambda: asking.calculate_position(
            SIGNAL, CASCADE, PRICE, recent_trades=trades
        ),
        "  and an experiment": experimenting(folder, held),
        **{f"  and the decision log, fsync {how}": logged(folder, how, held) for how in POLICIES},
        "its account, when it is read": lambda: decision.diagnostics,
    }
    # In turn, so that a moment in which the machine is slow is no row's own.
    rounds = [{name: percentiles_us(call) for name, call in calls.items()} for _ in range(ROUNDS)]
    found = {name: [float(x) for x in np.median([one[name] for one in rounds], axis=0)] for name in calls}
    title("A decision without a server, µs")
    table(
        ("", "median", "p99", "max"),
        [(name, f"{row[0]:.1f}", f"{row[1]:.1f}", f"{row[2]:.0f}") for name, row in found.items()],
    )
    return [
        at_most("without the policy, median, µs", found["without the policy"][0], 60.0, "{:.1f}"),
        at_most("with the local policy, median, µs", found["with the local policy"][0], 100.0, "{:.1f}"),
    ]


def experimenting(folder: Path, held: ExitStack) -> Call:
    """Decisions with the local policy in an experiment, each signal its own unit."""
    path = folder / "ab.sqlite"
    live = held.enter_context(LiveExperiment(Store(path), Store(path, read_only=True), Design("bench")))
    config = load_config(None, {"policy": {"model_path": str(folder / "policy")}})
    engine = Layer3Phase1(config, clock=lambda: NOW, assigner=live)
    engine.observers.append(live.observe)
    numbers = iter(range(10**9))
    return lambda: engine.calculate_position(
        replace(SIGNAL, timestamp_ns=NOW - next(numbers)), CASCADE, PRICE, price_timestamp_ns=NOW
    )


def logged(folder: Path, fsync: Fsync, held: ExitStack) -> Call:
    """Decisions with the local policy that are written to a decision log before they are told."""
    config = load_config(None, {"policy": {"model_path": str(folder / "policy")}})
    engine = Layer3Phase1(config, clock=lambda: NOW)
    log = held.enter_context(DecisionLog(folder / f"{fsync}.jsonl", lambda: head(engine), fsync=fsync))
    engine.observers.append(Recorder(log, engine).observe)
    return decisions(engine)


def remote_engine(port: int) -> Layer3Phase1:
    policy = {"endpoint": f"http://127.0.0.1:{port}", "timeout_ms": BUDGET_S * 1e3}
    return Layer3Phase1(
        load_config(None, {"deployment_mode": "cloud", "policy": policy, "breaker": PATIENT}), clock=lambda: NOW
    )


def remote(name: str, port: int) -> list[Requirement]:
    """Decisions that ask a server, beside a bare round trip to it."""
    title(f"A decision with a remote policy, {name}, µs")
    rows, found = [], []
    with remote_engine(port) as engine:
        for threads in (1, 64):
            calls = 2_000 if threads == 1 else 60
            floors, ours = [], []
            for _ in range(REPEATS):
                floors.append(latencies(lambda: bare(port), threads, calls))
                ours.append(latencies(lambda: decisions(engine), threads, calls))
            floor, mine = percentiles(floors), percentiles(ours)
            worst = float(np.concatenate(ours).max()) * 1e6
            times = f"{mine[0] / floor[0]:.2f} and {mine[1] / floor[1]:.2f}"
            rows.append((f"{threads} threads, bare http.client", *(f"{x:.0f}" for x in floor), "", ""))
            rows.append((f"{threads} threads, a decision", *(f"{x:.0f}" for x in mine), f"{worst:.0f}", times))
            if threads == 64:
                found.append(at_most(f"{name}: p99 of 64 threads, ms", mine[1] / 1e3, BUDGET_S * 1e3, "{:.1f}"))
            elif name == SERVING:
                found.append(at_most(f"{name}: median over the bare one's", mine[0] / floor[0], 1.5))
                found.append(at_most(f"{name}: p99 over the bare one's", mine[1] / floor[1], 1.5))
    table(("", "median", "p99", "max", "times the bare one"), rows)
    return found


def hanging() -> list[Requirement]:
    """Decisions that ask a server which drips for ever: the exact tail, beside this machine's own."""
    title("A decision while the server drips, one byte each 4 ms, ms beyond the budget of 150 ms")
    late: list[float] = []
    with raw("drip") as port, remote_engine(port) as engine:
        over = threading.Event()

        def wait() -> None:
            while not over.is_set():
                start = time.monotonic()
                over.wait(BUDGET_S)
                late.append(time.monotonic() - start - BUDGET_S)

        waiting = threading.Thread(target=wait)
        waiting.start()
        rows, figures = [], {}
        for threads in (1, 16):
            took = latencies(lambda: decisions(engine), threads, 20) - BUDGET_S
            figures[threads] = float(took.max()) * 1e3
            rows.append((f"{threads} threads", *(f"{x * 1e3:.2f}" for x in np.percentile(took, (50, 99, 100)))))
        over.set()
        waiting.join()
        decision = engine.calculate_position(SIGNAL, CASCADE, PRICE)
        assert decision.multiplier_source == "fallback_kelly", json.dumps(decision.to_json())
    noise = late[:-1]
    rows.append(("a plain wait of 150 ms", *(f"{x * 1e3:.2f}" for x in np.percentile(noise, (50, 99, 100)))))
    table(("", "median", "p99", "max"), rows)
    return [
        at_most(f"beyond the budget at most, {threads} threads, ms", worst, 10.0) for threads, worst in figures.items()
    ]


def main() -> None:
    getLogger("layer3").addHandler(NullHandler())
    with tempfile.TemporaryDirectory() as name, ExitStack() as held:
        asked = alone(Path(name), held)
    with raw() as port:
        asked += remote("a raw socket server", port)
    with served() as port:
        asked += remote(SERVING, port)
    asked += hanging()
    title("What was asked")
    table(("", "is", "asked", "met"), [(r.name, r.value, r.asked, "yes" if r.met else "NO") for r in asked])


if __name__ == "__main__":
    main()
