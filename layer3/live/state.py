"""A snapshot of what the engine learnt: one JSON file, replaced as a whole, checked when it is read.

The file is ``{"format", "version", "sha256", "state"}``; the hash is that of the state's canonical text. A file
that is damaged, or of a newer version than this program writes, is refused with a sentence: an engine that
forgets its losses without a word would trade on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from layer3 import storage
from layer3.errors import DataError

__all__ = ["FORMAT", "VERSION", "Saver", "read_state", "write_state"]

FORMAT: Final = "himari-layer3-state"
VERSION: Final = 1
_log = logging.getLogger(__name__)


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the snapshot at ``path``: after a crash the old one or the new one is there, never a part.

    Raises
    ------
    OSError : the disk refuses
    """
    document = {"format": FORMAT, "version": VERSION, "sha256": _digest(state), "state": state}
    storage.write_bytes(str(path), json.dumps(document, allow_nan=False).encode())


def read_state(path: Path, *, or_none: bool = False) -> dict[str, Any] | None:
    """The state of the snapshot at ``path``, ``None`` where there is no file.

    With ``or_none`` also, after an error in the log, where the file cannot be used.

    Raises
    ------
    DataError : the file cannot be read, is damaged, is something else, or comes of a newer program
    """
    try:
        return _read(path)
    except DataError as error:
        if not or_none:
            raise
        _log.error("the engine begins without what was learnt", extra={"error": str(error)})
        return None


def _read(path: Path) -> dict[str, Any] | None:
    remedy = "restore a copy, or move it away to begin without what was learnt"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read the state {path}: {error.strerror}") from error
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the state {path} is damaged ({error}): {remedy}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f"{path} is no state of layer 3: {remedy}")
    version = document.get("version")
    if version != VERSION:
        raise DataError(f"the state {path} has version {version!r}, this program reads {VERSION}: use the program "
                        f"that wrote it, or {remedy}")  # fmt: skip
    state = document.get("state")
    if not isinstance(state, dict) or document.get("sha256") != _digest(state):
        raise DataError(f"the state {path} is damaged (its checksum is another): {remedy}")
    return state


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


class Saver:
    """Calls ``save`` every ``every_s`` seconds in a thread of its own; what fails is logged and tried again."""

    def __init__(self, save: Callable[[], object], every_s: float) -> None:
        self._save = save
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="himari-state", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; it does not save once more."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                self._save()
            # Whatever it is, the next attempt must be made: a disk that is full, or what nobody foresaw.
            except Exception as error:  # noqa: BLE001
                _log.error("the state could not be saved, the last snapshot stays", extra={"error": repr(error)})
