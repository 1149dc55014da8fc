"""The API key of a service that answers only to those it knows, from a file of its own."""

from __future__ import annotations

import logging
import math
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from layer3.errors import ConfigurationError

__all__ = ["HEADER", "KEY", "key_source", "read_key", "repeats"]

HEADER: Final = "X-API-Key"
#: Printable ASCII without spaces; 16 characters are the least that nobody guesses.
KEY: Final = re.compile(r"[!-~]{16,256}")
#: More bytes than a key and the end of its line have.
_MOST: Final = 512
#: How many characters of a secret in a row are no coincidence, of a short and of a long one.
_TELLING: Final = (8, 16)
_log = logging.getLogger(__name__)


def read_key(path: Path) -> str:
    """The key that stands alone in the file, with or without the end of a line; no error shows what is in it.

    Raises
    ------
    ConfigurationError : the file cannot be read, is empty, or holds something else
    """
    try:
        with open(path, "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigurationError(f"cannot read the API key in {path}: it is no regular file")
            content = file.read(_MOST)
    except OSError as error:
        raise ConfigurationError(f"cannot read the API key in {path}: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise ConfigurationError(f"cannot read the API key in {str(path)!r}: {error}") from error
    key = content.decode("ascii", errors="replace").rstrip("\r\n")
    if not key:
        raise ConfigurationError(f"{path} is empty: write the API key there")
    if not KEY.fullmatch(key):
        raise ConfigurationError(
            f"{path} holds no API key: expected 16 to 256 printable characters of ASCII, no space, and nothing else"
        )
    return key


def _at_once(path: str, flags: int) -> int:
    # A pipe to which nobody writes must not hold the caller.
    return os.open(path, flags | os.O_NONBLOCK)


def key_source(path: Path, key: str) -> Callable[[], tuple[str, float]]:
    """Reads the file for :class:`layer3.net.refreshed.Refreshed`; a key other than ``key``, the last, is told of."""
    last = key

    def fetch() -> tuple[str, float]:
        nonlocal last
        found = read_key(path)
        if found != last:
            _log.info("the API key was read anew", extra={"file": str(path)})
        last = found
        return found, math.inf

    return fetch


def repeats(text: str, secrets: Iterable[str]) -> bool:
    """Whether ``text`` holds a telling part of one of ``secrets``, as where a server says back what it was sent."""
    for secret in secrets:
        length = max(_TELLING[0], min(_TELLING[1], len(secret) // 2))
        if any(text[start : start + length] in secret for start in range(len(text) - length + 1)):
            return True
    return False
