"""What is sent: states as the contract makes them, in JSON as Python writes it."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from layer3 import contract

__all__ = ["bodies", "request", "states"]


def states(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Random states (count, 16) of a market that moves."""
    rng = np.random.default_rng(seed)
    return contract.build_state(
        confidence=rng.uniform(0.5, 1.0, count),
        side=rng.integers(-1, 2, count),
        tier=rng.integers(1, 5, count),
        exposure=rng.uniform(-0.5, 0.5, count),
        unrealised_pnl=rng.normal(0.0, 0.05, count),
        return_1h=rng.normal(0.0, 0.01, count),
        return_4h=rng.normal(0.0, 0.02, count),
        volatility=rng.uniform(0.01, 0.08, count),
        win_rate=rng.integers(0, 11, count) / 10.0,
        cascade_risk=rng.uniform(0.0, 1.0, count),
    )


def bodies(count: int, seed: int = 0) -> list[bytes]:
    """So many requests' bodies, each with a state of its own; float32 with all its digits, as the client sends it."""
    return [json.dumps({"state": state}).encode() for state in states(count, seed).tolist()]


def request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """The bytes of a POST over a connection that is kept."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
