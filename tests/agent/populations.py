"""Small trainings, and when two trained policies are one and the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from layer3.agent.environment import EnvironmentConfig
from layer3.agent.population import Settings, Trained
from layer3.agent.ppo import PPOConfig, Progress

SHORT = Settings(PPOConfig(steps=8_192))
TINY = Settings(
    PPOConfig(steps=1_024, environments=16, rollout=8, batch=64, epochs=2, hidden=8),
    EnvironmentConfig(episode_steps=50),
)
WINDOW = range(1_500)


def differences(one: Trained, other: Trained) -> float:
    """Largest difference of any weight."""
    return max(float(np.abs(one.tensors[name] - other.tensors[name]).max()) for name in one.tensors)


def without_time(curves: Sequence[Progress]) -> list[Progress]:
    """All that is told of a training but how long it took."""
    return [replace(progress, seconds=0.0) for progress in curves]


def same(one: Trained, other: Trained) -> bool:
    """To the last bit."""
    return (
        all(one.tensors[name].tobytes() == other.tensors[name].tobytes() for name in one.tensors)
        and one.states.tobytes() == other.states.tobytes()
        and without_time(one.curves) == without_time(other.curves)
    )
