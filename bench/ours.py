"""Our trainer on the benchmark's market."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import ArrayLike

from bench.alone import Run
from bench.arena import ENVIRONMENT, TRAINED_ON, Act, market, run_of
from layer3.agent.policy import Policy, stack
from layer3.agent.population import Settings, train
from layer3.agent.ppo import PPOConfig

__all__ = ["learn", "on_gpu", "settings_at_once", "walk_forward"]


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


def settings_at_once(settings: int, seeds: int, steps: int) -> tuple[float, float]:
    """Seconds of a search over ``settings`` learning rates: all in one call, and one after another."""
    bars, config = market("planted").bars, PPOConfig(steps=steps)
    tried = [Settings(replace(config, learning_rate=1e-3 * (k + 1)), ENVIRONMENT) for k in range(settings)]
    first = Settings(replace(config, steps=config.samples), ENVIRONMENT)
    train(bars, seeds=[0], folds=[TRAINED_ON], settings=[first])
    started = time.perf_counter()
    train(bars, seeds=range(seeds), folds=[TRAINED_ON], settings=tried)
    between = time.perf_counter()
    for one in tried:
        train(bars, seeds=range(seeds), folds=[TRAINED_ON], settings=[one])
    return between - started, time.perf_counter() - between


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
