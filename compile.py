"""Compile every pipeline to one YAML file that Vertex runs as it is and ``make run-local`` runs here."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from components.image import IMAGE
from layer3 import storage
from layer3.errors import ConfigurationError
from pipelines.training import training
from pipelines.tuning import tuning

__all__ = ["compile_pipelines", "main"]

PIPELINES = {"training": training, "tuning": tuning}
_PINNED = re.compile(r"^[\w.\-/:]+@sha256:[0-9a-f]{64}$")


def compile_pipelines(folder: Path, image: str = IMAGE) -> list[Path]:
    """Write ``<name>.yaml`` for every pipeline into ``folder``, every step on ``image``; the files' paths."""
    if image != IMAGE and not _PINNED.match(image):
        raise ConfigurationError(
            f"image {image!r} is not pinned by digest: give registry/name@sha256:<64 hexadecimal digits>, "
            "so that a run always means one image"
        )
    written = []
    for name, pipeline in PIPELINES.items():
        path = folder / f"{name}.yaml"
        with tempfile.TemporaryDirectory() as elsewhere:
            draft = Path(elsewhere, path.name)
            compiler.Compiler().compile(pipeline, package_path=str(draft))
            spec: dict[str, Any] = yaml.safe_load(draft.read_text(encoding="utf-8"))
        for executor in spec["deploymentSpec"]["executors"].values():
            executor["container"]["image"] = image
        # Whole or not at all: two runs may compile at once.
        storage.write_bytes(str(path), yaml.safe_dump(spec, sort_keys=True, width=120).encode())
        written.append(path)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit 2 when an argument is refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build"), help="folder for the YAML files (build)")
    parser.add_argument("--image", default=IMAGE, help="image of every step, pinned by digest (a placeholder)")
    options = parser.parse_args(arguments)
    try:
        for path in compile_pipelines(options.output, options.image):
            print(f"compiled {path}")
    except ConfigurationError as error:
        print(f"compile.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
