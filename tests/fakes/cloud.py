"""A whole cloud on this machine: storage, project, Vertex AI, Cloud Run, and the files that a command needs of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from compile import compile_pipelines
from serving.cloud import Cloud, load_cloud
from tests.fakes.cloud_run import FakeCloudRun, cloud_run
from tests.fakes.front import Fleet
from tests.fakes.gcs import FakeGcs
from tests.fakes.issuer import issuer
from tests.fakes.project import FakeProject
from tests.fakes.vertex.server import FakeVertex, Place

__all__ = ["COMPONENTS", "SERVING", "World", "world"]

_REPOSITORY = "us-central1-docker.pkg.dev/himari-test/himari"
COMPONENTS = f"{_REPOSITORY}/components@sha256:{'c' * 64}"
SERVING = f"{_REPOSITORY}/serving@sha256:{'5' * 64}"
_PIPELINE = "himari-dev-pipeline@himari-test.iam.gserviceaccount.com"
_RELEASING = ("roles/run.admin", "roles/monitoring.viewer")
_SERVING = "himari-dev-serving@himari-test.iam.gserviceaccount.com"


@dataclass(frozen=True)
class World:
    """The fakes, and where the files lie: the cloud's configuration, the compiled pipeline, the images."""

    gcs: FakeGcs
    project: FakeProject
    vertex: FakeVertex
    run: FakeCloudRun | None
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
    Cloud Run service that runs release to; without one there is no Cloud Run. Who is to get ID tokens there
    must know ``run.front.metadata`` as the environment's GCE_METADATA_HOST.
    """
    place = Place()
    (folder / "build").mkdir(parents=True)
    if compiled is None:
        compile_pipelines(folder / "build", COMPONENTS)
    else:
        (folder / "build" / "training.yaml").write_bytes(compiled.read_bytes())
    images = {"components": COMPONENTS, "serving": SERVING}
    (folder / "build" / "images.json").write_text(json.dumps(images))
    with ExitStack() as stack:
        gcs = stack.enter_context(FakeGcs("bucket"))
        project = stack.enter_context(FakeProject(place, pipeline=_PIPELINE, serving=_SERVING, images=images.values()))
        run = _cloud_run(stack, gcs) if service else None
        if run:
            # There is no service yet: the first release makes it.
            project.roles |= {role: {f"serviceAccount:{_PIPELINE}"} for role in _RELEASING}
        vertex = stack.enter_context(
            FakeVertex(folder / "vertex", storage=gcs.url, images=[*images.values()], accounts=[_PIPELINE])
        )
        gcs.project_number = place.number
        gcs.roles = {
            "roles/storage.objectUser": {f"serviceAccount:{_PIPELINE}"},
            "roles/storage.objectViewer": {f"serviceAccount:{_SERVING}"},
        }
        gcs.conditional = {"roles/storage.objectViewer"}  # of models/ and channels/, as infra/ grants it
        said = {
            "project": place.project,
            "region": place.region,
            "store": "gs://bucket",
            "service": service,
            "canary_window_seconds": 1.0,
            "images_file": str(folder / "build" / "images.json"),
            "endpoints": {
                "storage": gcs.url,
                "vertex": vertex.url,
                "services": project.url,
                "resource_manager": project.url,
                "artifact_registry": project.url,
                "iam": project.url,
            }
            | ({"run": run.url, "monitoring": run.url} if run else {}),
        }
        (folder / "cloud.yaml").write_text(yaml.safe_dump(said))
        yield World(gcs, project, vertex, run, folder)


def _cloud_run(stack: ExitStack, gcs: FakeGcs) -> FakeCloudRun:
    fleet = Fleet()
    stack.callback(fleet.close)
    google = stack.enter_context(issuer("first"))
    environment = {"STORAGE_EMULATOR_HOST": gcs.url, "ID_TOKEN_CERTS_URL": google.url}
    return stack.enter_context(cloud_run(fleet, SERVING, environment=environment))
