"""A trained policy as a file, and its inference in numpy.

A policy is a folder with two files: ``policy.safetensors`` (weights and the observation's
normalisation) and ``manifest.json`` (contract version, architecture, data, seed, metrics, and
golden pairs of state and answer). Nothing is pickled; loading verifies the hash, the contract,
the kind of network, the shapes and the golden pairs, or refuses.

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
quantile, so the quartiles are ``2 sigmoid(m +- 0.6745 s)``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import ArrayLike, NDArray

from layer3 import contract, storage
from layer3.errors import ContractError, PolicyError

__all__ = [
    "GOLDEN_PAIRS",
    "LOG_SD_HIGH",
    "LOG_SD_LOW",
    "OBSERVATION_CLIP",
    "PARITY",
    "Policy",
    "golden_pairs",
    "load_policy",
    "save_policy",
    "stack",
]

Floats = NDArray[np.float32]

#: Normalised observations are clipped to +- this, in training and in inference alike.
OBSERVATION_CLIP: Final = 10.0
#: Bounds of the logarithm of u's standard deviation, in training and in inference alike.
LOG_SD_LOW: Final = -4.0
LOG_SD_HIGH: Final = 1.5
#: Largest difference allowed between a golden pair and what a server answers.
PARITY: Final = 1e-5
GOLDEN_PAIRS: Final = 32

_WEIGHTS: Final = "policy.safetensors"
_MANIFEST: Final = "manifest.json"
_TENSORS: Final = ("mean", "std", "w1", "b1", "w2", "b2", "w3", "b3")
_DISTRIBUTION: Final = "logit-normal on [0, 2]"
#: 2 sigmoid(u) = 1 + tanh(u / 2), which no u overflows; 1 is half the multiplier's range.
_HALF_RANGE: Final = contract.MULTIPLIER_HIGH / 2.0
#: The standard normal distribution's upper quartile.
_UPPER_QUARTILE: Final = 0.6744897501960817


class _Network(NamedTuple):
    """Tensors as inference wants them, of one member or of all along leading axes.

    ``reach`` is ``OBSERVATION_CLIP`` standard deviations; ``w1`` is divided by ``std``; the outputs
    are m / 2 and log s.
    """

    mean: Floats
    minus_reach: Floats
    reach: Floats
    w1: Floats
    b1: Floats
    w2: Floats
    b2: Floats
    w3: Floats
    b3: Floats


@dataclass(frozen=True)
class Policy:
    """Weights ready for inference; whoever makes one with wrong tensors gets a :class:`PolicyError`.

    ``tensors`` holds float32 arrays of K >= 1 members (see :func:`stack`): ``mean`` and ``std`` of
    shape (K, 16), ``w1`` (K, 16, h), ``b1`` (K, h), ``w2`` (K, h, h), ``b2`` (K, h), ``w3`` (K, h, 2),
    ``b3`` (K, 2). They must not change afterwards: what inference reads is derived from them here.
    """

    tensors: Mapping[str, Floats]
    manifest: Mapping[str, Any]
    _together: _Network = field(init=False, repr=False, compare=False)
    _apart: tuple[_Network, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_tensors(self.tensors)
        network = _prepare(self.tensors)
        # Vectors get an axis of one row, so that they broadcast as the matrix products do.
        together = _Network(*(a[:, np.newaxis] if a.ndim == 2 else a for a in network))
        object.__setattr__(self, "_together", together)
        object.__setattr__(self, "_apart", tuple(_Network(*(a[k] for a in network)) for k in range(self.members)))

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

        One state alone gives the same bytes every time, and so does a batch. Between the two, and
        between batches of different sizes, the last digits may differ (by about 1e-6): matrix
        products of different shapes add in different orders.
        """
        x = _as_states(states)
        if self.members == 1:
            outputs = _forward(self._apart[0], x, np.dot if x.ndim == 1 else np.matmul)
            return _median(outputs), _narrowness(outputs)
        multipliers = _median(self._outputs(x))
        mean = np.add.reduce(multipliers, axis=0) / np.float32(self.members)
        away = multipliers - mean
        deviation = np.sqrt(np.add.reduce(away * away, axis=0) / np.float32(self.members))
        return mean, _confidence(deviation)

    def multipliers(self, states: ArrayLike) -> Floats:
        """Each member's own multiplier in [0, 2], of shape ``(K, ...)``, for states ``(..., 16)``."""
        return _median(self._outputs(_as_states(states)))

    def _outputs(self, x: Floats) -> Floats:
        """m / 2 and log s of every member, (K, ..., 2)."""
        if x.ndim == 1:  # one call for all members, whose own calls would cost more than their arithmetic
            return _forward(self._together, x, np.matmul)[:, 0]
        # One member after the other, whose hidden layers then stay in the cache.
        return np.stack([_forward(network, x, np.matmul) for network in self._apart])

    def self_test(self) -> None:
        """Raise :class:`PolicyError` unless the golden pairs are reproduced within ``PARITY``."""
        golden = self.manifest["golden"]
        states = np.array([pair["state"] for pair in golden], dtype=np.float32)
        if len(golden) != GOLDEN_PAIRS or states.shape != (GOLDEN_PAIRS, contract.STATE_DIM):
            raise PolicyError(f"{_MANIFEST}: expected {GOLDEN_PAIRS} golden pairs of {contract.STATE_DIM} numbers")
        multiplier, confidence = self.act(states)
        for name, got in (("multiplier", multiplier), ("confidence", confidence)):
            expected = np.array([pair[name] for pair in golden], dtype=np.float64)
            worst = float(np.max(np.abs(got - expected)))
            if not worst <= PARITY:
                raise PolicyError(
                    f"policy {self.model_id}: its own golden pairs come out {worst:.2e} off in {name} "
                    f"(allowed {PARITY:.0e}): the file does not hold the network that was trained"
                )


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
    """What :class:`_Network` holds, each array with its leading axis K."""
    std = tensors["std"]
    with np.errstate(all="ignore"):
        reach = np.float32(OBSERVATION_CLIP) * std
        # A division less in every answer. The mean is not moved into b1: with a small std it
        # would be a difference of large numbers.
        w1 = tensors["w1"] / std[:, :, np.newaxis]
    if not (np.isfinite(reach).all() and np.isfinite(w1).all()):
        raise PolicyError(
            f"policy tensor std holds numbers from {std.min():.1e} to {std.max():.1e}: {OBSERVATION_CLIP:g} std or "
            "w1 / std is not finite; train it again"
        )
    half_m = np.array([0.5, 1.0], dtype=np.float32)
    w3, b3 = tensors["w3"] * half_m, tensors["b3"] * half_m
    return _Network(tensors["mean"], -reach, reach, w1, tensors["b1"], tensors["w2"], tensors["b2"], w3, b3)


def _as_states(states: ArrayLike) -> Floats:
    x = np.asarray(states, dtype=np.float32)
    if x.shape[-1:] != (contract.STATE_DIM,):  # a lone number would broadcast to 16 equal ones
        raise ValueError(f"states have shape {x.shape}, expected (..., {contract.STATE_DIM})")
    return x


def _forward(network: _Network, states: Floats, product: Callable[[Floats, Floats], Any]) -> Floats:
    """m / 2 and log s, ``(..., 2)``. ``product`` is ``np.matmul``, or ``np.dot``, which starts faster, for one
    state through one member."""
    mean, low, high, w1, b1, w2, b2, w3, b3 = network
    x: Floats = states - mean
    np.maximum(x, low, out=x)
    np.minimum(x, high, out=x)
    x = product(x, w1)
    x += b1
    np.tanh(x, out=x)
    x = product(x, w2)
    x += b2
    np.tanh(x, out=x)
    x = product(x, w3)
    x += b3
    return x


def _median(outputs: Any) -> Floats:
    """Multiplier ``(...)`` of outputs ``(..., 2)``."""
    # [()] makes a plain number of an array without axes: numpy computes several times as fast with it.
    multiplier: Floats = _HALF_RANGE * (1.0 + np.tanh(outputs[..., 0][()]))
    return multiplier


def _narrowness(outputs: Floats) -> Floats:
    """Confidence ``(...)`` of a single member's outputs ``(..., 2)``."""
    half_m, log_s = outputs[..., 0][()], outputs[..., 1][()]
    # Not np.clip, whose overhead exceeds a layer's arithmetic.
    half_gap = (0.5 * _UPPER_QUARTILE) * np.exp(np.minimum(np.maximum(log_s, LOG_SD_LOW), LOG_SD_HIGH))
    between_quartiles = _HALF_RANGE * np.abs(np.tanh(half_m + half_gap) - np.tanh(half_m - half_gap))
    return _confidence(between_quartiles)


def _confidence(open_range: Any) -> Floats:
    """1 where nothing of the range is left open, 0 where half of it or more is."""
    confidence: Floats = np.maximum(1.0 - open_range / _HALF_RANGE, 0.0)
    return confidence


def golden_pairs(policy: Policy, states: Floats) -> list[dict[str, Any]]:
    """The policy's answers to ``GOLDEN_PAIRS`` of ``states`` (n, 16), spread evenly, as the manifest keeps them.

    Spread, because an episode starts flat: the first states hold no position, and would leave
    the weights of everything about positions untested.
    """
    if len(states) < GOLDEN_PAIRS:
        raise PolicyError(f"{GOLDEN_PAIRS} states are needed for golden pairs, got {len(states)}")
    chosen = states[np.linspace(0, len(states) - 1, GOLDEN_PAIRS).astype(int)]
    multiplier, confidence = policy.act(chosen)
    return [
        {"state": [float(v) for v in state], "multiplier": float(m), "confidence": float(c)}
        for state, m, c in zip(chosen, multiplier, confidence, strict=True)
    ]


def save_policy(folder: Path, tensors: Mapping[str, Floats], details: Mapping[str, Any], states: Floats) -> Policy:
    """Write ``policy.safetensors`` and ``manifest.json`` into ``folder`` and return the policy.

    ``tensors`` are those of :class:`Policy`, with a leading axis of members. ``details`` must hold
    ``data`` (with ``end``, an ISO time); everything in it goes into the manifest as it is.
    ``states`` (n, 16) are real observations to draw golden pairs from. The same inputs give the
    same bytes.
    """
    _check_names(tensors, "policy tensors")
    draft = Policy({name: np.ascontiguousarray(tensors[name], dtype=np.float32) for name in _TENSORS}, {})
    blob = safetensors.numpy.save(dict(draft.tensors), metadata={"contract": contract.VERSION})
    digest = hashlib.sha256(blob).hexdigest()
    manifest: dict[str, Any] = {
        **details,
        "model_id": _model_id(details, digest),
        "contract": contract.VERSION,
        "policy_sha256": digest,
        "architecture": _architecture(draft.tensors),
        # For readers, a list for each member; what is used are the tensors of the same names.
        "normalisation": {name: draft.tensors[name].tolist() for name in ("mean", "std")},
        "golden": golden_pairs(draft, states),
    }
    text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False)
    # The weights first: a manifest without its weights would be a policy that cannot load.
    storage.write_bytes(str(folder / _WEIGHTS), blob)
    storage.write_bytes(str(folder / _MANIFEST), text.encode())
    return replace(draft, manifest=manifest)


def _architecture(tensors: Mapping[str, Floats]) -> dict[str, Any]:
    members, hidden = tensors["b1"].shape
    return {
        "members": members,
        "layers": [contract.STATE_DIM, hidden, hidden, 2],
        "activation": "tanh",
        "distribution": _DISTRIBUTION,
        "log_sd_bounds": [LOG_SD_LOW, LOG_SD_HIGH],
        "observation_clip": OBSERVATION_CLIP,
    }


def _model_id(details: Mapping[str, Any], digest: str) -> str:
    label = "synthetic-" if details.get("synthetic") else ""
    return f"{label}{str(details['data']['end'])[:10].replace('-', '')}-{digest[:12]}"


def load_policy(folder: Path) -> Policy:
    """Read and verify a policy folder.

    Raises
    ------
    PolicyError : a file is missing or damaged, holds another kind of network than this program
        computes, or does not reproduce its golden pairs
    ContractError : it was trained under another state contract
    """
    manifest_path, weights_path = folder / _MANIFEST, folder / _WEIGHTS
    try:
        manifest = json.loads(manifest_path.read_bytes())
        blob = weights_path.read_bytes()
    except OSError as error:
        raise PolicyError(f"no policy at {folder}: {error.strerror}: {error.filename}") from error
    except ValueError as error:
        raise PolicyError(f"{manifest_path} is not JSON ({error}): release or train it again") from error
    if not isinstance(manifest, dict):
        raise PolicyError(f"{manifest_path} holds a {type(manifest).__name__}, no object: release or train it again")
    missing = {"contract", "policy_sha256", "model_id", "architecture", "golden"} - set(manifest)
    if missing:
        raise PolicyError(f"{manifest_path} lacks {', '.join(sorted(missing))}: release or train it again")
    if manifest["contract"] != contract.VERSION:
        raise ContractError(theirs=str(manifest["contract"]), ours=contract.VERSION, where=f"policy {folder}")
    architecture = manifest["architecture"]
    distribution = architecture.get("distribution") if isinstance(architecture, dict) else None
    if distribution != _DISTRIBUTION:
        raise PolicyError(
            f"{manifest_path}: its architecture answers by the distribution {distribution!r}, this program by "
            f"{_DISTRIBUTION!r}: another version of the program trained it; train it again"
        )
    digest = hashlib.sha256(blob).hexdigest()
    if digest != manifest["policy_sha256"]:
        raise PolicyError(
            f"{weights_path} has sha256 {digest[:12]}…, its manifest says {str(manifest['policy_sha256'])[:12]}…: "
            "the file was changed or cut short; copy it again"
        )
    try:
        tensors = safetensors.numpy.load(blob)
    # A type that numpy does not have (bfloat16) surfaces as a KeyError or a TypeError.
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise PolicyError(f"{weights_path} is not a safetensors file of float32 tensors: {error}") from error
    policy = Policy(tensors, manifest)
    if architecture != _architecture(tensors):
        raise PolicyError(
            f"{manifest_path}: its architecture is {architecture}, but the weights and this program make "
            f"{_architecture(tensors)}: train it again"
        )
    try:
        policy.self_test()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PolicyError(
            f"{manifest_path}: golden pairs are malformed ({error!r}): release or train it again"
        ) from error
    return policy


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
