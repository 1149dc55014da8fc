"""A store with a champion, a candidate beside it, a server over one small random policy, and a Cloud Run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from layer3.agent.policy import Policy
from layer3.champion import Champion
from serving import source
from serving.channels import publish
from serving.models import store_policy
from tests.fakes.gcs import FakeGcs
from tests.serving.cloud import Desk, Ground, ground
from tests.serving.support import Client, make_policy, serve


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    make_policy(folder)
    return folder


@pytest.fixture(scope="module")
def client(policy_folder: Path) -> Iterator[Client]:
    """A ready server over ``policy_folder``."""
    with serve(policy_folder) as client:
        client.wait_for_health("ready")
        yield client


def champion_of(policy: Policy, run_id: str = "run-1", at: str = "2026-02-01T00:00:00+00:00") -> Champion:
    manifest = policy.manifest
    return Champion(policy.model_id, manifest["policy_sha256"], manifest["contract"], at, run_id)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store whose champion is the policy of seed 1."""
    root = tmp_path / "store"
    make_policy(tmp_path / "champion", seed=1)
    stored = store_policy(tmp_path / "champion", str(root))
    publish(str(root), champion_of(stored.policy), expected=None)
    return root


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    """The policy folder of seed 2."""
    make_policy(tmp_path / "candidate", seed=2)
    return tmp_path / "candidate"


@pytest.fixture
def gcs() -> Iterator[FakeGcs]:
    """A bucket that holds one object, ``gs://bucket/models/x``."""
    with FakeGcs("bucket") as fake:
        fake.put("bucket", "models/x", b"there")
        yield fake


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's reader of buckets tries again at once."""
    monkeypatch.setattr(source, "_PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A bucket and a Cloud Run, started once for a module's tests."""
    with ground(tmp_path_factory.mktemp("cloud")) as found:
        yield found


@pytest.fixture
def cloud(base: Ground, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """With nothing released yet."""
    return base.desk(monkeypatch.setenv, served=False)


@pytest.fixture
def served(base: Ground, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """With the model of seed 1 in service."""
    return base.desk(monkeypatch.setenv, served=True)
