"""What the server's dependencies weigh on disk, as pip installs them and as serving/Dockerfile leaves them."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["LEFT_OUT", "STRIPPED", "can_strip", "closure", "in_the_image", "installed_files", "mebibytes"]

#: What serving/Dockerfile removes, and whose compiled modules it strips of what only debuggers want.
LEFT_OUT = (".pyi", ".pyx", ".pxd", ".c", ".h", ".a")
STRIPPED = ("uvloop", "httptools", "cryptography")
_BLOCK = 4096


def closure(package: str, extras: frozenset[str]) -> dict[str, Distribution]:
    """Every distribution that ``package`` with ``extras`` needs on this machine, by name, without itself."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    open_ = [(package, extras)]
    while open_:
        name, wanted = open_.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        found[name] = distribution(name)
        for text in found[name].requires or ():
            needed = Requirement(text)
            # No extra is one of its own: what is needed without any carries no marker about extras.
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                open_.append((_normal(needed.name), frozenset(needed.extras)))
    del found[package]
    return dict(sorted(found.items()))


def installed_files(installed: Distribution) -> Iterator[Path]:
    """Its files below site-packages, byte code included."""
    root = Path(str(installed.locate_file(""))).resolve()
    for file in installed.files or ():
        path = Path(str(file.locate())).resolve()
        if path.is_relative_to(root) and path.exists():
            yield path


def in_the_image(path: Path) -> bool:
    """Whether serving/Dockerfile keeps the file."""
    return path.suffix not in LEFT_OUT and "tests" not in path.parts


def can_strip() -> bool:
    """Whether this machine has what strips compiled modules."""
    return shutil.which("strip") is not None


def mebibytes(installed: Distribution, *, image: bool) -> float:
    """MiB of its files in whole blocks of 4 KiB; with ``image`` as the image has them, stripped where we can."""
    size = 0
    for path in installed_files(installed):
        if not image or in_the_image(path):
            strip = image and path.suffix == ".so" and can_strip() and any(name in path.parts for name in STRIPPED)
            length = _stripped(path) if strip else path.stat().st_size
            size += -(-length // _BLOCK) * _BLOCK
    return size / 2**20


def _stripped(path: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        subprocess.run(["strip", "--strip-unneeded", "-o", copy, path], check=True)
        return copy.stat().st_size


def _normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()
