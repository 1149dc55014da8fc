"""Compile every pipeline to one YAML file that Vertex runs as it is and ``make run-local`` runs here."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from components.image import IMAGE
from layer3 import settings, storage
from layer3.errors import ConfigurationError
from pipelines.machines import spot
from pipelines.training import build
from pipelines.tuning import tuning

__all__ = ["compile_pipelines", "image_of", "main"]

PIPELINES = {"training": build(), "tuning": tuning}
#: What only Vertex can run: its training is custom jobs.
CUSTOM_JOB = "training-custom-job"
_PINNED = re.compile(r"^[\w.\-/:]+@sha256:[0-9a-f]{64}$")


def compile_pipelines(
    folder: Path, image: str = IMAGE, *, allow_tag: bool = False, custom_job: bool = False
) -> list[Path]:
    """Write ``<name>.yaml`` for every pipeline into ``folder``, every step on ``image``; the files' paths.

    ``allow_tag`` takes an image that is not pinned by digest; ``custom_job`` writes
    ``training-custom-job.yaml`` too, whose training runs as custom jobs on spot machines.
    """
    if image != IMAGE and not allow_tag and not _PINNED.match(image):
        raise ConfigurationError(
            f"image {image!r} is not pinned by digest: give registry/name@sha256:<64 hexadecimal digits> or the "
            "build/images.json that the image build wrote, so that a run always means one image (--allow-tag takes "
            "it all the same)"
        )
    pipelines = PIPELINES | ({CUSTOM_JOB: build(spot)} if custom_job else {})
    return [_compile(pipeline, folder / f"{name}.yaml", image) for name, pipeline in pipelines.items()]


def image_of(given: str) -> str:
    """The image that ``given`` names: itself, or what an ``images.json`` says of the components.

    Raises
    ------
    ConfigurationError : no such file, or it does not say
    """
    if not given.endswith(".json"):
        return given
    said = settings.document(settings.read(Path(given), "the images of the last build"), given)
    image = said.get("components")
    if not isinstance(image, str):
        raise ConfigurationError(f'{given} names no image under "components": build the images again')
    return image


def _compile(pipeline: Any, path: Path, image: str) -> Path:
    with tempfile.TemporaryDirectory() as elsewhere:
        draft = Path(elsewhere, path.name)
        compiler.Compiler().compile(pipeline, package_path=str(draft))
        spec: dict[str, Any] = yaml.safe_load(draft.read_text(encoding="utf-8"))
    for container, key in _containers(spec):
        container[key] = image
    # Whole or not at all: two runs may compile at once.
    storage.write_bytes(str(path), yaml.safe_dump(spec, sort_keys=True, width=120).encode())
    return path


def _containers(spec: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Where each of our images stands: in a step, or in the machines of a step that is a custom job."""
    for name, executor in spec["deploymentSpec"]["executors"].items():
        inputs = spec["components"][name.replace("exec-", "comp-", 1)].get("inputDefinitions", {}).get("parameters", {})
        if "worker_pool_specs" not in inputs:
            yield executor["container"], "image"
            continue
        for pool in inputs["worker_pool_specs"]["defaultValue"]:
            yield pool["container_spec"], "image_uri"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit 2 when an argument is refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build"), help="folder for the YAML files (build)")
    parser.add_argument(
        "--image", default=IMAGE, help="image of every step, pinned by digest, or build/images.json (a placeholder)"
    )
    parser.add_argument("--allow-tag", action="store_true", help="take an image that is not pinned by digest")
    parser.add_argument(
        "--custom-job", action="store_true", help=f"write {CUSTOM_JOB}.yaml too: training as custom jobs on spot"
    )
    options = parser.parse_args(arguments)
    try:
        written = compile_pipelines(
            options.output, image_of(options.image), allow_tag=options.allow_tag, custom_job=options.custom_job
        )
    except ConfigurationError as error:
        print(f"compile.py: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"compiled {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
