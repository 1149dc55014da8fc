"""A bucket, a Cloud Run and everything that a release there needs, on loopback."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from layer3.agent.policy import Policy
from layer3.champion import Channel, read
from serving.canary import Limits
from serving.cloud import Endpoints
from serving.platforms.cloud_run import CloudRun
from serving.platforms.run_api import RunApi
from serving.platforms.target import Target
from serving.platforms.watch import Monitoring, Watch
from serving.release import Release, release, rollback
from tests.fakes.cloud_run import FakeCloudRun, cloud_run
from tests.fakes.front import Fleet
from tests.fakes.gcs import FakeGcs
from tests.serving.support import make_policy

IMAGE = "us-central1-docker.pkg.dev/himari-tests/himari/serving@sha256:" + "1" * 64
STORE = "gs://himari-tests/store"
SERVICE = "projects/himari-tests/locations/us-central1/services/himari"
STEPS = ["settle", "store", "revision", "health", "smoke", "parity"]
CANARY = ["canary 10 %", "canary 50 %", "canary 100 %"]
#: A machine that stands still for a moment is no finding here; the limits themselves have tests of their own.
PATIENT = Limits(p99_seconds=30.0, alone_p99_seconds=30.0)


def brief(seconds: float) -> None:
    """A sleep that does not wait for what is on this machine anyway."""
    time.sleep(min(seconds, 0.005))


@dataclass
class Desk:
    """Who releases, and what there is to release: ``policies`` by their seed."""

    run: FakeCloudRun
    gcs: FakeGcs
    folder: Path
    policies: dict[int, Policy] = field(default_factory=dict)

    def target(self, **changes: object) -> Target:
        settings = {
            "project": "himari-tests",
            "region": "us-central1",
            "service": "himari",
            "service_account": "himari-serving@himari-tests.iam.gserviceaccount.com",
            "image": IMAGE,
            "window_seconds": 0.01,
            "endpoints": Endpoints(run=self.run.url, monitoring=self.run.url),
        }
        return Target(**{**settings, **changes})  # type: ignore[arg-type]

    def platform(self, log: Callable[[str], None] = lambda line: None, **changes: object) -> CloudRun:
        target = self.target(**changes)
        credentials = target.cloud.credentials()
        return CloudRun(
            target,
            STORE,
            RunApi(target, credentials, sleep=brief, operation_seconds=20.0),
            Watch(Monitoring(target, credentials, sleep=brief), sleep=brief),
            limits=PATIENT,
            health_seconds=20.0,
            log=log,
        )

    def candidate(self, seed: int) -> Path:
        where = self.folder / f"policy-{seed}"
        if seed not in self.policies:
            self.policies[seed] = make_policy(where, seed)
        return where

    def model(self, seed: int) -> str:
        self.candidate(seed)
        return self.policies[seed].model_id

    def release(self, seed: int, log: Callable[[str], None] = lambda line: None, **changes: object) -> Release:
        folder = self.candidate(seed)
        return release(folder, store=STORE, run_id=f"run-{seed}", platform=self.platform(log, **changes), log=log)

    def rollback(self, log: Callable[[str], None] = lambda line: None) -> Channel:
        return rollback(STORE, platform=self.platform(log), log=log)

    def champion(self) -> str:
        channel = read(STORE)
        return channel.champion.model_id if channel else "nobody"

    def serving(self) -> dict[str, int]:
        """Percent of the traffic by model."""
        of = {name.rsplit("/", 1)[-1]: each.annotations["himari-model"] for name, each in self.run.revisions.items()}
        return {of[revision]: percent for revision, percent in self.run.traffic().items()}


@contextmanager
def desk(fleet: Fleet, folder: Path, setenv: Callable[[str, str], None]) -> Iterator[Desk]:
    """An empty bucket and an empty project, and a machine that may release into them."""
    with FakeGcs("himari-tests") as gcs:
        setenv("STORAGE_EMULATOR_HOST", gcs.url)
        with cloud_run(fleet, IMAGE, environment={"STORAGE_EMULATOR_HOST": gcs.url}) as run:
            setenv("GCE_METADATA_HOST", run.front.metadata)
            yield Desk(run, gcs, folder)
