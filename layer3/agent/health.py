"""Says in words when the training of one policy is unhealthy: what was seen, how much, and what to do.

Single updates are noisy, so everything is judged by means over a tenth of the curve. The limits are
wide of what healthy training shows here: KL 0.00 to 0.02, clip fraction below 0.2, a multiplier
that spreads by 0.3 to 0.9. Numbers that are not finite never get here: they stop the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from layer3.contract import MULTIPLIER_HIGH, MULTIPLIER_LOW

if TYPE_CHECKING:
    from layer3.agent.ppo import Progress

__all__ = ["summary", "warnings_of"]

#: Standard deviation of sampled multipliers. The gate refuses a policy whose answers spread by less than 0.02,
#: and sampled actions carry the exploration's noise on top.
SPREAD_LOW: Final = 0.05
#: Distance of the mean multiplier from 0 or 2; so near, practically every action is the bound.
BOUND_NEAR: Final = 0.05
#: KL divergence of one update. PPO's customary target is 0.01 to 0.02; beyond 0.05 its linearisation does not hold.
KL_HIGH: Final = 0.05
#: Share of samples whose ratio left the clip range: such samples earn no gradient, and near a half most work is lost.
CLIP_HIGH: Final = 0.4
#: Explained variance. A critic that says nothing has 0; noise around 0 is harmless, clearly below it misleads.
EXPLAINED_LOW: Final = -0.05
#: Entropy in nats. exp(-5): as little as drawing from a strip 0.007 wide out of a range of 2. A decisive policy,
#: most of its multipliers near 0 or 2, has -1.5 to -4.
ENTROPY_LOW: Final = -5.0
#: Updates from which a trend can be told from noise: two in every tenth.
TREND_UPDATES: Final = 20


def warnings_of(curves: Sequence[Progress]) -> dict[str, str]:
    """What is unhealthy about one policy's training, as {kind: sentence}; empty when nothing is.

    ``curves`` may be part of a training: of one that still goes on, or after a checkpoint. Two kinds
    are told of a whole one only: that the reward did not rise, and that the critic never learned.
    """
    if not curves:
        return {}
    kinds = {
        "bound": _at_a_bound(curves),
        "entropy": _without_entropy(curves),
        "kl": _exploding(curves),
        "clipped": _clipped(curves),
    }
    if not kinds["bound"]:
        kinds["collapsed"] = _collapsed(curves)
    # All updates are of the same number of steps.
    whole = curves[0].steps * len(curves) == curves[-1].total_steps
    if whole and len(curves) >= TREND_UPDATES:
        kinds |= {"critic": _misled(curves), "reward": _no_better(curves)}
    return {kind: sentence for kind, sentence in kinds.items() if sentence}


def summary(found: Mapping[str, Mapping[str, str]]) -> list[str]:
    """One line per kind of warning over {policy: its warnings}; the policies are named where there are several."""
    lines = []
    for kind in dict.fromkeys(kind for warnings in found.values() for kind in warnings):
        first, *others = [name for name, warnings in found.items() if kind in warnings]
        sentence = found[first][kind]
        also = f" (the same holds for {', '.join(others)})" if others else ""
        lines.append(f"{first}: {sentence}{also}" if len(found) > 1 else sentence)
    return lines


def _tenths(curves: Sequence[Progress], name: str) -> NDArray[np.float64]:
    """Means over consecutive tenths, (10,); of a shorter curve its values."""
    values = np.array([getattr(progress, name) for progress in curves], dtype=np.float64)
    return np.array([part.mean() for part in np.array_split(values, min(10, len(values)))])


def _steps_of(curves: Sequence[Progress], tenth: int) -> str:
    part = np.array_split(np.arange(len(curves)), min(10, len(curves)))[tenth]
    # After a checkpoint the curve does not begin at 0. All updates are of the same number of steps.
    update = (curves[-1].steps - curves[0].steps) // max(len(curves) - 1, 1) or curves[0].steps
    return f"steps {curves[part[0]].steps - update:,} to {curves[part[-1]].steps:,}"


def _collapsed(curves: Sequence[Progress]) -> str:
    spread = _tenths(curves, "multiplier_sd")[-1]
    if spread >= SPREAD_LOW:
        return ""
    return (
        f"The actions have collapsed: lately the multiplier spreads by only {spread:.3f} "
        f"(limit {SPREAD_LOW}) around {_tenths(curves, 'multiplier_mean')[-1]:.2f}, so the policy decides nothing "
        f"and explores nothing; raise the entropy weight or lower the learning rate of {curves[0].learning_rate:.1e}"
    )


def _at_a_bound(curves: Sequence[Progress]) -> str:
    mean = _tenths(curves, "multiplier_mean")[-1]
    if mean <= MULTIPLIER_LOW + BOUND_NEAR:
        bound = MULTIPLIER_LOW
        remedy = (
            "it has learned not to trade, which is right where nothing is left after costs; "
            "otherwise check signals and costs, and raise the entropy weight"
        )
    elif mean >= MULTIPLIER_HIGH - BOUND_NEAR:
        bound = MULTIPLIER_HIGH
        remedy = (
            "it wants more than the bound allows; raise the environment's risk aversion, "
            "or the base fraction of the sizing chain if it is meant to risk more"
        )
    else:
        return ""
    return f"The multiplier is stuck at its bound {bound:g} (lately {mean:.3f} on average): {remedy}"


def _without_entropy(curves: Sequence[Progress]) -> str:
    entropy = _tenths(curves, "entropy")[-1]
    if entropy >= ENTROPY_LOW:
        return ""
    return (
        f"The entropy has collapsed to {entropy:.2f} nats (limit {ENTROPY_LOW:g}): the policy explores nothing "
        "any more and can learn nothing new; raise the entropy weight, or lower the learning rate of "
        f"{curves[0].learning_rate:.1e}"
    )


def _exploding(curves: Sequence[Progress]) -> str:
    tenths = _tenths(curves, "kl")
    if tenths.max() <= KL_HIGH:
        return ""
    return (
        f"The KL divergence explodes: {tenths.max():,.3f} per update over {_steps_of(curves, int(tenths.argmax()))} "
        f"(limit {KL_HIGH}, healthy about 0.01), so each update throws away what the one before learned; "
        f"lower the learning rate of {curves[0].learning_rate:.1e}, the epochs or the target KL"
    )


def _clipped(curves: Sequence[Progress]) -> str:
    tenths = _tenths(curves, "clip_fraction")
    if tenths.max() <= CLIP_HIGH:
        return ""
    return (
        f"{tenths.max():.0%} of the samples were clipped over {_steps_of(curves, int(tenths.argmax()))} "
        f"(limit {CLIP_HIGH:.0%}) and taught nothing: the updates are too large; "
        f"lower the learning rate of {curves[0].learning_rate:.1e} or the epochs"
    )


def _misled(curves: Sequence[Progress]) -> str:
    tenths = _tenths(curves, "explained_variance")
    if (tenths[5:] >= EXPLAINED_LOW).any():
        return ""
    return (
        f"The critic is worse than no critic: explained variance {tenths[5:].mean():.2f} over the second half of the "
        f"training, never above {EXPLAINED_LOW}; check that rewards have no extreme values, lower the learning rate "
        f"of {curves[0].learning_rate:.1e}, or give the critic's error more weight"
    )


def _no_better(curves: Sequence[Progress]) -> str:
    tenths = _tenths(curves, "reward")
    if tenths[-1] > tenths[0]:
        return ""
    return (
        f"The reward is no better at the end than at the start: {tenths[-1]:+.4f} per step over the last tenth, "
        f"{tenths[0]:+.4f} over the first; train for more steps or with another learning rate than "
        f"{curves[0].learning_rate:.1e}, or accept that this market has nothing to teach"
    )
