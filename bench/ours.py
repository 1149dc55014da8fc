"""Our trainer on the benchmark's market."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike

from bench.alone import Run
from bench.arena import ENVIRONMENT, TRAINED_ON, Act, market, run_of
from layer3.agent.policy import Policy, stack
from layer3.agent.population import Settings, train
from layer3.agent.ppo import PPOConfig

__all__ = ["learn", "on_gpu", "walk_forward"]


def _answer(tensors: Mapping[str, ArrayLike]) -> Act:
    policy = Policy(stack([tensors]), {})
    return lambda states: policy.act(states)[0]


def learn(
    name: str, steps: int, seeds: Sequence[int], folds: Sequence[range] = (TRAINED_ON,), device: str = "cpu"
) -> Run:
    """One policy per fold and seed, all in one call, on all cores."""
    bars, settings = market(name).bars, Settings(PPOConfig(steps=steps), ENVIRONMENT)
    # What torch loads at its first products is no part of training.
    first = Settings(PPOConfig(steps=PPOConfig().samples), ENVIRONMENT)
    train(bars, seeds=seeds[:1], folds=folds[:1], settings=[first], device=device)
    started = time.perf_counter()
    trained = train(bars, seeds=seeds, folds=folds, settings=[settings], device=device)
    seconds = time.perf_counter() - started
    return run_of(name, [_answer(one.tensors) for one in trained], trained[0].curves[-1].steps, seconds)


def walk_forward(folds: int, seeds: int, steps: int) -> Run:
    """Windows of a quarter of the training bars, moved along them."""
    length = len(TRAINED_ON) // 4
    firsts = [(len(TRAINED_ON) - length) * fold // max(folds - 1, 1) for fold in range(folds)]
    return learn("planted", steps, range(seeds), [range(first, first + length) for first in firsts])


def on_gpu(policies: int, steps: int) -> dict[str, Any] | None:
    """Steps per second of a population, and the GPU's name and rate of float32 products; ``None`` without one."""
    if not torch.cuda.is_available():
        return None
    run = learn("planted", steps, range(policies), device="cuda")
    matrix = torch.randn(8_192, 8_192, device="cuda")
    for repeats in (2, 10):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            matrix @ matrix
        torch.cuda.synchronize()
        rate = repeats * 2.0 * len(matrix) ** 3 / (time.perf_counter() - started)
    return {
        "name": torch.cuda.get_device_name(),
        "rate": rate,
        "steps": policies * run.steps / run.seconds,
        "share": min(run.shares),
    }
