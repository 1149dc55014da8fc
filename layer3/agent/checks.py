"""What is asked before a population is trained: of the arguments, the data and the machine's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import torch

from layer3 import contract, machine
from layer3.agent.bars import Bars
from layer3.agent.networks import INPUTS, weights_size
from layer3.agent.ppo import PPOConfig, Progress
from layer3.agent.share import chunks_of
from layer3.agent.team import EXPLORATION, Fold
from layer3.errors import ConfigurationError, NothingToLearnError, TrainingError

if TYPE_CHECKING:
    from layer3.agent.population import Settings

__all__ = ["check_learnable", "check_memory", "checked_workers", "memory_needed"]


def memory_needed(
    policies: int, config: PPOConfig, bars: int, device: str = "cpu", workers: int = 1, markets: int = 1
) -> int:
    """Bytes that training ``policies`` policies of ``config``'s shape, of ``markets`` different ``environment``
    settings, on ``bars`` bars takes at most, torch itself aside.

    On a GPU all policies are one piece of work, on a CPU ``workers`` pieces of a few are under way at once.
    """
    chunks, workers = (chunks_of(policies), workers) if device == "cpu" else ([slice(0, policies)], 1)
    largest = max(chunk.stop - chunk.start for chunk in chunks)
    weights = weights_size(config.hidden, 2) + weights_size(config.hidden, 1)
    number, long = 4, 8
    samples = config.samples * (number * (INPUTS + 6) + long * (3 + 2 * config.epochs))
    walking = config.environments * 60 * long
    own = weights * 4 * number + samples + walking + config.updates * len(fields(Progress)) * long
    # Each worker may hold the end of one environment's policies and the beginning of another's.
    teams = min(workers, len(chunks)) + markets - 1
    market = bars * (number * contract.STATE_DIM + 5 * long)
    # Each worker's activations, what passes through while it works, and the exploration before it.
    working = largest * max(config.batch, config.environments) * number * (7 * config.hidden + 6 * INPUTS)
    exploring = policies * EXPLORATION * config.environments * 3 * long
    # What the allocator keeps between.
    return int(1.25 * (policies * own + teams * market + exploring + workers * working))


def checked_workers(
    seeds: Sequence[int],
    folds: Sequence[Fold],
    settings: Sequence[Settings],
    device: str,
    workers: int | None,
    checkpoint: str | None,
    checkpoint_every: int,
) -> int:
    """How many workers there are, for arguments of :func:`layer3.agent.population.train` that are in range.

    Raises
    ------
    ConfigurationError : one is not, or the device is not there
    """
    for name, given in (("seeds", seeds), ("folds", folds), ("settings", settings)):
        if not len(given):
            raise ConfigurationError(f"no {name} given: there is nothing to train")
    if not all(folds):
        raise ConfigurationError("a fold of no windows: there is nothing to train on")
    for seed in seeds:
        # A bool is an int too, and torch wants no number of numpy's.
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise ConfigurationError(f"seed is {seed!r}, expected an int in [0, 2^32)")
    if device not in {"cpu", "cuda"}:
        raise ConfigurationError(f"device is {device!r}, expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device cuda is not there: torch finds no GPU, or is its CPU build; use device cpu")
    count = machine.cores() if workers is None else workers
    if not isinstance(count, int) or count < 1:
        raise ConfigurationError(f"workers is {workers}, expected a whole number of at least 1")
    if checkpoint is not None and len(settings) > 1:
        raise ConfigurationError(f"{len(settings)} settings share no checkpoint: train them one after another")
    if checkpoint_every < 1:
        raise ConfigurationError(f"checkpoint_every is {checkpoint_every}, expected at least 1 update")
    return count if device == "cpu" else 1


def check_memory(policies: int, config: PPOConfig, bars: int, device: str, workers: int, markets: int) -> None:
    """Refuse, with :class:`TrainingError`, what :func:`memory_needed` says does not fit on this machine now."""
    needed = memory_needed(policies, config, bars, device, workers, markets)
    there = int(torch.cuda.mem_get_info()[0]) if device == "cuda" else machine.memory()
    if needed > there:
        raise TrainingError(
            f"{policies:,} policies at once need about {needed / 2**30:.1f} GiB, {device} has "
            f"{there / 2**30:.1f}: train fewer at a time"
        )


def check_learnable(bars: Bars, window: range) -> None:
    """Refuse a window of ``bars`` from which nothing can be learned.

    Raises
    ------
    TrainingError : it is empty, does not lie within the history, or holds a number that is not finite or a
        price that is not positive
    NothingToLearnError : its price is constant, or nothing in it is traded
    """
    part = slice(window.start, window.stop)
    if not 0 <= window.start < window.stop <= len(bars) or window.step != 1:
        raise TrainingError(
            f"a fold of {window} holds no bars, or does not lie within the {len(bars):,} bars of the history"
        )
    for entry in fields(Bars):
        values = getattr(bars, entry.name)[part]
        price = entry.name in {"open", "close"}
        bad = np.flatnonzero(~np.isfinite(values) | (price & (values <= 0)))
        if bad.size:
            raise TrainingError(
                f"{entry.name} at bar {window.start + bad[0]} is {values[bad[0]]}, which is "
                f"{'no price' if price else 'not finite'}: prepare the data again with ingest"
            )
    if np.ptp(bars.open[part]) == 0.0:
        raise NothingToLearnError(
            f"the price is {bars.open[window.start]} on all {len(window):,} bars of the training period: "
            "there is nothing to learn from a constant price; check the data"
        )
    if not np.any(bars.base_fraction[part] * bars.direction[part]):
        raise NothingToLearnError(
            f"the sizing chain holds nothing on all {len(window):,} bars of the training period, so no multiplier "
            "matters: check the signals (all HOLD? confidence or expected return too low?), or give a longer "
            "history: the baseline needs 30 days before it speaks"
        )
