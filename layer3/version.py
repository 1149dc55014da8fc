"""Which code this is: a hash over the source itself, so that it is the same in a checkout and an image."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

__all__ = ["PACKAGES", "source_sha256"]

PACKAGES: Final = ("components", "layer3", "pipelines", "serving")
_SUFFIXES: Final = frozenset({".css", ".ini", ".j2", ".py", ".yaml"})


@cache
def source_sha256(root: Path | None = None) -> str:
    """Sha256 over names and contents of every source file of the four packages below ``root``.

    ``root`` defaults to the folder that holds this package.
    """
    root = root or Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in _SUFFIXES and path.is_file():
                content = path.read_bytes()
                digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()
