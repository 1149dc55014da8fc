"""API keys from a file: who may call, checked in constant time, exchanged while the server runs.

One ``name:key`` a line, ``#`` starts a comment. A name may have several keys: to rotate, add the new one, move the
callers over, remove the old one. The file may be a mounted secret (Secret Manager on Cloud Run), whose time of change
says nothing; that is why its content is read again now and then even when its time did not change.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from layer3.errors import ConfigurationError
from layer3.net.keys import KEY

__all__ = ["KeyFile", "parse_keys"]

#: Seconds between two looks at the file's time of change, and between two readings of its content.
LOOK_SECONDS: Final = 1.0
READ_SECONDS: Final = 60.0

_MAX_BYTES: Final = 64 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: Bytes of a key that are looked at: more than any has, so that a longer one is wrong, and cheaply so.
_MAX_KEY: Final = 257
_FORM: Final = "a line is name:key, with a key of 16 to 256 printable ASCII characters without spaces"

logger = logging.getLogger("serving.keys")


def parse_keys(text: str, origin: str) -> dict[str, str]:
    """Names by key. Messages name the line and never what stands in it.

    Raises
    ------
    ConfigurationError : a line of another form, a key under two names, or no key at all
    """
    names: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        name, _, key = entry.partition(":")
        if not (_NAME.fullmatch(name) and KEY.fullmatch(key)):
            raise ConfigurationError(f"{origin}, line {number}: {_FORM}")
        if names.setdefault(key, name) != name:
            raise ConfigurationError(f"{origin}, line {number}: this key also stands under another name")
    if not names:
        raise ConfigurationError(f"{origin} holds no key: {_FORM}")
    return names


class KeyFile:
    """The keys of one file, kept up to date by a thread between :meth:`start` and :meth:`close`.

    Raises
    ------
    ConfigurationError : the file cannot be read or is wrong when the server starts; later the old keys stay
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Digests under a secret of this process: nobody can aim at one, so finding it by its value tells nothing.
        self._salted = hashlib.sha256(secrets.token_bytes(64))
        self._seen = _time_of_change(path)
        content = _read(path)
        self._content = self._digest(content)
        self._digests = self._digested(parse_keys(_text(content, path), str(path)))
        self._complaint = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch-keys", daemon=True)

    def name_of(self, key: bytes) -> str | None:
        """The caller with this key, or None; takes as long for a wrong key as for a right one."""
        digest = self._digest(key[:_MAX_KEY])
        expected, name = self._digests.get(digest[:8], (bytes(32), None))
        return name if hmac.compare_digest(expected, digest) else None

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def refresh(self) -> None:
        """Read the file again; what is wrong with it is logged once, and the keys stay as they were."""
        try:
            content = _read(self._path)
            if self._digest(content) == self._content and not self._complaint:
                return
            names = parse_keys(_text(content, self._path), str(self._path))
        except ConfigurationError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.error("the API keys stay as they were: %s", error)
            return
        self._digests = self._digested(names)
        self._content = self._digest(content)
        self._complaint = ""
        logger.info("the API keys were read anew: %d, of %d callers", len(names), len(set(names.values())))

    def _watch(self) -> None:
        since_read = 0.0
        while not self._stop.wait(LOOK_SECONDS):
            since_read += LOOK_SECONDS
            now = _time_of_change(self._path)
            if now != self._seen or since_read >= READ_SECONDS:
                self._seen, since_read = now, 0.0
                self.refresh()

    def _digest(self, key: bytes) -> bytes:
        hashed = self._salted.copy()
        hashed.update(key)
        return hashed.digest()

    def _digested(self, names: Mapping[str, str]) -> dict[bytes, tuple[bytes, str]]:
        found = ((self._digest(key.encode("ascii")), name) for key, name in names.items())
        return {digest[:8]: (digest, name) for digest, name in found}


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read the API keys in {path}: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise ConfigurationError(f"{path} is no file of API keys: it is larger than {_MAX_BYTES} bytes")
    return content


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode("ascii")
    except UnicodeDecodeError:  # its message would hold the byte, and its cause the whole file
        raise ConfigurationError(f"{path} is no file of API keys: it holds bytes that are not ASCII") from None


def _time_of_change(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
