"""Small hand-made worlds for the agent's and the backtest's tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layer3 import contract
from layer3.agent.bars import Bars
from layer3.agent.policy import Policy, stack
from layer3.agent.policy_file import save_policy
from layer3.market.features import market_features

Tensors = dict[str, NDArray[np.float32]]

HOUR_NS = 3_600_000_000_000
START = int(np.datetime64("2023-01-01", "ns").astype(np.int64))


def make_bars(n: int, seed: int = 1, **columns: Any) -> Bars:
    """A seeded walk with signals that change every few bars; any column may be given instead.

    The confidence of bar t is t / 4096, so that a state tells which bar it was seen at.
    """
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(0.01 * rng.standard_normal(n)))
    side = np.repeat(rng.choice([-1, 0, 1], n // 5 + 1), 5)[:n].astype(np.int8)
    made: dict[str, Any] = {
        "timestamp": START + HOUR_NS * np.arange(n, dtype=np.int64),
        "open": close * np.exp(0.002 * rng.standard_normal(n)),
        "close": close,
        "signal_side": side,
        "direction": side.copy(),
        "confidence": np.arange(n) / 4096.0,
        "tier": rng.integers(1, 5, n).astype(np.int8),
        "base_fraction": rng.uniform(0.05, 0.45, n),
        "cascade_risk": rng.uniform(0.0, 1.0, n),
        "return_1h": 0.01 * rng.standard_normal(n),
        "return_4h": 0.02 * rng.standard_normal(n),
        "volatility": rng.uniform(0.01, 0.09, n),
        "funding_rate": np.zeros(n),
    }
    return Bars(**(made | columns))


def bar_of(states: NDArray[np.float32]) -> NDArray[np.int64]:
    """Which bars the states (n, 16) of such a world were seen at."""
    return np.rint(states[:, 0].astype(np.float64) * 4096.0).astype(np.int64)


def trend(prices: NDArray[np.float64], **columns: Any) -> Bars:
    """Always long a tenth, at these opens."""
    n = len(prices)
    always = np.ones(n, dtype=np.int8)
    fixed = {"open": prices, "close": prices, "signal_side": always, "direction": always}
    return make_bars(n, **({**fixed, "base_fraction": np.full(n, 0.1)} | columns))


def planted(n: int, seed: int = 1, edge: float = 1.0) -> tuple[Bars, NDArray[np.float64]]:
    """A market with a regime that the state shows, and the multipliers (n,) of whoever knows what it means.

    Layer 2 always says BUY and the chain holds a quarter. The regime changes every 50 bars on average;
    ``cascade_risk`` is about 0.3 in good times and 0.7 in bad ones, and the next bar's return has a
    drift of +- ``edge`` times 0.27 % around a mean so small that without the regime multiplier 1 is the
    best constant: the default reward of mean m and deviation s is largest at the exposure m / (6 s^2).
    """
    spread, base = 0.015, 0.25
    rng = np.random.default_rng(seed)
    good = np.cumsum(rng.random(n) < 1.0 / 50.0) % 2 == 0
    drift = 6.0 * spread**2 * base + edge * 0.0027 * np.where(good, 1.0, -1.0)
    # What is decided at the close of bar t is held from the open of t + 1 to that of t + 2.
    growth = 1.0 + drift + spread * rng.standard_normal(n)
    opened = 100.0 * np.concatenate(([1.0, 1.0], np.cumprod(growth[:-2])))
    always = np.ones(n, dtype=np.int8)
    bars = make_bars(
        n,
        seed,
        signal_side=always,
        direction=always,
        confidence=np.full(n, 0.8),
        tier=2 * always,
        base_fraction=np.full(n, base),
        cascade_risk=np.clip(np.where(good, 0.3, 0.7) + 0.05 * rng.standard_normal(n), 0.0, 1.0),
        **_prices(opened),
    )
    return bars, np.where(good, 2.0, 0.0)


def in_random_order(bars: Bars, seed: int = 1) -> Bars:
    """The same bars with their returns in random order: neither the state nor the past says anything about them."""
    steps = np.random.default_rng(seed).permutation(np.diff(np.log(bars.open)))
    return replace(bars, **_prices(bars.open[0] * np.exp(np.concatenate(([0.0], np.cumsum(steps))))))


def _prices(opened: NDArray[np.float64]) -> dict[str, Any]:
    """Columns of hourly bars that close where the next one opens."""
    closed = np.append(opened[1:], opened[-1])
    return {"open": opened, "close": closed, **market_features(closed, 3_600)._asdict()}


def make_member(seed: int = 1, hidden: int = 8, scale: float = 1.0) -> Tensors:
    """A random network: one member's tensors, without the leading axis."""
    rng = np.random.default_rng(seed)
    d = contract.STATE_DIM
    shapes = {
        "w1": (d, hidden),
        "b1": (hidden,),
        "w2": (hidden, hidden),
        "b2": (hidden,),
        "w3": (hidden, 2),
        "b3": (2,),
    }
    tensors = {name: (scale * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    tensors["mean"] = rng.uniform(-0.5, 0.5, d).astype(np.float32)
    tensors["std"] = rng.uniform(0.3, 2.0, d).astype(np.float32)
    return tensors


def make_tensors(seed: int = 1, hidden: int = 8, scale: float = 1.0, members: int = 1) -> Tensors:
    """A random policy's tensors; its member k is ``make_member(seed + k)``."""
    return stack([make_member(seed + k, hidden, scale) for k in range(members)])


def make_states(n: int, seed: int = 1) -> NDArray[np.float32]:
    """Random states within the contract's bounds."""
    rng = np.random.default_rng(seed)
    return contract.build_state(
        confidence=rng.uniform(0, 1, n),
        side=rng.integers(-1, 2, n),
        tier=rng.integers(1, 5, n),
        exposure=rng.uniform(-0.5, 0.5, n),
        unrealised_pnl=rng.normal(0, 0.1, n),
        return_1h=rng.normal(0, 0.02, n),
        return_4h=rng.normal(0, 0.04, n),
        volatility=rng.uniform(0, 0.1, n),
        win_rate=rng.uniform(0, 1, n),
        cascade_risk=rng.uniform(0, 1, n),
    )


def make_details(**changes: Any) -> dict[str, Any]:
    """What a manifest says of the training; the worlds above begin a day after its end."""
    data = {
        "source": "test",
        "sha256": "0" * 64,
        "start": "2022-01-01T00:00:00+00:00",
        "end": "2022-12-31T00:00:00+00:00",
    }
    return {"symbol": "SYNTH-USD", "synthetic": True, "data": data, "seed": 1, "code_version": "abc", **changes}


def make_policy(folder: Path, tensors: Tensors | None = None, **details: Any) -> Policy:
    """A policy saved in ``folder``."""
    return save_policy(folder, tensors or make_tensors(), make_details(**details), make_states(100))


def constant_member(multiplier: float = 1.0, sd: float = 1.0) -> Tensors:
    """A network whose distribution is always that of ``2 sigmoid(u)`` with this median, in (0, 2), and u's ``sd``."""
    tensors = make_member()
    tensors["w3"] = np.zeros_like(tensors["w3"])
    tensors["b3"] = np.log([multiplier / (2.0 - multiplier), sd]).astype(np.float32)
    return tensors


def constant_tensors(multiplier: float = 1.0, sd: float = 1.0) -> Tensors:
    """A policy of the one member ``constant_member(multiplier, sd)``."""
    return stack([constant_member(multiplier, sd)])
