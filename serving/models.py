"""Policies in a store: ``models/<model id>/{policy.safetensors, manifest.json}``, local or ``gs://``.

A folder under ``models/`` never changes once its manifest is there: the id carries the head of the
weights' sha256. The manifest is written last, so a folder without one is a copy that was cut short.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from layer3 import storage
from layer3.agent.policy import Policy
from layer3.agent.policy_file import FILES
from layer3.champion import load_folder, load_verified, model_folder
from layer3.errors import ReleaseError

__all__ = ["StoredPolicy", "store_policy"]


@dataclass(frozen=True)
class StoredPolicy:
    """A policy in a store. ``copied`` says whether this call put it there."""

    uri: str
    policy: Policy
    copied: bool


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
    policy = load_verified(candidate)
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
