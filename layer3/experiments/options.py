"""What the experiments' command lines have in common."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from layer3.errors import ConfigurationError

__all__ = ["check_bounds", "folder_name", "for_reading"]

_BOUNDS: Final = {
    "trials": (1, 10_000, "settings"),
    "seeds": (2, 100, "policies: one alone has no interval"),
    "steps": (2_048, 10**9, "environment steps: 2,048 is one rollout"),
    "jobs": (1, 64, "processes"),
}


def check_bounds(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse, before anything is loaded, a number that cannot be."""
    for name in names:
        low, high, what = _BOUNDS[name]
        value = getattr(options, name)
        if not low <= value <= high:
            raise ConfigurationError(f"{name} is {value:,}, expected {low:,} to {high:,} {what}")


def for_reading(path: Path) -> Path:
    """``path`` from the current folder, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def folder_name(name: str, content: Mapping[str, Any]) -> str:
    """``name`` for readers, and a hash of the plain JSON ``content`` that tells one experiment from another."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}-{digest}"
