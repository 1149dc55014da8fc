"""A trained policy as a file: a folder with ``policy.safetensors`` and ``manifest.json``.

The first holds the weights and the observation's normalisation, the second the contract's version, the
architecture, the data, the seed, the metrics, and golden pairs of state and answer. Nothing is pickled;
reading verifies the hash, the contract, the kind of network, the shapes and the golden pairs, or refuses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.numpy

from layer3 import contract, storage
from layer3.agent.policy import LOG_SD_HIGH, LOG_SD_LOW, OBSERVATION_CLIP, Floats, Policy
from layer3.errors import ContractError, PolicyError

__all__ = ["FILES", "GOLDEN_PAIRS", "PARITY", "golden_pairs", "load_policy", "read_policy", "save_policy"]

#: Of a policy's folder, in the order in which they are written: a manifest without its weights would be a policy
#: that cannot load.
FILES: Final = ("policy.safetensors", "manifest.json")
#: Largest difference allowed between a golden pair and what a server answers.
PARITY: Final = 1e-5
GOLDEN_PAIRS: Final = 32

_WEIGHTS, _MANIFEST = FILES
_DISTRIBUTION: Final = "logit-normal on [0, 2]"


def save_policy(folder: Path, tensors: Mapping[str, Floats], details: Mapping[str, Any], states: Floats) -> Policy:
    """Write ``FILES`` into ``folder`` and return the policy.

    ``tensors`` are those of :class:`Policy`, with a leading axis of members. ``details`` must hold
    ``data`` (with ``end``, an ISO time); everything in it goes into the manifest as it is.
    ``states`` (n, 16) are real observations to draw golden pairs from. The same inputs give the
    same bytes.
    """
    draft = Policy({name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}, {})
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
    for name, content in zip(FILES, (blob, text.encode()), strict=True):
        storage.write_bytes(str(folder / name), content)
    return replace(draft, manifest=manifest)


def load_policy(folder: Path) -> Policy:
    """Read and verify a policy folder; errors as :func:`read_policy`, and a PolicyError where a file is missing."""
    try:
        manifest, blob = (folder / _MANIFEST).read_bytes(), (folder / _WEIGHTS).read_bytes()
    except OSError as error:
        raise PolicyError(f"no policy at {folder}: {error.strerror}: {error.filename}") from error
    return read_policy(manifest, blob, str(folder))


def read_policy(manifest_json: bytes, blob: bytes, folder: str) -> Policy:
    """The verified policy of the two files' contents; ``folder`` is where they lie, for the errors.

    Raises
    ------
    PolicyError : a file is damaged, holds another kind of network than this program computes, goes by
        a name that is not its content's, or does not reproduce its golden pairs
    ContractError : it was trained under another state contract
    """
    path = f"{folder}/{_MANIFEST}"
    manifest = _read_manifest(manifest_json, path, folder)
    tensors = _read_weights(blob, str(manifest["policy_sha256"]), f"{folder}/{_WEIGHTS}")
    policy = Policy(tensors, manifest)
    if manifest["architecture"] != _architecture(tensors):
        raise PolicyError(
            f"{path}: its architecture is {manifest['architecture']}, but the weights and this program make "
            f"{_architecture(tensors)}: train it again"
        )
    try:
        _check_golden_pairs(policy)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PolicyError(f"{path}: golden pairs are malformed ({error!r}): release or train it again") from error
    _check_name(manifest, path)
    return policy


def _read_manifest(text: bytes, path: str, folder: str) -> dict[str, Any]:
    """The manifest of a policy that this program can compute, as far as the manifest alone can tell."""
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise PolicyError(f"{path} is not JSON ({error}): release or train it again") from error
    if not isinstance(manifest, dict):
        raise PolicyError(f"{path} holds a {type(manifest).__name__}, no object: release or train it again")
    missing = {"contract", "policy_sha256", "model_id", "architecture", "golden"} - set(manifest)
    if missing:
        raise PolicyError(f"{path} lacks {', '.join(sorted(missing))}: release or train it again")
    if manifest["contract"] != contract.VERSION:
        raise ContractError(theirs=str(manifest["contract"]), ours=contract.VERSION, where=f"policy {folder}")
    architecture = manifest["architecture"]
    distribution = architecture.get("distribution") if isinstance(architecture, dict) else None
    if distribution != _DISTRIBUTION:
        raise PolicyError(
            f"{path}: its architecture answers by the distribution {distribution!r}, this program by "
            f"{_DISTRIBUTION!r}: another version of the program trained it; train it again"
        )
    return manifest


def _read_weights(blob: bytes, expected: str, path: str) -> dict[str, Floats]:
    digest = hashlib.sha256(blob).hexdigest()
    if digest != expected:
        raise PolicyError(
            f"{path} has sha256 {digest[:12]}…, its manifest says {expected[:12]}…: "
            "the file was changed or cut short; copy it again"
        )
    try:
        tensors: dict[str, Floats] = safetensors.numpy.load(blob)
    # A type that numpy does not have (bfloat16) surfaces as a KeyError or a TypeError.
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise PolicyError(f"{path} is not a safetensors file of float32 tensors: {error}") from error
    return tensors


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


def _check_name(manifest: Mapping[str, Any], path: str) -> None:
    try:
        model_id = _model_id(manifest, manifest["policy_sha256"])
    except (KeyError, TypeError) as error:
        raise PolicyError(f"{path} does not say when its data end ({error!r}): release or train it again") from error
    if manifest["model_id"] != model_id:
        raise PolicyError(
            f"{path}: its model id is {manifest['model_id']!r}, that of its content {model_id!r}: "
            "the file was changed; copy it again"
        )


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


def _check_golden_pairs(policy: Policy) -> None:
    """A PolicyError unless ``policy`` reproduces the golden pairs of its manifest within ``PARITY``."""
    golden = policy.manifest["golden"]
    states = np.array([pair["state"] for pair in golden], dtype=np.float32)
    if len(golden) != GOLDEN_PAIRS or states.shape != (GOLDEN_PAIRS, contract.STATE_DIM):
        raise PolicyError(f"{_MANIFEST}: expected {GOLDEN_PAIRS} golden pairs of {contract.STATE_DIM} numbers")
    multiplier, confidence = policy.act(states)
    for name, got in (("multiplier", multiplier), ("confidence", confidence)):
        expected = np.array([pair[name] for pair in golden], dtype=np.float64)
        worst = float(np.max(np.abs(got - expected)))
        if not worst <= PARITY:
            raise PolicyError(
                f"policy {policy.model_id}: its own golden pairs come out {worst:.2e} off in {name} "
                f"(allowed {PARITY:.0e}): the file does not hold the network that was trained"
            )
