"""The shape of a run's ``manifest.json``: written whole or not at all, and checked when read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layer3 import storage

__all__ = ["SCHEMA", "parse_manifest", "read_manifest", "write_manifest"]

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class _Maybe:
    """A value that may be missing or null; ``default`` is made anew each time."""

    shape: Any
    default: Any = lambda: None


@dataclass(frozen=True, slots=True)
class _Named:
    """An object with any names, whose values all have one shape; an empty one when missing."""

    shape: Any


_WORDS = {str: "text", bool: "true or false", int: "a number"}
_NUMBER = (int, float)
_ANY = (object,)
_IN = {"uri": (str,), "type": _Maybe((str,)), "sha256": _Maybe((str,)), "producer": _Maybe((str,))}
_OUT = {
    "uri": (str,),
    "type": _Maybe((str,)),
    "sha256": _Maybe((str,)),
    "bytes": _Maybe(_NUMBER),
    "metadata": _Named(_ANY),
}
_CRITERION = {
    "name": (str,),
    "value": _Maybe(_NUMBER),
    "comparison": (str,),
    "limit": _NUMBER,
    "passed": (bool,),
    "sentence": (str,),
}
_STEP = {
    "name": (str,),
    "display_name": _Maybe((str,)),
    "component": _Maybe((str,)),
    "status": (str,),
    "attempts": _Maybe(_NUMBER),
    "started": _Maybe((str,)),
    "ended": _Maybe((str,)),
    "seconds": _Maybe(_NUMBER),
    "depends_on": _Maybe([(str,)], list),
    "inputs": _Maybe(
        {"parameters": _Named(_ANY), "artifacts": _Named(_IN)}, lambda: {"parameters": {}, "artifacts": {}}
    ),
    "outputs": _Maybe(
        {"parameters": _Named(_ANY), "artifacts": _Named(_OUT)}, lambda: {"parameters": {}, "artifacts": {}}
    ),
    "log": _Maybe((str,)),
    "error": _Maybe((str,)),
}
_MANIFEST = {
    "schema": (int,),
    "run_id": (str,),
    "pipeline": _Maybe((str,)),
    "status": (str,),
    "started": (str,),
    "ended": _Maybe((str,)),
    "seconds": _Maybe(_NUMBER),
    "parameters": _Named(_ANY),
    "versions": _Named(_ANY),
    "git": _Maybe({"commit": _Maybe((str,)), "dirty": _Maybe((bool,))}, lambda: {"commit": None, "dirty": None}),
    "source_sha256": _Maybe((str,)),
    "spec_sha256": _Maybe((str,)),
    "synthetic": _Maybe((bool,)),
    "branch": _Maybe((str,)),
    "released": _Named(_ANY),
    "error": _Maybe((str,)),
    "verdict": _Maybe(
        {
            "passed": (bool,),
            "criteria": [_CRITERION],
            "limits": _Named(_ANY),
            "override": _Maybe({"name": (str,), "reason": (str,)}),
        }
    ),
    "steps": [_STEP],
}


def write_manifest(run_dir: Path, manifest: Mapping[str, Any]) -> Path:
    """Write ``manifest.json`` into ``run_dir`` and return its path; a reader sees the old file or the new one.

    Raises
    ------
    ValueError : a number is NaN or infinite; nothing was written
    TypeError : a value is not plain data; nothing was written
    """
    text = json.dumps(manifest, allow_nan=False, ensure_ascii=False, indent=1) + "\n"
    path = run_dir / "manifest.json"
    storage.write_bytes(str(path), text.encode())
    return path


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest and give every optional field its value or ``None``.

    Raises
    ------
    ValueError : it is not JSON, not finite, or not the shape of a manifest; the message names the place
    OSError : it cannot be read
    """
    return parse_manifest(path.read_bytes())


def parse_manifest(content: bytes) -> dict[str, Any]:
    """A manifest's bytes as :func:`read_manifest` gives them; ValueError likewise."""
    try:
        data = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply to be a manifest") from error
    if isinstance(data, Mapping) and data.get("schema") != SCHEMA:
        raise ValueError(f"schema is {data.get('schema')!r}, this program reads {SCHEMA}")
    manifest: dict[str, Any] = _conform(data, _MANIFEST, "manifest")
    return manifest


def _refuse_constant(text: str) -> None:
    raise ValueError(f"holds {text}, which is not a finite number")


def _conform(value: Any, shape: Any, where: str) -> Any:
    if isinstance(shape, _Maybe):
        return shape.default() if value is None else _conform(value, shape.shape, where)
    if isinstance(shape, _Named):
        named = _require(value if value is not None else {}, Mapping, "an object", where)
        return {name: _conform(item, shape.shape, f"{where}.{name}") for name, item in named.items()}
    if isinstance(shape, dict):
        record = _require(value, Mapping, "an object", where)
        return {name: _conform(record.get(name), sub, f"{where}.{name}") for name, sub in shape.items()}
    if isinstance(shape, list):
        items = _require(value, list, "a list", where)
        return [_conform(item, shape[0], f"{where}[{index}]") for index, item in enumerate(items)]
    if isinstance(value, bool) and shape == _NUMBER:
        raise ValueError(f"{where} is {value!r}, expected a number")
    return _require(value, shape, _WORDS.get(shape[0], "a value"), where)


def _require(value: Any, kind: Any, wanted: str, where: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{where} is {repr(value)[:60]}, expected {wanted}")
    return value
