"""The one schedule, from its command line against a loopback Vertex to a run that it begins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.cloud import aiplatform_v1 as v1
from google.protobuf import json_format
from kfp import dsl

from components.ingest import ingest
from layer3.market.simulator import MarketSpec, simulate
from pipelines import schedule
from pipelines.labels import run_labels
from pipelines.provenance import provenance
from pipelines.schedule import on_schedule
from pipelines.submit import Request
from pipelines.training import NAME
from tests.fakes.cloud import World
from tests.pipelines.schedules import CRON, there

ROOT = Path(__file__).resolve().parents[2]


def put(cloud: World, *more: str, cron: str = CRON) -> int:
    where = ["--cloud", str(cloud.file), "--spec", str(cloud.spec)]
    return schedule.main(["set", "--cron", cron, *where, *more])


def act(cloud: World, command: str) -> int:
    return schedule.main([command, "--cloud", str(cloud.file)])


def job_of(one: v1.Schedule) -> dict[str, Any]:
    return json_format.MessageToDict(v1.CreatePipelineJobRequest.pb(one.create_pipeline_job_request))["pipelineJob"]


def test_a_schedule_is_a_submitted_run_over_the_newest_data(
    cloud: World, compiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert put(cloud, "--data", "synthetic:bars=5000,seed=5") == 0
    (made,) = there(cloud)
    assert (made.display_name, made.cron, made.max_concurrent_run_count) == (NAME, CRON, 1)
    assert (made.allow_queueing, made.catch_up) == (False, False)
    job = job_of(made)
    parameters = job["runtimeConfig"]["parameterValues"]
    assert parameters["data_version"] == "newest"
    assert parameters["data"] == "synthetic:bars=5000,seed=5"
    assert json.loads(parameters["vertex"])["experiment"] == "himari"
    assert parameters["register_rejected"] is False
    assert job["runtimeConfig"]["gcsOutputDirectory"] == "gs://bucket/runs"
    assert job["serviceAccount"] == cloud.cloud.pipeline_service_account
    assert job["labels"] == run_labels(provenance(ROOT), data="synthetic:bars=5000,seed=5", data_version="")
    assert set(job["labels"]) == {"git_commit", "source", "data", "contract"}
    spec = yaml.safe_load(compiled.read_text())
    assert cached(job["pipelineSpec"]) == cached(spec) - {"ingest"}
    assert "ingest" in cached(spec)
    said = capsys.readouterr().out
    assert "created" in said
    assert "WARNING: a synthetic market never has newer data" in said
    assert "next run" in said
    assert "console.cloud.google.com" in said
    assert "estimate" in said
    assert re.search(r"a month  +at most 4\.3 runs, \d+\.\d\d CAD", said)
    assert "budget" not in said
    assert put(cloud, cron="*/5 * * * *") == 0
    assert "WARNING: the budget is 133.33 CAD a month" in capsys.readouterr().out


def cached(spec: dict[str, Any]) -> set[str]:
    """The steps that may be served from the cache."""
    return {
        name
        for component in [spec["root"], *spec["components"].values()]
        for name, task in component.get("dag", {}).get("tasks", {}).items()
        if task.get("cachingOptions", {}).get("enableCache")
    }


def test_what_was_compiled_is_not_changed_by_it(compiled: Path) -> None:
    spec = yaml.safe_load(compiled.read_text())
    before = json.dumps(spec)
    made = on_schedule(Request(spec, {"data": "coinbase:BTC-USD", "data_version": "2026-01-01T00:00:00+00:00"}, {}))
    assert json.dumps(spec) == before
    assert made.labels["data"] == "coinbase-btc-usd"
    assert made.parameters == {"data": "coinbase:BTC-USD", "data_version": "newest"}


def test_setting_it_again_changes_the_one_that_is_there(cloud: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert put(cloud) == 0
    (first,) = there(cloud)
    name = first.name
    assert put(cloud, "--seed", "9", cron="CRON_TZ=America/Toronto 30 7 * * mon-fri") == 0
    (second,) = there(cloud)
    assert second.name == name
    assert second.cron == "CRON_TZ=America/Toronto 30 7 * * mon-fri"
    assert job_of(second)["runtimeConfig"]["parameterValues"]["seed"] == 9
    assert "updated" in capsys.readouterr().out


def test_it_is_paused_resumed_and_deleted_and_each_again_is_harmless(
    cloud: World, capsys: pytest.CaptureFixture[str]
) -> None:
    put(cloud)
    (made,) = there(cloud)
    for command, words, state in (
        ("pause", "is paused;", "PAUSED"),
        ("pause", "paused already", "PAUSED"),
        ("resume", "goes on", "ACTIVE"),
        ("resume", "active already", "ACTIVE"),
        ("delete", "deleted", None),
        ("delete", "there is no schedule", None),
    ):
        capsys.readouterr()
        assert act(cloud, command) == 0
        assert words in capsys.readouterr().out
        assert [one.state.name for one in there(cloud)] == ([state] if state else [])
    resumed = cloud.vertex.named("ResumeSchedule")[0]
    assert not resumed.body.get("catchUp")
    assert made.name


def test_a_paused_one_that_is_changed_stays_paused_and_says_so(
    cloud: World, capsys: pytest.CaptureFixture[str]
) -> None:
    put(cloud)
    act(cloud, "pause")
    capsys.readouterr()
    assert put(cloud, cron="0 7 * * *") == 0
    assert there(cloud)[0].state.name == "PAUSED"
    assert "make schedule-resume" in capsys.readouterr().out


def test_the_list_says_when_it_runs_next(cloud: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert act(cloud, "list") == 0
    assert "there is no schedule named himari-training" in capsys.readouterr().out
    put(cloud)
    capsys.readouterr()
    assert act(cloud, "list") == 0
    headings, line = capsys.readouterr().out.splitlines()
    assert headings.split() == ["schedule", "state", "when", "next", "run", "runs"]
    (made,) = there(cloud)
    assert made.next_run_time.weekday() == 0
    for word in (made.name.rpartition("/")[2], "ACTIVE", CRON, f"{made.next_run_time:%Y-%m-%d} 06:00 UTC", "0 begun"):
        assert word in line


def test_two_of_that_name_are_told_and_deleted_together(cloud: World, capsys: pytest.CaptureFixture[str]) -> None:
    put(cloud)
    (made,) = there(cloud)
    twin = v1.Schedule(made)
    twin.name = made.name + "7"
    cloud.vertex.schedules.schedules[twin.name] = twin
    for refused in (put, lambda cloud: act(cloud, "pause"), lambda cloud: act(cloud, "resume")):
        assert refused(cloud) == 2
        said = capsys.readouterr().err
        assert "there are 2 schedules named himari-training" in said
        assert "make schedule-delete" in said
    assert act(cloud, "list") == 0
    assert "WARNING: 2 schedules" in capsys.readouterr().out
    assert act(cloud, "delete") == 0
    assert there(cloud) == []
    assert put(cloud) == 0
    assert len(there(cloud)) == 1


def test_one_that_has_come_to_its_end_is_not_changed(cloud: World, capsys: pytest.CaptureFixture[str]) -> None:
    put(cloud)
    there(cloud)[0].state = v1.Schedule.State.COMPLETED
    assert put(cloud) == 2
    assert "has come to its end" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "cron", "words"),
    [
        ([], "", "when is it to run"),
        ([], "0 6 * *", "4 fields"),
        ([], "0 25 * * *", "'25' is no hour"),
        ([], "TZ=Mars/Olympus 0 6 * * *", "no time zone 'Mars/Olympus'"),
        (["--data", __file__, "--symbol", "BTC-USDT"], CRON, "lies on this machine"),
        (["--data", "gs://bucket/none.csv", "--symbol", "BTC-USDT"], CRON, "there is no such file"),
        (["--max-cost", "0.0001"], CRON, "MAX_COST="),
        (["--seed", "-1"], CRON, "seed is -1"),
        (["--override-name", "Ada", "--override-reason", "because"], CRON, "leave OVERRIDE_NAME and OVERRIDE_REASON"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_made(
    cloud: World, capsys: pytest.CaptureFixture[str], arguments: list[str], cron: str, words: str
) -> None:
    assert put(cloud, *arguments, cron=cron) == 2
    assert words in capsys.readouterr().err
    assert there(cloud) == []


def test_what_a_run_would_miss_a_schedule_misses(cloud: World, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.project.enabled.discard("aiplatform.googleapis.com")
    assert put(cloud) == 2
    assert "gcloud services enable aiplatform.googleapis.com" in capsys.readouterr().err
    assert there(cloud) == []


@pytest.mark.parametrize("command", ["list", "pause", "resume", "delete"])
def test_a_configuration_that_is_not_there_is_told(tmp_path: Path, command: str) -> None:
    assert schedule.main([command, "--cloud", str(tmp_path / "none.yaml")]) == 2


def test_a_region_where_there_is_nothing_is_told(cloud: World, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.vertex.fail("ListSchedules", status=404)
    assert act(cloud, "list") == 2
    assert "finds nothing at projects/himari-test/locations/us-central1" in capsys.readouterr().err


def test_ingest_pins_the_newest_data_when_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "BTC.parquet"
    pinned = []
    for seed in (1, 2):
        simulate(MarketSpec(bars=5_000, seed=seed)).to_parquet(path, index=False)
        made = [dsl.Dataset(name=name, uri=str(tmp_path / f"{name}-{seed}"), metadata={}) for name in ("c", "f")]
        ingest.python_func(str(path), "BTC-USDT", "newest", "", *made)
        pinned.append(made[0].metadata["data_version"])
    assert len(set(pinned)) == 2
    assert all(len(version) == 64 for version in pinned)


def test_a_scheduled_run_is_linked_registered_and_served_one_at_a_time(cloud: World, compiled: Path) -> None:
    """What the clock begins ends as what is typed: the same labels, its experiment, its version, its champion.

    Its training is a custom job here.
    """
    spec = ["--spec", str(compiled.with_name("training-custom-job.yaml"))]
    small = ["--steps", "4096", "--folds", "0"]
    assert put(cloud, "--data", "synthetic:bars=5000,edge=3,seed=5", *small, *spec) == 0
    (made,) = there(cloud)
    # Nothing else lets so short a training through, and the command takes none.
    asked = made.create_pipeline_job_request.pipeline_job.runtime_config.parameter_values
    asked["override_name"], asked["override_reason"] = "Ada", "a test of the workflow"
    vertex = cloud.vertex
    begun = vertex.schedules.fire(made.name)
    assert begun is not None
    assert vertex.schedules.fire(made.name) is None
    vertex.pipelines.wait()
    run = vertex.pipelines.jobs[begun.name]
    assert run.state.name == "PIPELINE_STATE_SUCCEEDED", run.error.message
    assert run.schedule_name == made.name
    assert dict(run.labels) == job_of(made)["labels"]
    run_id = run.name.rpartition("/")[2]
    assert vertex.metadata.children("himari") == {run_id, f"himari-{run_id}"}
    told = vertex.metadata.named(f"himari-{run_id}").metadata
    assert told["_metrics"]["passed"] == 1.0
    assert "policy_sharpe" in told["_metrics"] or "policy_total_return" in told["_metrics"]
    assert told["_params"]["symbol"] == "SYNTH-USD"
    assert vertex.models.aliases("himari-synth-usd") == {"candidate": "1", "champion": "1", "default": "1"}
    ((version,),) = vertex.models.versions.values()
    assert version.labels["verdict"] == "overridden"
    assert version.labels["run"] == run_id
    champion = json.loads(cloud.gcs.content("bucket", "channels/production.json"))
    assert version.artifact_uri == f"gs://bucket/models/{champion['model_id']}"
    assert champion["run_id"] == run_id
    registered = artifact(run, "register", "registered")
    assert registered.metadata["resourceName"] == f"{cloud.cloud.parent}/models/himari-synth-usd@1"
    # A paused schedule begins nothing.
    act(cloud, "pause")
    assert vertex.schedules.fire(made.name) is None


def artifact(run: v1.PipelineJob, step: str, name: str) -> v1.Artifact:
    (found,) = [detail.outputs[name].artifacts[0] for detail in run.job_detail.task_details if detail.task_name == step]
    return found


def test_ctrl_c_is_answered_with_what_to_do(
    cloud: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(schedule.Scheduler, "found", interrupted)
    assert act(cloud, "list") == 130
    assert "the same again goes on" in capsys.readouterr().err
