"""A loopback Vertex AI of one project and region; its services (``pipelines``, and others' modules) share it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fakes.google import FakeGoogle, Refused
from tests.fakes.vertex.metadata import Metadata
from tests.fakes.vertex.models import Models
from tests.fakes.vertex.pipelines import Pipelines
from tests.fakes.vertex.schedules import Schedules

__all__ = ["FakeVertex", "Place"]

_PLACE: Final = re.compile(r"projects/(?P<project>[^/]+)/locations/(?P<region>[^/]+)(/.*)?")


@dataclass(frozen=True)
class Place:
    """A project (its id, and the number that stands in the names that the service gives) and a region."""

    project: str = "himari-test"
    number: int = 424_242_424_242
    region: str = "us-central1"

    @property
    def parent(self) -> str:
        """``projects/<number>/locations/<region>``, as in the names that the service gives."""
        return f"projects/{self.number}/locations/{self.region}"

    def canonical(self, name: str) -> str:
        """``name`` with the project's number in it; refuses another project or region as the service does."""
        found = _PLACE.fullmatch(name)
        if found is None or found["project"] not in (self.project, str(self.number)):
            raise Refused(
                "PERMISSION_DENIED",
                f"Permission 'aiplatform.pipelineJobs.create' denied on resource '//aiplatform.googleapis.com/{name}' "
                "(or it may not exist).",
            )
        if found["region"] != self.region:
            raise Refused("INVALID_ARGUMENT", f"The request was sent to {self.region}, but names {found['region']}.")
        return self.parent + (found[3] or "")


class FakeVertex(FakeGoogle):
    """``with FakeVertex(tmp_path, storage=gcs.url, images=[…], accounts=[…]) as vertex: …``.

    Runs are executed below the folder ``work``, and read and write the buckets of the fake Cloud Storage ``storage``.
    """

    def __init__(
        self, work: Path, *, storage: str, images: list[str], accounts: list[str], place: Place = Place()
    ) -> None:
        super().__init__()
        self.place = place
        self.pipelines = Pipelines(self, place, work, storage=storage, images=images, accounts=accounts)
        self.metadata = Metadata(self, place)
        self.pipelines.on_context = self.metadata.began
        self.models = Models(self, place, images=images)
        self.schedules = Schedules(self, place, self.pipelines)
        self.serve_operations()

    def close(self) -> None:
        """End the runs that are under way, then the server."""
        self.pipelines.close()
        super().close()
