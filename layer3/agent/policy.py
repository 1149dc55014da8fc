"""A trained policy's inference in numpy; layer3/agent/policy_file.py writes it down and reads it.

A policy has one or more members, networks of one shape. Each one is
``clip((x - mean) / std) -> tanh -> tanh -> (m, log s)``, log s clipped, and its multiplier is
``2 sigmoid(u)`` with ``u ~ Normal(m, s)``: a logit-normal on [0, 2] (Aitchison & Shen 1980,
Biometrika 67, 261-272). A member answers its median ``2 sigmoid(m)``, the policy the mean of
its members' answers.

The confidence says how much of the range [0, 2] the answer leaves open. Of several members it is
their agreement: 1 minus the standard deviation of their multipliers, which is at most 1 (half of
them at each end; Popoviciu 1935). Of a single member it is how narrow its own distribution is:
1 minus the distance between its quartiles, which is 1 for the uniform distribution on [0, 2], and
0 where it is even wider. A quantile of an increasing function of u is that function of u's
quantile, so the quartiles are ``2 sigmoid(m +- 0.6745 s)``. In either case the order is what counts:
the higher the confidence, the closer the answer is to the best one and to what the same training on
other bars would have answered (tests/agent/test_confidence.py). It is not a probability.

Everything is computed in float64 and answered as float32. A product's last digits depend on the
processor, which chooses the order of its sums; nine digits further up they do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layer3 import contract
from layer3.errors import PolicyError

__all__ = ["LOG_SD_HIGH", "LOG_SD_LOW", "OBSERVATION_CLIP", "Policy", "stack"]

Floats = NDArray[np.float32]
_Doubles = NDArray[np.float64]

#: Normalised observations are clipped to +- this, in training and in inference alike.
OBSERVATION_CLIP: Final = 10.0
#: Bounds of the logarithm of u's standard deviation, in training and in inference alike.
LOG_SD_LOW: Final = -4.0
LOG_SD_HIGH: Final = 1.5

_TENSORS: Final = ("mean", "std", "w1", "b1", "w2", "b2", "w3", "b3")
#: 2 sigmoid(u) = 1 + tanh(u / 2), which no u overflows; 1 is half the multiplier's range.
_HALF_RANGE: Final = contract.MULTIPLIER_HIGH / 2.0
#: Half of the standard normal distribution's upper quartile: u's quartiles are m / 2 +- this times s, doubled.
_HALF_GAP: Final = 0.5 * 0.6744897501960817
#: How many standard deviations a feature's mean may be away from 0: of a float64's 16 digits, five are lost then.
_FARTHEST_MEAN: Final = 1e5
_ONE_STATE: Final = (contract.STATE_DIM,)
#: Float64 in a processor's cache line.
_LINE: Final = 8
#: Its hyperbolic tangent is 1 to the last bit.
_SATURATED: Final = 40.0
#: States that go through a network together: their hidden layers stay in the cache.
_BLOCK: Final = 256


class _Network(NamedTuple):
    """One member's tensors as inference wants them, float64: ``w1`` and ``b1`` normalise too, and the outputs are
    m / 2 and log s. The first hidden layer has one unit more, which is always 1: its row of ``w2`` holds b2, and an
    addition is saved that would take a twentieth of one answer's time.
    """

    low: _Doubles
    high: _Doubles
    w1: _Doubles
    b1: _Doubles
    w2: _Doubles
    w3: _Doubles
    b3: tuple[float, float]


@dataclass(frozen=True)
class Policy:
    """Weights ready for inference; whoever makes one with wrong tensors gets a :class:`PolicyError`.

    ``tensors`` holds float32 arrays of K >= 1 members (see :func:`stack`): ``mean`` and ``std`` of
    shape (K, 16), ``w1`` (K, 16, h), ``b1`` (K, h), ``w2`` (K, h, h), ``b2`` (K, h), ``w3`` (K, h, 2),
    ``b3`` (K, 2). They must not change afterwards: what inference reads is derived from them here.
    """

    tensors: Mapping[str, Floats]
    manifest: Mapping[str, Any]
    _networks: tuple[_Network, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_tensors(self.tensors)
        networks = tuple(_prepare({name: a[k] for name, a in self.tensors.items()}) for k in range(self.members))
        object.__setattr__(self, "_networks", networks)

    @property
    def model_id(self) -> str:
        """Name of the policy: the day its data end and the head of its weights' sha256, after ``synthetic-``
        where the data were simulated, so that it is seen wherever the policy is named."""
        return str(self.manifest["model_id"])

    @property
    def members(self) -> int:
        """How many networks answer together."""
        return len(self.tensors["b1"])

    def act(self, states: ArrayLike) -> tuple[Floats, Floats]:
        """Multiplier in [0, 2] and confidence in [0, 1], each of shape ``(...)``, for states ``(..., 16)``.

        The same state gives the same bytes, alone or in a batch, whatever vector instructions the
        processor has: sums in another order differ by 1e-15, and what is answered is rounded to
        float32. (A difference can show only where a number lies on the edge between two float32,
        about once in ten million answers.)
        """
        x = np.asarray(states, dtype=np.float32)
        if x.shape == _ONE_STATE:
            outputs = []
            for network in self._networks:
                half_m, log_s = _hidden(network, x).dot(network.w3).tolist()
                outputs.append((half_m + network.b3[0], log_s + network.b3[1]))
            return _answer(outputs)
        halves_m, logs_s = self._outputs(x)
        multipliers = _median(halves_m)
        if len(self._networks) == 1:
            half_gap = np.tanh(_HALF_GAP * np.exp(np.clip(logs_s[0], LOG_SD_LOW, LOG_SD_HIGH)))
            left_open = _between_quartiles(np.tanh(halves_m[0]), half_gap)
        else:
            left_open = multipliers.std(axis=0) / _HALF_RANGE
        confidence = np.maximum(1.0 - left_open, 0.0)
        return multipliers.mean(axis=0).astype(np.float32), confidence.astype(np.float32)

    def multipliers(self, states: ArrayLike) -> Floats:
        """Each member's own multiplier in [0, 2], of shape ``(K, ...)``, for states ``(..., 16)``."""
        return _median(self._outputs(np.asarray(states, dtype=np.float32))[0]).astype(np.float32)

    def _outputs(self, x: Floats) -> tuple[_Doubles, _Doubles]:
        """m / 2 and log s of every member, each (K, ...)."""
        if x.shape[-1:] != _ONE_STATE:  # a lone number would broadcast to 16 equal ones
            raise ValueError(f"states have shape {x.shape}, expected (..., {contract.STATE_DIM})")
        rows = x.reshape(-1, contract.STATE_DIM)
        outputs = np.empty((len(self._networks), len(rows), 2))
        for network, own in zip(self._networks, outputs, strict=True):
            for first in range(0, len(rows), _BLOCK):
                block = slice(first, first + _BLOCK)
                np.dot(_hidden(network, rows[block]), network.w3, out=own[block])
            own += network.b3
        shaped = outputs.reshape(self.members, *x.shape[:-1], 2)
        return shaped[..., 0], shaped[..., 1]


def stack(members: Sequence[Mapping[str, ArrayLike]]) -> dict[str, Floats]:
    """Tensors of a policy from those of its members, which have no leading axis: ``mean`` (16,), ``w1`` (16, h), ...

    Raises
    ------
    PolicyError : there are no members, or their tensors have other names or shapes than the first one's
    """
    if not members:
        raise PolicyError("a policy needs at least one member, got none")
    arrays = [{name: np.asarray(tensor, dtype=np.float32) for name, tensor in member.items()} for member in members]
    for number, member in enumerate(arrays):
        _check_names(member, f"member {number}'s tensors")
        for name in _TENSORS:
            if member[name].shape != arrays[0][name].shape:
                raise PolicyError(
                    f"member {number}'s tensor {name} has shape {member[name].shape}, member 0's "
                    f"{arrays[0][name].shape}: the members of one policy must have one width"
                )
    return {name: np.stack([member[name] for member in arrays]) for name in _TENSORS}


def _prepare(tensors: Mapping[str, Floats]) -> _Network:
    """The network of one member's tensors; a PolicyError if its normalisation leaves a float64 too few digits."""
    mean, std, w1, b1, w2, b2, w3, b3 = (tensors[name].astype(np.float64) for name in _TENSORS)
    away = float((np.abs(mean) / std).max())
    if away > _FARTHEST_MEAN:
        raise PolicyError(
            f"policy tensor std holds numbers from {std.min():.1e} to {std.max():.1e}, and a mean is {away:.1e} of "
            f"them away from 0 (allowed {_FARTHEST_MEAN:.0e}): the answer would lose its digits; train it again"
        )
    reach = OBSERVATION_CLIP * std
    # (clip(x, mean +- reach) - mean) / std @ w1 + b1, with the subtraction and the division done here.
    w1 /= std[:, np.newaxis]
    b1 -= mean.dot(w1)
    w1 = np.pad(w1, ((0, 0), (0, 1)))
    b1 = np.append(b1, _SATURATED)
    w2 = np.vstack([w2, b2])
    m, log_s = b3.tolist()
    w1, w2, w3 = (_aligned(w) for w in (w1, w2, w3 * np.array([0.5, 1.0])))
    return _Network(mean - reach, mean + reach, w1, b1, w2, w3, (0.5 * m, log_s))


def _aligned(weights: _Doubles) -> _Doubles:
    """A copy that begins with a cache line, which the product with one state reads in a fifth less time."""
    room = np.empty(weights.size + _LINE, dtype=np.float64)
    first = -(room.ctypes.data // room.itemsize) % _LINE
    copy = room[first : first + weights.size].reshape(weights.shape)
    copy[...] = weights
    return copy


def _hidden(network: _Network, states: Floats) -> _Doubles:
    """The second hidden layer, (h,) or (n, h), for states (16,) or (n, 16)."""
    low, high, w1, b1, w2, _, _ = network
    # Not np.clip and not np.dot, whose overheads exceed a small layer's arithmetic.
    x: _Doubles = np.maximum(states, low)
    np.minimum(x, high, out=x)
    x = x.dot(w1)
    x += b1
    np.tanh(x, out=x)
    x = x.dot(w2)
    np.tanh(x, out=x)
    return x


def _answer(outputs: Sequence[tuple[float, float]]) -> tuple[Any, Any]:
    """What ``act`` makes of every member's m / 2 and log s for one state.

    In plain numbers, with which Python computes several times as fast as numpy with arrays of one.
    """
    if len(outputs) == 1:
        half_m, log_s = outputs[0]
        middle = math.tanh(half_m)
        multiplier = _HALF_RANGE * (1.0 + middle)
        # Written so that NaN stays NaN.
        bounded = LOG_SD_LOW if log_s < LOG_SD_LOW else LOG_SD_HIGH if log_s > LOG_SD_HIGH else log_s
        left_open = _between_quartiles(middle, math.tanh(_HALF_GAP * math.exp(bounded)))
    else:
        multipliers = [_HALF_RANGE * (1.0 + math.tanh(half_m)) for half_m, _ in outputs]
        multiplier = sum(multipliers) / len(multipliers)
        left_open = math.sqrt(sum((own - multiplier) ** 2 for own in multipliers) / len(multipliers)) / _HALF_RANGE
    return np.float32(multiplier), np.float32(0.0 if left_open > 1.0 else 1.0 - left_open)


def _median(half_m: _Doubles) -> _Doubles:
    """Multipliers of m / 2."""
    multipliers: _Doubles = _HALF_RANGE * (1.0 + np.tanh(half_m))
    return multipliers


def _between_quartiles(middle: Any, half_gap: Any) -> Any:
    """tanh(a + g) - tanh(a - g) of tanh(a) and tanh(g): the quartiles' distance, in halves of the range."""
    return 2.0 * half_gap * (1.0 - middle * middle) / (1.0 - (middle * half_gap) ** 2)


def _check_names(tensors: Mapping[str, Any], what: str) -> None:
    if set(tensors) != set(_TENSORS):
        raise PolicyError(f"{what} are {sorted(tensors)}, expected {sorted(_TENSORS)}")


def _check_tensors(tensors: Mapping[str, Floats]) -> None:
    _check_names(tensors, "policy tensors")
    if tensors["b1"].ndim != 2 or 0 in tensors["b1"].shape:
        raise PolicyError(
            f"policy tensor b1 has shape {tensors['b1'].shape}, expected (members, hidden units), at least one of "
            "each: layer3.agent.policy.stack makes the tensors of a policy from those of its members"
        )
    members, hidden = tensors["b1"].shape
    shapes = {
        "mean": (members, contract.STATE_DIM),
        "std": (members, contract.STATE_DIM),
        "w1": (members, contract.STATE_DIM, hidden),
        "b1": (members, hidden),
        "w2": (members, hidden, hidden),
        "b2": (members, hidden),
        "w3": (members, hidden, 2),
        "b3": (members, 2),
    }
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float32:
            raise PolicyError(f"policy tensor {name} is {tensor.dtype}{tensor.shape}, expected float32{shape}")
        if not np.isfinite(tensor).all():
            raise PolicyError(f"policy tensor {name} holds numbers that are not finite")
    if not (tensors["std"] > 0).all():
        raise PolicyError("policy tensor std must be positive")
