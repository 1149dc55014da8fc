"""A small policy with random weights, as a file."""

from pathlib import Path

import numpy as np

from layer3.agent.policy import Policy, stack
from layer3.agent.policy_file import save_policy


def small_policy(folder: Path) -> Policy:
    """The same one each time: eight hidden units, saved in ``folder``."""
    rng = np.random.default_rng(0)
    shapes = {
        "mean": (16,),
        "std": (16,),
        "w1": (16, 8),
        "b1": (8,),
        "w2": (8, 8),
        "b2": (8,),
        "w3": (8, 2),
        "b3": (2,),
    }
    tensors = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    tensors["std"] = np.ones(16, dtype=np.float32)
    states = rng.normal(0, 1, (32, 16)).astype(np.float32)
    return save_policy(folder, stack([tensors]), {"data": {"end": "2025-01-01T00:00:00Z"}}, states)
