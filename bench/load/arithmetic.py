"""The forward pass alone: ours, the same in torch, and the products that no way spares; one state, one thread."""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.load.requests import states
from layer3.agent.policy_file import load_policy

__all__ = ["forward_seconds"]


def forward_seconds(folder: Path, repeats: int, calls: int) -> dict[str, float]:
    """Median seconds of one state through the policy in ``folder``, in turn with its peers."""
    # Here and not above: torch's threads must not be there while servers are measured.
    import torch

    from bench.load.guides import Agent

    torch.set_num_threads(1)
    policy, agent = load_policy(folder), Agent(folder)
    state = states(1)[0]
    w1, w2, w3 = (policy.tensors[name][0] for name in ("w1", "w2", "w3"))
    tensor = torch.from_numpy(state)

    def products() -> None:
        np.dot(np.dot(np.dot(state, w1), w2), w3)

    def in_torch() -> None:
        with torch.inference_mode():
            torch.sigmoid(agent.forward(tensor)[0])

    ways: dict[str, Callable[[], object]] = {
        "three products in numpy, nothing else": products,
        "ours: multiplier and confidence": lambda: policy.act(state),
        "torch, the network's forward": in_torch,
        "torch, the guide's get_action": lambda: agent.get_action(state, deterministic=True),
    }
    rounds = [{name: timeit.timeit(call, number=calls) / calls for name, call in ways.items()} for _ in range(repeats)]
    return {name: statistics.median(each[name] for each in rounds) for name in ways}
