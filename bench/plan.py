"""How much the training benchmark does."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Plan"]


@dataclass(frozen=True)
class Plan:
    """How much of everything; steps are whole rollouts of 2,048, but for the guide's episodes of 500."""

    repeats: int
    steps: int
    guide_steps: int
    guide_scored: int
    trial_steps: int
    population: int
    budgets: tuple[int, ...]
    walk: tuple[int, int, int]
    curve_steps: tuple[int, ...]
    curve_policies: tuple[int, ...]
    settings: tuple[int, int, int]
    gpu_policies: tuple[int, ...] = (1, 16, 128)


FULL = Plan(
    repeats=3,
    steps=244 * 2_048,
    guide_steps=20_000,
    guide_scored=500_000,
    trial_steps=50 * 2_048,
    population=16,
    budgets=tuple(2_048 * updates for updates in (10, 20, 30, 40, 60, 80, 100, 122, 160, 200, 244)),
    walk=(18, 5, 250_000),
    curve_steps=tuple(2_048 * updates for updates in (49, 122, 244, 488)),
    curve_policies=(1, 2, 4, 8, 16, 32),
    settings=(8, 2, 49 * 2_048),
)
QUICK = Plan(
    repeats=1,
    steps=2 * 2_048,
    guide_steps=500,
    guide_scored=500,
    trial_steps=2_048,
    population=4,
    budgets=(2_048,),
    walk=(2, 2, 2_048),
    curve_steps=(2_048, 4_096),
    curve_policies=(1, 2),
    settings=(2, 2, 2_048),
    gpu_policies=(1,),
)
