"""Curves as a healthy training draws them, to be bent; and the reports that they come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from layer3.agent.population import Report
from layer3.agent.ppo import Progress

SAMPLES = 2_048


def make_curve(updates: int = 120, seed: int = 0, total: int | None = None, **bent: Any) -> list[Progress]:
    """``updates`` of a training of ``total`` updates; ``bent`` replaces a figure by a number or an array (updates,)."""
    rng = np.random.default_rng(seed)
    way = np.linspace(0.0, 1.0, updates)
    figures: dict[str, Any] = {
        "reward": -0.02 * np.exp(-6.0 * way) + rng.normal(0.0, 0.0015, updates),
        "sharpe": 6.0 - 12.0 * np.exp(-5.0 * way) + rng.normal(0.0, 1.0, updates),
        "multiplier_mean": 1.0 + rng.normal(0.0, 0.05, updates),
        "multiplier_sd": 0.85 - 0.3 * np.exp(-4.0 * way) + rng.normal(0.0, 0.005, updates),
        "entropy": 0.7 - 2.0 * way + rng.normal(0.0, 0.05, updates),
        "kl": rng.uniform(0.0, 0.008, updates),
        "clip_fraction": rng.uniform(0.0, 0.09, updates),
        "explained_variance": 0.4 + rng.normal(0.0, 0.08, updates),
        "learning_rate": 6e-4 * (1.0 - 0.95 * way),
        "gradient": rng.uniform(0.02, 0.2, updates),
    } | bent
    columns = {name: np.broadcast_to(values, updates).tolist() for name, values in figures.items()}
    return [
        Progress(
            steps=(k + 1) * SAMPLES,
            total_steps=(total or updates) * SAMPLES,
            seconds=0.05 * (k + 1),
            **{name: values[k] for name, values in columns.items()},
        )
        for k in range(updates)
    ]


def make_reports(curves: Sequence[Sequence[Progress]]) -> list[Report]:
    """What a population whose policies have these ``curves``, of one length, reports."""
    policies = tuple(range(len(curves)))
    return [
        Report(
            steps=sum(progress.steps for progress in figures),
            total_steps=sum(progress.total_steps for progress in figures),
            seconds=figures[0].seconds,
            policies=policies,
            figures=figures,
        )
        for figures in zip(*curves, strict=True)
    ]


def figures_of(progress: Progress) -> Mapping[str, float]:
    """Everything that is drawn against the steps."""
    names = [name for name in Progress.__dataclass_fields__ if name not in {"steps", "total_steps", "seconds"}]
    return {name: getattr(progress, name) for name in names}
