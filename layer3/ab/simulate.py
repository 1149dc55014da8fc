"""Experiments whose truth is known, thousands at a time, through the very functions that judge live ones.

A world makes decisions all day: a base size, a multiplier, and what following the signal returned. Returns have
fat tails (Student's t with 4 degrees of freedom), days whose volatility lasts, and a part that all decisions of a
day share. The multiplier follows a forecast that knows as much of the return as ``skill`` says. Which decisions
get it is drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from layer3.ab.adjustment import Adjusted, Moments, adjusted_difference
from layer3.ab.assignment import DAY_NS, Design
from layer3.ab.planner import information_scale
from layer3.ab.sequential import boundary

__all__ = ["Drawn", "Rates", "World", "draw", "simulate"]

Floats = NDArray[np.float64]

#: Two-sided 5 % point of the normal distribution, which the naive test's t is held against: n is in the hundreds.
_NAIVE_LEVEL: Final = 1.959963984540054
#: Experiments that are held in memory at a time.
_CHUNK: Final = 100


@dataclass(frozen=True, slots=True)
class World:
    """``decisions`` a day for ``days`` days; ``skill`` the correlation of forecast and return, 0 for no difference.

    ``drift`` mean return of following the signal and ``volatility`` its mean standard deviation, per dollar held;
    ``spread`` of the multiplier around 1; ``largest`` base size as a share of the portfolio.
    """

    decisions: int = 48
    days: int = 30
    skill: float = 0.0
    drift: float = 0.0004
    volatility: float = 0.01
    spread: float = 0.4
    largest: float = 0.1

    @property
    def effect(self) -> float:
        """The true difference of mean return between the arms, per decision, at mean volatility."""
        return 0.5 * self.largest * self.spread * self.skill * self.volatility


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares of ``experiments`` with an answer on some day, right or wrong: ``naive`` by Welch's t at 5 % on each day,
    ``plain`` by the always-valid interval, ``adjusted`` by the same after variance reduction.

    ``covered``: whose adjusted interval held the truth (the mean of the decisions' expected differences) on every
    day; ``covered_once``: whose usual 95 % interval held it on the last day; ``median_day`` of the adjusted answer
    (``None`` where fewer than half had one); ``removed``: mean share of the variance that the reduction took.
    """

    experiments: int
    naive: float
    plain: float
    adjusted: float
    covered: float
    covered_once: float
    median_day: float | None
    removed: float


@dataclass(frozen=True, slots=True)
class Drawn:
    """Decisions (experiments, days, decisions): base size, multiplier, and the return of following the signal."""

    base: Floats
    multiplier: Floats
    followed: Floats


def simulate(world: World, design: Design, experiments: int, seed: int) -> Rates:
    """Run ``experiments`` with a look at the end of each day, by ``design``'s ramp, level, units and least units."""
    parts = list(_chunks(world, design, experiments, np.random.default_rng(seed)))
    naive, plain, adjusted, held, last, removed = (np.concatenate(column) for column in zip(*parts, strict=True))
    days = np.where(adjusted.any(axis=1), adjusted.argmax(axis=1) + 1.0, np.inf)
    median = float(np.median(days))
    return Rates(
        experiments,
        float(naive.any(axis=1).mean()),
        float(plain.any(axis=1).mean()),
        float(adjusted.any(axis=1).mean()),
        float(held.mean()),
        float(last.mean()),
        median if math.isfinite(median) else None,
        float(removed.mean()),
    )


def _chunks(
    world: World, design: Design, experiments: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[Any], ...]]:
    for first in range(0, experiments, _CHUNK):
        given, truth = _days(world, design, min(_CHUNK, experiments - first), rng)
        without = adjusted_difference(Moments(given.count, given.total[..., :1], given.product[..., :1, :1]))
        after = adjusted_difference(given)
        plain, _ = _looks(without, design, truth)
        adjusted, misses = _looks(after, design, truth)
        naive = np.abs(without.difference) > _NAIVE_LEVEL * np.sqrt(without.variance)
        # The interval at the last look by itself, as one would read it who looks once.
        once = np.abs(after.difference - truth)[:, -1] <= _NAIVE_LEVEL * np.sqrt(after.variance[:, -1])
        removed = 1.0 - after.variance[:, -1] / without.variance[:, -1]
        yield naive, plain, adjusted, np.asarray(~misses.any(axis=1)), np.asarray(once), np.asarray(removed)


def _looks(found: Adjusted, design: Design, truth: Floats) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """At which looks (m, days) 0 lies outside of the always-valid interval, and at which ``truth`` (m, days) does."""
    ready = found.units.min(axis=-1) >= design.least_units
    reach = boundary(information_scale(design) * np.maximum(found.effective, 1.0), design.level)
    reach = reach * np.sqrt(found.variance)
    return ready & (np.abs(found.difference) > reach), ready & (np.abs(found.difference - truth) > reach)


def _days(world: World, design: Design, experiments: int, rng: np.random.Generator) -> tuple[Moments, Floats]:
    """What is known at the end of each day, and the truth of the decisions so far.

    Moments (experiments, days, shares, 2, ...) of what a decision earned, its base size, and what that would earn.
    """
    drawn, volatility = draw(world, experiments, rng)
    share = np.array([design.share_at(0, day * DAY_NS) for day in range(world.days)])
    policy = rng.random(drawn.base.shape) < share[:, None]
    base, followed = drawn.base, drawn.followed
    earned = np.where(policy, drawn.multiplier, 1.0) * base * followed
    values = np.stack((earned, base, base * followed), axis=-1)
    sides = np.stack((~policy, policy), axis=-1).astype(np.float64)
    sums = (
        sides.sum(axis=-2),
        np.einsum("edna,ednc->edac", sides, values),
        np.einsum("edna,ednc,ednk->edack", sides, values, values, optimize=True),
    )
    truth = world.effect * np.cumsum(volatility, axis=1) / np.arange(1, world.days + 1)
    stratum = share[:, None] == np.unique(share)
    spread_out = (part[:, :, None] * stratum.reshape(1, *stratum.shape, *[1] * (part.ndim - 2)) for part in sums)
    return Moments(*(np.cumsum(part, axis=1) for part in spread_out)), truth


def draw(world: World, experiments: int, rng: np.random.Generator) -> tuple[Drawn, Floats]:
    """Decisions of ``experiments`` worlds, and each day's volatility (experiments, days) of mean 1."""
    shape = (experiments, world.days, world.decisions)
    volatility = _volatility(experiments, world.days, rng)
    own = rng.standard_t(4.0, shape) / math.sqrt(2.0)
    common = rng.standard_t(4.0, (experiments, world.days, 1)) / math.sqrt(2.0)
    forecast = rng.standard_normal(shape)
    unknown = math.sqrt(1.0 - world.skill**2) * (math.sqrt(0.9) * own + math.sqrt(0.1) * common)
    followed = world.drift + world.volatility * volatility[:, :, None] * (world.skill * forecast + unknown)
    return Drawn(rng.uniform(0.0, world.largest, shape), 1.0 + world.spread * forecast, followed), volatility


def _volatility(experiments: int, days: int, rng: np.random.Generator) -> Floats:
    """Each day's volatility (experiments, days), of mean 1: its logarithm forgets a tenth a day."""
    level = np.empty((experiments, days))
    level[:, 0] = rng.standard_normal(experiments)
    for day in range(1, days):
        level[:, day] = 0.9 * level[:, day - 1] + math.sqrt(1.0 - 0.9**2) * rng.standard_normal(experiments)
    return np.asarray(np.exp(0.4 * level - 0.5 * 0.4**2))
