"""Policies in a store: ``models/<model id>/{policy.safetensors, manifest.json}``, local or ``gs://``.

A folder under ``models/`` never changes once its manifest is there: the id carries the head of the
weights' sha256. The manifest is written last, so a folder without one is a copy that was cut short.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layer3 import storage
from layer3.agent.policy import Policy, load_policy
from layer3.errors import ContractError, PolicyError, ReleaseError

__all__ = ["FILES", "load_folder", "model_folder", "store_policy"]

#: In the order in which they are written.
FILES: Final = ("policy.safetensors", "manifest.json")
_MODEL_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class StoredPolicy:
    """A policy in a store. ``copied`` says whether this call put it there."""

    uri: str
    policy: Policy
    copied: bool


def model_folder(store: str, model_id: str) -> str:
    """Address of a model in ``store``; a PolicyError if ``model_id`` cannot be a folder's name."""
    if not _MODEL_ID.fullmatch(model_id):
        raise PolicyError(f"model id {model_id!r}: expected letters, digits, '.', '_' and '-' only")
    return storage.join(store, "models", model_id)


def load_folder(uri: str) -> Policy:
    """Load and verify (hash, contract, golden pairs) the policy folder at ``uri``.

    Raises
    ------
    PolicyError, ContractError : as :func:`layer3.agent.policy.load_policy`
    SourceError : the bucket does not answer
    """
    if not storage.is_remote(uri):
        return _load(Path(uri))
    with tempfile.TemporaryDirectory(prefix="himari-model-") as name:
        try:
            storage.copy_in(uri, Path(name), FILES)
        except FileNotFoundError as error:
            raise PolicyError(f"no policy at {uri}: {error.filename} is missing") from error
        try:
            return _load(Path(name))
        except (PolicyError, ContractError) as error:
            # The reader knows the bucket's address, not the folder the files went through.
            error.args = (str(error).replace(name, uri.rstrip("/")), *error.args[1:])
            raise


def store_policy(candidate: Path, store: str) -> StoredPolicy:
    """Put the verified policy of the folder ``candidate`` into ``store`` under its own id; again is harmless.

    A copy that is already there stays as it is, its manifest too: the same weights may have been
    trained by two runs, and whoever reads ``models/<id>`` twice must see the same bytes.

    Raises
    ------
    ReleaseError : another network lies under this id
    PolicyError, ContractError : the candidate, or the copy in the store, does not verify
    SourceError, OSError : the store cannot be read or written
    """
    policy = _load(candidate)
    uri = model_folder(store, policy.model_id)
    contents = {name: (candidate / name).read_bytes() for name in FILES}
    weights = storage.join(uri, FILES[0])
    manifest = storage.join(uri, FILES[1])
    if storage.exists(manifest):
        if storage.exists(weights) and storage.read_bytes(weights) != contents[FILES[0]]:
            raise ReleaseError(
                f"{weights} holds other weights than the candidate of the same id: one of them was changed "
                "after training; find out which, move the folder away and release again"
            )
        return StoredPolicy(uri, load_folder(uri), copied=False)
    for name in FILES:
        storage.write_bytes(storage.join(uri, name), contents[name])
    return StoredPolicy(uri, load_folder(uri), copied=True)


def _load(folder: Path) -> Policy:
    try:
        return load_policy(folder)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError) as error:
        # A manifest is whatever lies in the store: its values may have any JSON type.
        raise PolicyError(f"{folder / FILES[1]} is malformed ({error!r}): release or train it again") from error
