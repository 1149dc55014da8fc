"""What training cannot be faster than: its matrix products at the rate of this machine's cores."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from layer3 import contract, machine
from layer3.agent.networks import single_threaded
from layer3.agent.ppo import PPOConfig

__all__ = ["RATES", "operations", "rates"]

#: The libraries whose rates are measured.
RATES = ("numpy", "oneDNN")
#: Side of the square matrices: their three fill a core's cache and leave nothing to wait for.
_SIDE = 512


def _products(hidden: int, outputs: int) -> tuple[int, int]:
    """Operations per sample of one network's forward and backward passes; a multiply-add is two."""
    layers = [(contract.STATE_DIM, hidden), (hidden, hidden), (hidden, outputs)]
    forward = sum(2 * rows * columns for rows, columns in layers)
    # Backward, every layer gives its weights' slopes and all but the first pass slopes on to their inputs.
    onward = sum(2 * rows * columns for rows, columns in layers[1:])
    return forward, forward + onward


def operations(config: PPOConfig | None = None) -> float:
    """Operations of the matrix products per environment step: acting, judging, and all epochs of both networks."""
    config = config or PPOConfig()
    (act, improve), (judge, fit) = _products(config.hidden, 2), _products(config.hidden, 1)
    judged = (config.rollout + 1) / config.rollout
    return act + judged * judge + config.epochs * (act + improve + judge + fit)


def rates(seconds: float = 1.0) -> dict[str, float]:
    """Operations per second of float32 products on all cores, a thread and matrices for each: numpy's BLAS, and
    torch's products as our trainer runs them."""
    with single_threaded():
        return {"numpy": _rate(np.matmul, np.asarray, seconds), "oneDNN": _rate(torch.matmul, torch.as_tensor, seconds)}


def _rate(multiply: Callable[..., Any], convert: Callable[..., Any], seconds: float) -> float:
    def work(seed: int) -> float:
        rng = np.random.default_rng(seed)
        left, right, product = (convert(a) for a in rng.standard_normal((3, _SIDE, _SIDE), dtype=np.float32))
        multiply(left, right, out=product)
        done, started = 0, time.perf_counter()
        while (passed := time.perf_counter() - started) < seconds:
            multiply(left, right, out=product)
            done += 1
        return done * 2.0 * _SIDE**3 / passed

    cores = machine.cores()
    with ThreadPoolExecutor(cores) as pool:
        return sum(pool.map(work, range(cores)))
