"""What every component does to its output artifacts."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import dsl

__all__ = ["log_metrics", "metadata", "place"]


def place(artifact: dsl.Artifact) -> Path:
    """The artifact's path, with its parent folder made."""
    path = Path(artifact.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def log_metrics(artifact: dsl.Metrics, figures: Mapping[str, float | None]) -> None:
    """Log every figure that is known.

    They are also written as JSON to the artifact's own path: a Metrics artifact without a file is
    never found again by the local cache.
    """
    known = {name: value for name, value in figures.items() if value is not None}
    for name, value in known.items():
        if not math.isfinite(value):
            raise ValueError(f"metric {name} is {value}: only finite numbers may be logged")
        artifact.log_metric(name, value)
    place(artifact).write_text(json.dumps(known, indent=2, sort_keys=True))


def metadata(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that an artifact's metadata can hold: nested mappings flattened to ``outer_inner``, no ``None``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}_{inner}": item for inner, item in metadata(value).items()})
        elif value is not None:
            flat[name] = value
    return flat
