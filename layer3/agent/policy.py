"""A trained policy as a file, and its inference in numpy.

A policy is a folder with two files: ``policy.safetensors`` (weights and the observation's
normalisation) and ``manifest.json`` (contract version, architecture, data, seed, metrics, and
golden pairs of state and answer). Nothing is pickled; loading verifies the hash, the contract,
the shapes and the golden pairs, or refuses.

The network is ``clip((x - mean) / std) -> tanh -> tanh -> softplus + 1 = (alpha, beta)`` of a
Beta distribution on [0, 1], stretched to the multiplier's [0, 2]; the answer is its mean. Its
confidence is ``1 - sd / sd of the uniform distribution``: 0 where the policy knows nothing,
towards 1 where all its mass is at one point.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import ArrayLike, NDArray

from layer3 import contract, storage
from layer3.errors import ContractError, PolicyError

__all__ = ["GOLDEN_PAIRS", "OBSERVATION_CLIP", "PARITY", "Policy", "golden_pairs", "load_policy", "save_policy"]

#: Normalised observations are clipped to +- this, in training and in inference alike.
OBSERVATION_CLIP: Final = 10.0
#: Largest difference allowed between a golden pair and what a server answers.
PARITY: Final = 1e-5
GOLDEN_PAIRS: Final = 32

_WEIGHTS: Final = "policy.safetensors"
_MANIFEST: Final = "manifest.json"
_TENSORS: Final = ("mean", "std", "w1", "b1", "w2", "b2", "w3", "b3")
_UNIFORM_SD: Final = math.sqrt(1.0 / 12.0)


@dataclass(frozen=True)
class Policy:
    """Weights ready for inference.

    ``tensors`` holds float32 arrays: ``mean`` and ``std`` of shape (16,), ``w1`` (16, h),
    ``b1`` (h,), ``w2`` (h, h), ``b2`` (h,), ``w3`` (h, 2), ``b3`` (2,).
    """

    tensors: Mapping[str, NDArray[np.float32]]
    manifest: Mapping[str, Any]

    @property
    def model_id(self) -> str:
        """Name of the policy: the day its data end and the head of its weights' sha256, after ``synthetic-``
        where the data were simulated, so that it is seen wherever the policy is named."""
        return str(self.manifest["model_id"])

    def act(self, states: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Multiplier in [0, 2] and confidence in [0, 1], each of shape ``(...)``, for states ``(..., 16)``."""
        t = self.tensors
        x = np.asarray(states, dtype=np.float32)
        if x.shape[-1:] != (contract.STATE_DIM,):  # a lone number would broadcast to 16 equal ones
            raise ValueError(f"states have shape {x.shape}, expected (..., {contract.STATE_DIM})")
        x = np.clip((x - t["mean"]) / t["std"], -OBSERVATION_CLIP, OBSERVATION_CLIP)
        x = np.tanh(x @ t["w1"] + t["b1"])
        x = np.tanh(x @ t["w2"] + t["b2"])
        shape = np.logaddexp(np.float32(0.0), x @ t["w3"] + t["b3"]) + np.float32(1.0)
        alpha, beta = shape[..., 0], shape[..., 1]
        total = alpha + beta
        mean = alpha / total
        deviation = np.sqrt(mean * (1.0 - mean) / (total + 1.0))
        confidence = np.clip(1.0 - deviation / np.float32(_UNIFORM_SD), 0.0, 1.0)
        return (contract.MULTIPLIER_HIGH * mean).astype(np.float32), confidence.astype(np.float32)

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


def golden_pairs(policy: Policy, states: NDArray[np.float32]) -> list[dict[str, Any]]:
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


def save_policy(
    folder: Path, tensors: Mapping[str, NDArray[np.float32]], details: Mapping[str, Any], states: NDArray[np.float32]
) -> Policy:
    """Write ``policy.safetensors`` and ``manifest.json`` into ``folder`` and return the policy.

    ``details`` must hold ``data`` (with ``end``, an ISO time); everything in it goes into the
    manifest as it is. ``states`` (n, 16) are real observations to draw golden pairs from. The
    same inputs give the same bytes.
    """
    weights = {name: np.ascontiguousarray(tensors[name], dtype=np.float32) for name in _TENSORS}
    _check_tensors(weights)
    blob = safetensors.numpy.save(weights, metadata={"contract": contract.VERSION})
    digest = hashlib.sha256(blob).hexdigest()
    manifest: dict[str, Any] = {
        **details,
        "model_id": _model_id(details, digest),
        "contract": contract.VERSION,
        "policy_sha256": digest,
        "architecture": {
            "layers": [contract.STATE_DIM, weights["w1"].shape[1], weights["w2"].shape[1], 2],
            "activation": "tanh",
            "distribution": "beta on [0, 2]",
            "observation_clip": OBSERVATION_CLIP,
        },
        # For readers; what is used are the tensors of the same names.
        "normalisation": {name: [float(v) for v in weights[name]] for name in ("mean", "std")},
    }
    manifest["golden"] = golden_pairs(Policy(weights, manifest), states)
    text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False)
    # The weights first: a manifest without its weights would be a policy that cannot load.
    storage.write_bytes(str(folder / _WEIGHTS), blob)
    storage.write_bytes(str(folder / _MANIFEST), text.encode())
    return Policy(weights, manifest)


def _model_id(details: Mapping[str, Any], digest: str) -> str:
    label = "synthetic-" if details.get("synthetic") else ""
    return f"{label}{str(details['data']['end'])[:10].replace('-', '')}-{digest[:12]}"


def load_policy(folder: Path) -> Policy:
    """Read and verify a policy folder.

    Raises
    ------
    PolicyError : a file is missing or damaged, or the golden pairs are not reproduced
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
    missing = {"contract", "policy_sha256", "model_id", "golden"} - set(manifest)
    if missing:
        raise PolicyError(f"{manifest_path} lacks {', '.join(sorted(missing))}: release or train it again")
    if manifest["contract"] != contract.VERSION:
        raise ContractError(theirs=str(manifest["contract"]), ours=contract.VERSION, where=f"policy {folder}")
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
    _check_tensors(tensors)
    policy = Policy(tensors, manifest)
    try:
        policy.self_test()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PolicyError(
            f"{manifest_path}: golden pairs are malformed ({error!r}): release or train it again"
        ) from error
    return policy


def _check_tensors(tensors: Mapping[str, NDArray[np.float32]]) -> None:
    if set(tensors) != set(_TENSORS):
        raise PolicyError(f"policy tensors are {sorted(tensors)}, expected {sorted(_TENSORS)}")
    hidden = tensors["b1"].size
    shapes = {
        "mean": (contract.STATE_DIM,),
        "std": (contract.STATE_DIM,),
        "w1": (contract.STATE_DIM, hidden),
        "b1": (hidden,),
        "w2": (hidden, hidden),
        "b2": (hidden,),
        "w3": (hidden, 2),
        "b3": (2,),
    }
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float32:
            raise PolicyError(f"policy tensor {name} is {tensor.dtype}{tensor.shape}, expected float32{shape}")
        if not np.isfinite(tensor).all():
            raise PolicyError(f"policy tensor {name} holds numbers that are not finite")
    if not (tensors["std"] > 0).all():
        raise PolicyError("policy tensor std must be positive")
