"""A training whose machine is taken away goes on from its checkpoint in the bucket, and ends in the same bytes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kfp import dsl

from components.ingest import ingest
from components.train import train
from layer3.agent.policy_file import load_policy
from tests.fakes.gcs import FakeGcs
from tests.fakes.processes import group
from tests.fakes.servers import wait_for

ROOT = Path(__file__).resolve().parents[2]
STEPS = 131_072
#: As Vertex starts it: a process of its own, which nobody asks before its machine is gone.
STEP = """
import sys
from tests.components.test_preemption import trained
trained(sys.argv[1], sys.argv[2], sys.argv[3])
"""


def artifact(kind: type[dsl.Artifact], folder: str, name: str) -> dsl.Artifact:
    return kind(name=name, uri=str(Path(folder, name)), metadata={})


def trained(features: str, folder: str, store: str) -> Path:
    """Run the step; the folder of its policy."""
    given = dsl.Dataset(name="features", uri=features, metadata={"rows": 5_000})
    model = artifact(dsl.Model, folder, "model")
    others = [
        artifact(kind, folder, name)
        for kind, name in ((dsl.Metrics, "metrics"), (dsl.HTML, "curves"), (dsl.Artifact, "events"))
    ]
    train.python_func(given, 1, STEPS, 1, store, model, *others)
    return Path(model.path)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("ingested"))
    made = [artifact(dsl.Dataset, folder, name) for name in ("candles", "features")]
    ingest.python_func("synthetic:bars=5000,edge=3,seed=5", "SYNTH-USD", "", "", *made)
    return made[1].path


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGcs]:
    with FakeGcs("bucket") as fake:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
        yield fake


def checkpoints(gcs: FakeGcs) -> list[str]:
    with gcs.lock:
        return [name for _, name in gcs.objects if name.startswith("checkpoints/")]


def test_it_goes_on_from_the_newest_checkpoint_to_the_same_bytes(
    features: str, gcs: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = trained(features, str(tmp_path / "one"), str(tmp_path / "store"))
    command = [sys.executable, "-W", "ignore", "-c", STEP, features, str(tmp_path / "two"), "gs://bucket"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with group(command, cwd=ROOT, env=environment) as process:
        wait_for(lambda: checkpoints(gcs) or process.poll() is not None, 120.0)
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    (left,) = checkpoints(gcs)
    assert not (tmp_path / "two" / "model" / "policy.safetensors").exists()
    monkeypatch.setenv("HIMARI_PROGRESS", "1")
    capsys.readouterr()
    # Another run of the same training finds it too: its name is what is trained.
    resumed = trained(features, str(tmp_path / "three"), "gs://bucket")
    told = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("::progress")]
    assert int(told[0][1]) > 25 * 2_048, "it began anew"
    assert (resumed / "policy.safetensors").read_bytes() == (undisturbed / "policy.safetensors").read_bytes()
    assert load_policy(resumed).manifest["golden"] == load_policy(undisturbed).manifest["golden"]
    assert checkpoints(gcs) == [], f"{left} is of no use any more"
