"""A bucket, a Cloud Run and everything that a release there needs, on loopback."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from layer3.agent.policy import Policy
from layer3.champion import Channel, read
from serving.canary import Comparison, Limits
from serving.cloud import Endpoints
from serving.platforms.cloud_run import CloudRun
from serving.platforms.run_api import RunApi
from serving.platforms.target import Target
from serving.platforms.watch import Canary, Monitoring, Watch, Watcher
from serving.release import Release, release, rollback
from tests.fakes.cloud_run import FakeCloudRun, cloud_run
from tests.fakes.front import Fleet
from tests.fakes.gcs import FakeGcs
from tests.fakes.issuer import issuer
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
    time.sleep(min(seconds, 0.001))


def content(_canary: Canary, _seconds: float) -> list[Comparison]:
    """A watcher to whom nothing ever is wrong."""
    return []


@dataclass
class Desk:
    """Who releases, and what there is to release: ``policies`` by their seed."""

    run: FakeCloudRun
    gcs: FakeGcs
    folder: Path
    policies: dict[int, Policy] = field(default_factory=dict)
    #: Of canaries; None for the real one.
    watcher: Watcher | None = content
    limits: Limits = PATIENT
    operation_seconds: float = 20.0
    health_seconds: float = 20.0

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
        api = RunApi(target, credentials, sleep=brief, operation_seconds=self.operation_seconds)
        watch = Watch(Monitoring(target, credentials, sleep=brief), sleep=brief)
        return CloudRun(
            target, STORE, api, self.watcher or watch, limits=self.limits, health_seconds=self.health_seconds, log=log
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


@dataclass(frozen=True)
class Ground:
    """What many tests stand on: servers that were started once, a bucket, and Google's signature."""

    fleet: Fleet
    gcs: FakeGcs
    environment: dict[str, str]


@contextmanager
def ground() -> Iterator[Ground]:
    fleet = Fleet()
    try:
        with FakeGcs("himari-tests") as gcs, issuer("first") as google:
            yield Ground(fleet, gcs, {"STORAGE_EMULATOR_HOST": gcs.url, "ID_TOKEN_CERTS_URL": google.url})
    finally:
        fleet.close()


@contextmanager
def desk(ground: Ground, folder: Path, setenv: Callable[[str, str], None]) -> Iterator[Desk]:
    """An empty project, a bucket without champion, and a machine that may release there."""
    for key in [key for key in ground.gcs.objects if "/channels/" in key[1]]:
        del ground.gcs.objects[key]
    setenv("STORAGE_EMULATOR_HOST", ground.gcs.url)
    with cloud_run(ground.fleet, IMAGE, environment=ground.environment) as run:
        setenv("GCE_METADATA_HOST", run.front.metadata)
        yield Desk(run, ground.gcs, folder)
