"""A training put down on disk, so that it can be taken up again and end in the same bytes.

One safetensors file, written as a whole: weights, Adam's moments, the environments' cursor and
accounts, random streams and curves, and in its header what training it belongs to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from layer3 import contract, storage
from layer3.agent.bars import Bars
from layer3.errors import ContractError, SourceError, TrainingError

if TYPE_CHECKING:
    from layer3.agent.population import Settings
    from layer3.agent.team import Fold

__all__ = ["Checkpoint", "identity"]

_KIND = "himari-checkpoint/2"


def identity(bars: Bars, members: Sequence[tuple[int, Fold]], settings: Settings) -> dict[str, Any]:
    """What a training must agree on to go on from a checkpoint: plain JSON, each part with a name to complain about."""
    digest = hashlib.sha256()
    for entry in fields(Bars):
        digest.update(np.ascontiguousarray(getattr(bars, entry.name)).tobytes())
    return {
        "contract": contract.VERSION,
        "data": digest.hexdigest(),
        "seeds and folds": [[seed, [[window.start, window.stop] for window in fold]] for seed, fold in members],
        **{name: asdict(value) for name, value in (("ppo", settings.ppo), ("environment", settings.environment))},
    }


class Checkpoint:
    """The checkpoint file at ``address`` (local or ``gs://``) of the training that ``identity`` describes."""

    def __init__(self, address: str, identity: dict[str, Any]) -> None:
        self._address = address
        # As it comes back from a file, so that the two compare.
        self._identity = json.loads(json.dumps(identity))
        self._updates: int | None = None

    def describe(self) -> str:
        """Where the last good checkpoint is, in words."""
        if self._updates is None:
            return f"no checkpoint was written to {self._address} yet"
        return f"the last good checkpoint, after {self._updates:,} updates, is {self._address}"

    def write(self, arrays: dict[str, NDArray[Any]], generators: Sequence[dict[str, Any]]) -> None:
        """Replace the file as a whole: whatever happens, the old one or the new one is there.

        Raises
        ------
        TrainingError : the disk is full or cannot be written; the old checkpoint stays
        """
        header = {"kind": _KIND, "identity": self._identity, "generators": list(generators)}
        solid = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        content = safetensors.numpy.save(solid, metadata={"himari": json.dumps(header)})
        try:
            storage.write_bytes(self._address, content)
        except SourceError as error:
            raise TrainingError(f"{error}; run again to go on, {self.describe()}") from error
        except OSError as error:
            trouble = storage.disk_trouble(error, self._address)
            raise TrainingError(f"cannot write the checkpoint {trouble} and run again; {self.describe()}") from error
        self._updates = len(arrays["curves"])

    def read(self) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]] | None:
        """Arrays and random streams, or ``None`` where nothing was written yet.

        Raises
        ------
        ContractError : it was written under another state contract
        TrainingError : it cannot be read, is damaged, of another version, or belongs to another training
        """
        remedy = "remove it to start anew, or name another checkpoint"
        try:
            content = storage.read_bytes(self._address)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TrainingError(f"cannot read the checkpoint {self._address}: {error.strerror}: {remedy}") from error
        try:
            arrays = safetensors.numpy.load(content)
            length = int.from_bytes(content[:8], "little")
            header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["himari"])
            kind, theirs = str(header["kind"]), header["identity"]
            if not kind.startswith("himari-checkpoint/") or "curves" not in arrays:
                raise KeyError(kind)
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{self._address} is damaged or no checkpoint ({error!r}): {remedy}") from error
        if kind != _KIND:
            raise TrainingError(
                f"checkpoint {self._address} is a {kind}, expected a {_KIND}: another version of this program "
                f"wrote it; {remedy}"
            )
        if theirs["contract"] != contract.VERSION:
            raise ContractError(theirs["contract"], contract.VERSION, f"checkpoint {self._address}")
        other = [name for name, value in self._identity.items() if theirs.get(name) != value]
        if other:
            raise TrainingError(
                f"checkpoint {self._address} belongs to a training that differs in {', '.join(other)}: {remedy}"
            )
        self._updates = len(arrays["curves"])
        return arrays, header["generators"]
