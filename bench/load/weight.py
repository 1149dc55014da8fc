"""What the server's dependencies weigh on disk."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["closure", "mebibytes"]


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


def mebibytes(installed: Distribution) -> float:
    """MiB of its files below site-packages, byte code included, each in whole blocks as ``du`` counts them."""
    root = Path(str(installed.locate_file(""))).resolve()
    paths = (Path(str(file.locate())).resolve() for file in installed.files or ())
    return sum(path.stat().st_blocks * 512 for path in paths if path.is_relative_to(root) and path.exists()) / 2**20


def _normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()
