"""A bucket, a Cloud Run and everything that a release there needs, on loopback."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from layer3.agent.policy import Policy
from layer3.agent.policy_file import load_policy
from layer3.champion import Channel, read
from layer3.errors import ReleaseError
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
    operation_seconds: float = 120.0
    health_seconds: float = 120.0
    #: Of operations, in seconds.
    clock: Callable[[], float] = time.monotonic

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
        api = RunApi(target, credentials, clock=self.clock, sleep=brief, operation_seconds=self.operation_seconds)
        watch = Watch(Monitoring(target, credentials, sleep=brief), sleep=brief)
        return CloudRun(
            target, STORE, api, self.watcher or watch, limits=self.limits, health_seconds=self.health_seconds, log=log
        )

    def candidate(self, seed: int) -> Path:
        where = self.folder / f"policy-{seed}"
        if seed not in self.policies:
            self.policies[seed] = load_policy(where) if where.exists() else make_policy(where, seed)
        return where

    def glance(self, canary: Canary, _seconds: float) -> list[Comparison]:
        """A watcher who looks at Cloud Monitoring once, and asks nothing."""
        target = self.target()
        seen = Monitoring(target, target.cloud.credentials(), sleep=brief)(canary.revision, canary.since)
        return [Comparison("at Cloud Run's front", seen, None)]

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
    """What the tests of a module stand on: a bucket, a Cloud Run whose servers were started once, and two states of it.

    ``empty`` has nothing; in ``served`` the model of seed 1 is champion, as a release has left it.
    """

    run: FakeCloudRun
    gcs: FakeGcs
    folder: Path
    empty: Callable[[], None]
    served: Callable[[], None]

    def desk(self, setenv: Callable[[str, str], None], *, served: bool) -> Desk:
        """A desk at one of the two states, on a machine that may release."""
        for name, value in self.machine().items():
            setenv(name, value)
        for key in [key for key in self.gcs.objects if "/channels/" in key[1]]:
            del self.gcs.objects[key]
        (self.served if served else self.empty)()
        return Desk(self.run, self.gcs, self.folder)

    def machine(self) -> dict[str, str]:
        """Where this machine finds its bucket and its identity."""
        return {"STORAGE_EMULATOR_HOST": self.gcs.url, "GCE_METADATA_HOST": self.run.front.metadata}


@contextmanager
def ground(folder: Path) -> Iterator[Ground]:
    """The fakes, in a ``folder`` for policies, for as long as the block lasts."""
    with contextlib.ExitStack() as stack:
        gcs = stack.enter_context(FakeGcs("himari-tests"))
        google = stack.enter_context(issuer("first"))
        fleet = stack.enter_context(contextlib.closing(Fleet()))
        environment = {"STORAGE_EMULATOR_HOST": gcs.url, "ID_TOKEN_CERTS_URL": google.url}
        run = stack.enter_context(cloud_run(fleet, IMAGE, environment=environment))
        first = Ground(run, gcs, folder, run.remember(), lambda: None)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in first.machine().items():
                patch.setenv(name, value)
            Desk(run, gcs, folder).release(1)
            channel = gcs.content("himari-tests", "store/channels/production.json")
        restore = run.remember()

        def served() -> None:
            gcs.put("himari-tests", "store/channels/production.json", channel)
            restore()

        yield replace(first, served=served)


def refused(cloud: Desk, seed: int, said: str, **changes: object) -> str:
    """A release that ends with ``said``, and leaves the champion serving alone."""
    old = cloud.champion()
    with pytest.raises(ReleaseError, match=f"(?s){said}") as caught:
        cloud.release(seed, **changes)
    assert cloud.champion() == old
    assert cloud.serving() == {old: 100}
    assert all(to.tag != "candidate" for to in cloud.run.only().traffic)
    assert f"{old} still serves" in str(caught.value)
    return str(caught.value)
