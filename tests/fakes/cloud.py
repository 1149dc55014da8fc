"""A whole cloud on this machine: storage, project and Vertex AI, and the files that a command needs to use them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from compile import compile_pipelines
from serving.cloud import Cloud, load_cloud
from tests.fakes.gcs import FakeGcs
from tests.fakes.project import FakeProject
from tests.fakes.vertex.server import FakeVertex, Place

__all__ = ["COMPONENTS", "SERVING", "World", "world"]

_REPOSITORY = "us-central1-docker.pkg.dev/himari-test/himari"
COMPONENTS = f"{_REPOSITORY}/components@sha256:{'c' * 64}"
SERVING = f"{_REPOSITORY}/serving@sha256:{'5' * 64}"
_PIPELINE = "himari-dev-pipeline@himari-test.iam.gserviceaccount.com"
_SERVING = "himari-dev-serving@himari-test.iam.gserviceaccount.com"


@dataclass(frozen=True)
class World:
    """The fakes, and where the files lie: the cloud's configuration, the compiled pipeline, the images."""

    gcs: FakeGcs
    project: FakeProject
    vertex: FakeVertex
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "cloud.yaml"

    @property
    def spec(self) -> Path:
        return self.folder / "build" / "training.yaml"

    @property
    def cloud(self) -> Cloud:
        return load_cloud(self.file, {})


@contextmanager
def world(folder: Path, compiled: Path | None = None, *, service: str = "") -> Iterator[World]:
    """A cloud in which nothing is missing, in ``folder``, whose bucket is gs://bucket; it ends with the block.

    ``compiled`` is a training.yaml for :data:`COMPONENTS`; without it the pipeline is compiled. ``service`` is the
    Cloud Run service that runs release to, none by default.
    """
    place = Place()
    (folder / "build").mkdir(parents=True)
    if compiled is None:
        compile_pipelines(folder / "build", COMPONENTS)
    else:
        (folder / "build" / "training.yaml").write_bytes(compiled.read_bytes())
    images = {"components": COMPONENTS, "serving": SERVING}
    (folder / "build" / "images.json").write_text(json.dumps(images))
    with (
        FakeGcs("bucket") as gcs,
        FakeProject(place, pipeline=_PIPELINE, serving=_SERVING, images=images.values()) as project,
        FakeVertex(folder / "vertex", storage=gcs.url, images=[*images.values()], accounts=[_PIPELINE]) as vertex,
    ):
        gcs.project_number = place.number
        gcs.roles = {"roles/storage.objectUser": {f"serviceAccount:{_PIPELINE}"}}
        said = {
            "project": place.project,
            "region": place.region,
            "store": "gs://bucket",
            "service": service,
            "images_file": str(folder / "build" / "images.json"),
            "endpoints": {
                "storage": gcs.url,
                "vertex": vertex.url,
                "services": project.url,
                "resource_manager": project.url,
                "artifact_registry": project.url,
                "iam": project.url,
            },
        }
        (folder / "cloud.yaml").write_text(yaml.safe_dump(said))
        yield World(gcs, project, vertex, folder)
