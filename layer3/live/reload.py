"""Follow the configuration file: a good change is taken up at once and as a whole, a bad one is told and left."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import watchfiles

from layer3.errors import HimariError
from layer3.live.configuration import Layer3Config

__all__ = ["ConfigWatcher", "Reloadable", "fingerprint"]

_log = logging.getLogger(__name__)
_DEBOUNCE_MS = 50
_LOOK_MS = 500


class Reloadable(Protocol):
    """What an engine offers (:class:`layer3.live.phase1.Layer3Phase1`)."""

    @property
    def config(self) -> Layer3Config:
        """The configuration in force."""

    def reload(self, config: Layer3Config) -> None:
        """Take up another one, or raise and keep the present one."""


def fingerprint(path: Path) -> bytes:
    """The hash of what the file at ``path`` holds and when it was written, b"" where it cannot be read, or only once,
    as a pipe."""
    if not path.is_file():
        return b""
    try:
        with path.open("rb") as file:
            # What was refused for something beside the file, a policy that was not there, is tried again by a touch.
            written = os.fstat(file.fileno()).st_mtime_ns
            return hashlib.sha256(b"%d " % written + file.read()).digest()
    except OSError:
        return b""


class ConfigWatcher:
    """Watches the folder of ``path``, so that editors that replace the file are seen too, in a thread of its own.

    ``load`` reads and checks the configuration; ``seen`` is the file's :func:`fingerprint` from before it was read
    first, so that no change on the way from there is missed (without one that of now); ``callbacks`` are called with
    the new configuration after it took effect.
    ``reloads`` counts changes that took effect, ``rejected`` those that could not be used, ``callback_errors``
    callbacks that raised. A change of the file that changes no setting is none.
    """

    def __init__(
        self, path: Path, load: Callable[[], Layer3Config], engine: Reloadable, seen: bytes | None = None
    ) -> None:
        self._path = path.absolute()
        self._load = load
        self._engine = engine
        self._over = threading.Event()
        self._checking = threading.Lock()
        self.callbacks: list[Callable[[Layer3Config], None]] = []
        self.reloads = self.rejected = self.callback_errors = 0
        self._seen = fingerprint(self._path) if seen is None else seen
        self._thread = threading.Thread(target=self._run, name="himari-config", daemon=True)
        self._thread.start()

    def check(self) -> bool:
        """Read the file now; whether another configuration took effect."""
        with self._checking:
            try:
                config = self._load()
                if config == self._engine.config:
                    return False
                self._engine.reload(config)
            except HimariError as error:
                _log.error("the changed configuration is not used, the one before stays", extra={"error": str(error)})
                self.rejected += 1
                return False
            # What nobody foresaw must not end the watching without a word.
            except Exception:  # noqa: BLE001
                _log.exception("the changed configuration is not used, the one before stays")
                self.rejected += 1
                return False
            self.reloads += 1
            _log.info("the configuration was changed", extra={"config_hash": config.digest()})
            for callback in self.callbacks:
                self._call(callback, config)
            return True

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _call(self, callback: Callable[[Layer3Config], None], config: Layer3Config) -> None:
        try:
            callback(config)
        # Whoever is told must not end the watching: counted and logged, the configuration is in force.
        except Exception:  # noqa: BLE001
            self.callback_errors += 1
            _log.exception("a callback of the configuration failed")

    def _run(self) -> None:
        # Yields on a timeout too: what changed before the watch began, or behind a symbolic link, is seen then.
        for _ in watchfiles.watch(
            self._path.parent,
            stop_event=self._over,
            debounce=_DEBOUNCE_MS,
            step=10,
            rust_timeout=_LOOK_MS,
            yield_on_timeout=True,
            recursive=False,
            raise_interrupt=False,
        ):
            now = fingerprint(self._path)
            if now != self._seen:
                self._seen = now
                self.check()
