"""Made-up evidence of every kind, plausible enough to look at; no number in it was measured."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from layer3.backtest.record import (
    BUY_AND_HOLD,
    CHAMPION,
    FLAT,
    KELLY_ONLY,
    Attribution,
    CostLine,
    Costs,
    Degeneracy,
    Difference,
    Evidence,
    Fold,
    Interval,
    Leak,
    Overfitting,
    Permutation,
    Slice,
    Stability,
    Superiority,
    Trust,
    WalkForward,
)

__all__ = ["make_evidence", "make_permutation"]

Floats = NDArray[np.float64]
_DAY_NS = 86_400_000_000_000
_MULTIPLIERS: tuple[Literal["policy", "constant 1", "constant mean", "random", "off"], ...] = (
    "policy",
    "constant 1",
    "constant mean",
    "random",
    "off",
)


def make_evidence(timestamps: NDArray[np.int64], equity: Floats, kelly: Floats, rng: np.random.Generator) -> Evidence:
    """Evidence about a record whose ``equity`` and Kelly only's (n + 1,) start at 1."""
    days, ends = _day_ends(timestamps)
    width = 0.004 * np.sqrt(np.arange(1, len(days) + 1))
    gain = float(equity[-1] - 1.0)
    paid = abs(gain) / 2.4
    return Evidence(
        trust=make_trust(1.42, len(timestamps) / 8_760),
        differences=(
            Difference(KELLY_ONLY, Interval(0.31, 0.05, 0.58), 1.62),
            Difference(BUY_AND_HOLD, Interval(0.72, -0.41, 1.83), 0.24),
            Difference(FLAT, Interval(1.42, 0.37, 2.44), None),
            Difference(CHAMPION, Interval(-0.12, -0.33, -0.02), 1.21),
        ),
        superiority=Superiority((KELLY_ONLY, BUY_AND_HOLD, FLAT), 0.021, 0.034, 0.052),
        costs=Costs(
            gain + paid,
            0.6 * paid,
            0.35 * paid,
            0.05 * paid,
            gain,
            tuple(CostLine(m, 2.01 - 0.59 * m, gain + paid * (1 - m)) for m in (0.5, 1.0, 2.0, 4.0)),
            3.4 if gain > 0 else None,
        ),
        permutations=(make_permutation("bars", rng), make_permutation("blocks", rng)),
        leak=Leak((*(f"signals' column_{n}" for n in range(30)), "state", "decision"), (520, 1_040, 1_560), ()),
        attribution=tuple(
            Attribution(chain, kind, None if kind == "off" else ratio, ratio * 0.1, 0.08)
            for chain, ratios in (("on", (1.42, 1.11, 1.09, 0.87, 0.0)), ("off", (0.55, 0.31, 0.32, -0.21, 0.0)))
            for kind, ratio in zip(_MULTIPLIERS, ratios, strict=True)
        ),
        degeneracy=Degeneracy(1_320, 1.08, 0.37, 0.021, 0.034, 5, 0.61, ()),
        stability=make_stability(timestamps, rng),
        walk_forward=make_walk_forward(rng),
        overfitting=Overfitting(60, 16, 0.31),
        champion="himari-0",
        bootstrap_band=(
            tuple(int(day) for day in days),
            tuple(float(v) for v in equity[ends] * np.exp(-1.6 * width)),
            tuple(float(v) for v in equity[ends] * np.exp(1.6 * width)),
        ),
    )


def make_trust(ratio: float, years: float) -> Trust:
    """How far a made-up ratio can be trusted."""
    return Trust(
        sharpe=ratio,
        standard_error=0.63,
        probabilistic=0.987,
        deflated=0.914,
        trials=90,
        trials_sharpe=0.55,
        years=years,
        years_needed=1.37,
        sharpe_interval=Interval(ratio, ratio - 1.05, ratio + 1.02),
        drawdown_interval=Interval(0.083, 0.051, 0.164),
    )


def make_permutation(kind: Literal["bars", "blocks"], rng: np.random.Generator, paths: int = 200) -> Permutation:
    """The ratios of ``paths`` paths in random order around 0, and a real one of 1.42."""
    values = tuple(float(v) for v in rng.normal(0.05 if kind == "bars" else 0.3, 0.62, paths))
    p = (1 + sum(v >= 1.42 for v in values)) / (1 + paths)
    return Permutation(kind, 1 if kind == "bars" else 24, "recomputed", 1.42, values, p)


def make_stability(timestamps: NDArray[np.int64], rng: np.random.Generator) -> Stability:
    """A record cut by three regimes, its months, and three directions."""
    months, counts = np.unique(timestamps.astype("datetime64[ns]").astype("datetime64[M]"), return_counts=True)

    def some(label: str, bars: int) -> Slice:
        return Slice(label, bars, float(rng.normal(1.2, 0.9)), float(rng.normal(0.01, 0.02)))

    return Stability(
        regimes=tuple(some(label, len(timestamps) // 3) for label in ("trending_up", "high_volatility", "crisis")),
        months=tuple(some(str(month), int(count)) for month, count in zip(months, counts, strict=True)),
        directions=tuple(some(label, len(timestamps) // 3) for label in ("long", "short", "flat")),
        trimmed=Slice("without the best 1 % of bars", len(timestamps) * 99 // 100, 0.31, 0.021),
    )


def make_walk_forward(rng: np.random.Generator, folds: int = 18, seeds: int = 3) -> WalkForward:
    """Monthly folds of two years, and the record that they make."""
    months = np.datetime64("2021-06", "M") + np.arange(folds + 8)
    dates = [f"{month}-01T00:00:00+00:00" for month in months]
    days = np.arange(
        months[6].astype("datetime64[D]").astype(int), months[6 + folds].astype("datetime64[D]").astype(int)
    )
    equity, kelly = (np.cumprod(1.0 + rng.normal(mean, 0.006, len(days))) for mean in (0.0006, 0.0003))
    return WalkForward(
        kind="rolling",
        seeds=tuple(range(seeds)),
        folds=tuple(
            Fold(
                n + 1,
                dates[n],
                dates[n + 6],
                dates[n + 6],
                dates[n + 7],
                tuple(map(float, rng.normal(0.9, 1.4, seeds))),
            )
            for n in range(folds)
        ),
        trust=make_trust(1.05, 1.5),
        total_return=float(equity[-1] - 1.0),
        max_drawdown=0.11,
        versus_kelly=Difference(KELLY_ONLY, Interval(0.28, -0.02, 0.6), 1.4),
        overfitting=Overfitting(6, 16, 0.18),
        seed_sharpes=tuple(map(float, rng.normal(1.0, 0.2, seeds))),
        days=tuple(int(day) for day in days),
        equity=tuple(map(float, equity)),
        kelly_equity=tuple(map(float, kelly)),
    )


def _day_ends(timestamps: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """The days (since 1970) of the bars that earn, and the place of each day's last mark in equity."""
    interval = int(timestamps[1] - timestamps[0]) if len(timestamps) > 1 else 3_600_000_000_000
    days, first = np.unique((timestamps + interval) // _DAY_NS, return_index=True)
    return days, np.r_[first[1:], len(timestamps)]
