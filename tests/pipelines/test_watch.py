"""Following a run on Vertex: every state its steps can be in, how it ends, and how nothing is lost when it does not."""

import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from google.cloud import aiplatform_v1 as v1
from google.rpc import status_pb2

from layer3 import storage
from pipelines import job, watch
from pipelines.cost import run_estimate
from pipelines.manifest import parse_manifest
from pipelines.prices import load_prices
from pipelines.submit import Request
from pipelines.submit import main as submit
from pipelines.submit import submit as begin
from tests.fakes.cloud import World, world
from tests.fakes.servers import wait_for

ROOT = Path(__file__).resolve().parents[2]
STATE = v1.PipelineState
CRITERIA = [
    {"name": "sharpe", "value": 1.2, "comparison": ">=", "limit": 1.0, "passed": True, "sentence": "Sharpe 1.20."},
    {"name": "trades", "value": 3, "comparison": ">=", "limit": 30, "passed": False, "sentence": "3 round trips."},
]


@pytest.fixture
def here(tmp_path, compiled, monkeypatch, capsys) -> Iterator[World]:
    """A cloud with one run that was submitted and never begins by itself."""
    with world(tmp_path / "world", compiled) as cloud:
        cloud.vertex.pipelines.paused = True
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.gcs.url)
        data = "synthetic:no-edge,bars=6000"
        assert submit(["--cloud", str(cloud.file), "--spec", str(cloud.spec), "--data", data, "--folds", "0"]) == 0
        capsys.readouterr()
        yield cloud


def run_of(here: World) -> v1.PipelineJob:
    (found,) = here.vertex.pipelines.jobs.values()
    return found


def id_of(here: World) -> str:
    return job.run_id_of(run_of(here))


def tell(here: World, name: str, state: str, *, iteration: int = 1, **more: object) -> None:
    """What the service is told of a step."""
    number = [step.name for step in job.steps(run_of(here))].index(name) + 100 * iteration
    here.vertex.pipelines._told(run_of(here), {"id": number, "name": name, "state": state} | more)


def finish(here: World, state: STATE = STATE.PIPELINE_STATE_SUCCEEDED, error: str = "") -> None:
    run = run_of(here)
    run.state, run.end_time = state, run.start_time or run.create_time
    if error:
        run.error = status_pb2.Status(code=9, message=error)


def gated(here: World, *, passed: bool, override: object = None) -> None:
    metadata = {"passed": passed, "criteria": CRITERIA, "limits": {}} | ({"override": override} if override else {})
    verdict = {"uri": "gs://bucket/runs/verdict", "type": "system.Markdown", "metadata": metadata}
    tell(here, "gate", "SUCCEEDED", outputs={"verdict": [verdict]})


def follow(
    here: World, *acts: Callable[[], object], hours: float = 12.0, clock: Callable[[], float] = lambda: 0.0
) -> int:
    """The run is watched, and one of ``acts`` happens in each wait."""
    happening = iter(acts)
    return watch.follow(
        here.cloud, id_of(here), str(here.file), hours=hours, clock=clock, sleep=lambda seconds: next(happening)()
    )


def test_every_change_of_a_step_is_a_line_once(here, capsys):
    def begins() -> None:
        run_of(here).state = STATE.PIPELINE_STATE_RUNNING
        tell(here, "ingest", "RUNNING")

    def goes_on() -> None:
        tell(here, "ingest", "SKIPPED")
        tell(here, "train", "RUNNING")
        tell(here, "walk", "RUNNING")
        tell(here, "walk", "SUCCEEDED", iteration=2)

    def ends() -> None:
        tell(here, "train", "SUCCEEDED")
        tell(here, "walk", "SUCCEEDED")
        gated(here, passed=True)
        tell(here, "reject", "NOT_TRIGGERED")
        finish(here)

    assert follow(here, begins, lambda: None, goes_on, ends) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    shown = [line.split(maxsplit=1)[1] for line in lines if line.startswith("[")]
    assert [line for line in lines if line.startswith("run ")] == ["run PENDING", "run RUNNING", "run SUCCEEDED"]
    assert [" ".join(line.split()) for line in shown] == [
        "Ingest candles RUNNING",
        "Ingest candles CACHED 0 s",
        "Train policy RUNNING",
        "Walk forward RUNNING 1/2",
        "Train policy SUCCEEDED 0 s",
        "Walk forward SUCCEEDED 0 s 2/2",
        "Gate SUCCEEDED",
        "Reject SKIPPED",
    ]


def test_a_released_policy_is_named_with_the_way_back(here, capsys):
    gated(here, passed=True)
    released = {
        "uri": "gs://bucket/models/m-1",
        "type": "google.UnmanagedContainerModel",
        "metadata": {"model_id": "m-1"},
    }
    tell(here, "deploy", "SUCCEEDED", outputs={"released": [released]})
    finish(here)
    assert follow(here) == 0
    said = capsys.readouterr().out
    assert "  pass  sharpe                Sharpe 1.20." in said
    assert f"RELEASED m-1: `make rollback CLOUD={here.file}` takes it back." in said
    assert "SYNTHETIC market" in said


def test_a_rejected_policy_is_no_failure(here, capsys):
    gated(here, passed=False)
    tell(here, "reject", "SUCCEEDED")
    finish(here)
    assert follow(here) == 0
    said = capsys.readouterr().out
    assert "  FAIL  trades                3 round trips." in said
    assert "REJECTED: nothing was released" in said


def test_an_override_is_shown_with_its_reason(here, capsys):
    gated(here, passed=True, override={"name": "ada", "reason": "a drill"})
    finish(here)
    assert follow(here) == 0
    assert "OVERRIDDEN by ada: a drill" in capsys.readouterr().out


def test_a_failed_run_names_its_step_and_what_to_do(here, capsys):
    tell(here, "train", "FAILED", error="The replica exited with a non-zero status of 1. ValueError: boom")
    finish(here, STATE.PIPELINE_STATE_FAILED, "The following tasks failed: train.")
    assert follow(here) == 1
    error = capsys.readouterr().err
    assert "FAILED: The following tasks failed: train." in error
    assert "step 'Train policy' failed: The replica exited with a non-zero status of 1. ValueError: boom" in error
    assert f"/pipelines/runs/{id_of(here)}?project=himari-test" in error
    assert "run the same again" in error


def test_a_cancelled_run_is_not_a_success(here, capsys):
    assert watch.main(["--run", id_of(here), "--cloud", str(here.file), "--cancel"]) == 0
    assert follow(here) == 1
    assert "CANCELLED" in capsys.readouterr().err
    assert watch.main(["--run", id_of(here), "--cloud", str(here.file), "--cancel"]) == 0
    assert "has ended already: CANCELLED" in capsys.readouterr().out


def test_the_record_of_a_run_is_written_into_the_store_and_costs_are_measured_by_it(here, capsys):
    assert "assumed" in run_estimate(load_prices(ROOT / "config" / "prices.yaml"), "gs://bucket").basis
    tell(here, "train", "RUNNING")
    tell(here, "train", "SUCCEEDED")
    details = run_of(here).job_detail.task_details
    details[0].end_time = details[0].start_time.replace(year=details[0].start_time.year + 1)
    gated(here, passed=False)
    finish(here)
    assert follow(here) == 0
    manifest = parse_manifest(storage.read_bytes(f"gs://bucket/runs/{id_of(here)}/manifest.json"))
    assert (manifest["run_id"], manifest["status"], manifest["pipeline"]) == (
        id_of(here),
        "SUCCEEDED",
        "himari-training",
    )
    assert manifest["parameters"]["data"] == "synthetic:no-edge,bars=6000"
    assert manifest["synthetic"] is True
    assert manifest["verdict"]["criteria"] == CRITERIA
    assert manifest["git"]["commit"] == run_of(here).labels["git_commit"].removesuffix("-dirty")
    train = next(step for step in manifest["steps"] if step["name"] == "train")
    assert (train["status"], train["depends_on"]) == ("SUCCEEDED", ["ingest"])
    assert train["seconds"] > 300 * 86_400
    gate = next(step for step in manifest["steps"] if step["name"] == "gate")
    assert gate["outputs"]["artifacts"]["verdict"]["uri"] == "gs://bucket/runs/verdict"
    assert "median of 1" in run_estimate(load_prices(ROOT / "config" / "prices.yaml"), "gs://bucket").basis


def test_a_run_that_nobody_watched_is_on_record_when_the_next_is_submitted(here, capsys):
    where = ["--cloud", str(here.file), "--spec", str(here.spec), "--data", "synthetic:no-edge,bars=6000"]
    first = run_of(here)
    tell(here, "train", "RUNNING")
    tell(here, "train", "SUCCEEDED")
    gated(here, passed=False)
    finish(here)
    elsewhere = v1.PipelineJob(first, name=f"{first.name}-of-another-store")
    elsewhere.runtime_config.gcs_output_directory = "gs://another/runs"
    here.vertex.pipelines.jobs[elsewhere.name] = elsewhere
    assert submit([*where, "--folds", "0", "--seed", "2"]) == 0
    said = capsys.readouterr().out
    assert f"records    written of {job.run_id_of(first)}, which" in said
    assert "median of 1 past run" in said
    record = storage.read_bytes(f"gs://bucket/runs/{job.run_id_of(first)}/manifest.json")
    assert parse_manifest(record)["status"] == "SUCCEEDED"
    # It is there now, and Vertex may be away.
    here.vertex.fail("ListPipelineJobs", status=403)
    assert submit([*where, "--folds", "0", "--seed", "3"]) == 0
    output = capsys.readouterr()
    assert "records" not in output.out
    assert "median of 1 past run" in output.out
    assert "The estimate knows only the runs that were watched" in output.err


def test_a_run_that_never_ends_is_left_with_the_way_to_go_on(here, capsys):
    clock = itertools.count(step=600)
    nothing = itertools.repeat(lambda: None)
    assert follow(here, *itertools.islice(nothing, 50), hours=1.0, clock=lambda: float(next(clock))) == 1
    error = capsys.readouterr().err
    assert f"run {id_of(here)} is PENDING after 1 hours, and goes on" in error
    assert f"make watch-pipeline RUN={id_of(here)} CLOUD={here.file}" in error
    assert f"make cancel-pipeline RUN={id_of(here)} CLOUD={here.file}" in error
    assert len(here.vertex.named("GetPipelineJob")) == 6


def test_ctrl_c_stops_the_watching_and_not_the_run(here, capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert follow(here, interrupted) == 130
    error = capsys.readouterr().err
    assert "stopped watching" in error
    assert f"make watch-pipeline RUN={id_of(here)}" in error
    assert not here.vertex.named("CancelPipelineJob")
    finish(here)
    assert watch.main(["--run", id_of(here), "--cloud", str(here.file)]) == 0


@pytest.mark.parametrize("fault", [{"kind": "drop"}, {"status": 503}, {"status": 429, "retry_after": 30}])
def test_a_look_that_fails_is_taken_again(here, fault):
    here.vertex.fail("GetPipelineJob", **fault)
    waits: list[float] = []

    def slept(seconds: float) -> None:
        waits.append(seconds)
        finish(here)

    assert watch.follow(here.cloud, id_of(here), str(here.file), sleep=slept) == 0
    assert waits == [fault.get("retry_after", 1.0)]


def test_a_vertex_that_is_gone_is_said_with_the_way_to_go_on(here, capsys):
    here.vertex.fail("GetPipelineJob", "drop", times=99)
    assert watch.follow(here.cloud, id_of(here), str(here.file), sleep=lambda seconds: None) == 2
    error = capsys.readouterr().err
    assert "cannot look at the run" in error
    assert f"make watch-pipeline RUN={id_of(here)}" in error


def test_a_run_whose_step_fails_says_so_in_the_steps_own_words(here, capsys):
    """Not told but executed: the file that was named is not in the store."""
    here.vertex.pipelines.paused = False
    given = {"store": "gs://bucket", "data": "gs://bucket/none.parquet", "symbol": "BTC-USDT", "data_version": "0" * 64}
    compiled = yaml.safe_load(here.spec.read_text())
    run_id, _ = begin(here.cloud, Request(compiled, given, {}), here.folder)
    assert watch.follow(here.cloud, run_id, str(here.file)) == 1
    error = capsys.readouterr().err
    assert "The following tasks failed: ingest." in error
    assert "step 'Ingest candles' failed" in error
    assert "gs://bucket/none.parquet" in error
    told = json.loads(here.gcs.content("bucket", f"runs/{run_id}/notification.json"))
    assert told["state"] == "FAILED"
    assert ("bucket", "channels/production.json") not in here.gcs.objects


def test_a_run_that_is_cancelled_while_it_works_leaves_no_process(here):
    here.vertex.pipelines.paused = False
    given = {"store": "gs://bucket", "data": "synthetic:default", "train_steps": 10**9, "folds": 0}
    run_id, _ = begin(here.cloud, Request(yaml.safe_load(here.spec.read_text()), given, {}), here.folder)
    name = f"projects/424242424242/locations/us-central1/pipelineJobs/{run_id}"
    wait_for(
        lambda: (
            [step.state for step in job.steps(here.vertex.pipelines.jobs[name]) if step.name == "ingest"] == ["RUNNING"]
        )
    )
    assert watch.main(["--run", run_id, "--cloud", str(here.file), "--cancel"]) == 0
    here.vertex.pipelines.wait()
    assert job.state_of(here.vertex.pipelines.jobs[name]) == "CANCELLED"
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert run_id.encode() not in path.read_bytes()


def test_a_permission_denied_names_the_role(here, capsys):
    here.vertex.fail("GetPipelineJob", status=403, message="Permission 'aiplatform.pipelineJobs.get' denied.")
    assert follow(here) == 2
    assert "--role=roles/aiplatform.user" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--cancel"]])
def test_a_run_that_is_not_there_is_said(here, capsys, more):
    assert watch.main(["--run", "himari-training-x", "--cloud", str(here.file), *more]) == 2
    assert "there is no run himari-training-x in projects/himari-test/locations/us-central1" in capsys.readouterr().err


@pytest.mark.parametrize("said", ["", "a/b c", "../x", "Run-1", "projects/p/locations/l/pipelineJobs/x", "lauf-é"])
@pytest.mark.parametrize("more", [[], ["--cancel"]])
def test_a_run_must_be_named(here, capsys, said, more):
    assert watch.main(["--run", said, "--cloud", str(here.file), *more]) == 2
    assert f"which run? RUN is {said!r}; it must be a run's id" in capsys.readouterr().err


def test_a_terminal_sees_a_table_that_changes_in_place(here, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    def ends() -> None:
        gated(here, passed=False)
        finish(here)

    assert follow(here, lambda: tell(here, "ingest", "RUNNING"), ends) == 0
    said = capsys.readouterr().out
    assert f"{id_of(here)}: PENDING" in said
    assert f"{id_of(here)}: SUCCEEDED" in said
    assert "\x1b[1A" in said  # the cursor goes up again


def test_a_step_that_runs_shows_for_how_long(here):
    tell(here, "ingest", "RUNNING")
    started = run_of(here).job_detail.task_details[0].start_time
    (ingest,) = (step for step in job.steps(run_of(here)) if step.name == "ingest")
    assert watch._time(ingest, started + timedelta(seconds=75)) == "75 s"
    assert watch._time(ingest, None) == ""


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([], "PENDING"),
        (["PENDING"], "PENDING"),
        (["SUCCEEDED", "RUNNING"], "RUNNING"),
        (["SUCCEEDED", "PENDING"], "PENDING"),
        (["SUCCEEDED", "SKIPPED"], "SUCCEEDED"),
        (["SKIPPED", "SKIPPED"], "CACHED"),
        (["NOT_TRIGGERED"], "SKIPPED"),
        (["RUNNING", "FAILED", "SUCCEEDED"], "FAILED"),
        (["CANCELLED", "SUCCEEDED"], "CANCELLED"),
        (["CANCEL_PENDING"], "CANCELLING"),
        (["STATE_UNSPECIFIED"], "PENDING"),
    ],
)
def test_the_state_of_a_loop_is_its_worst_iterations(compiled, states, expected):
    details = [{"task_id": number, "task_name": "walk", "state": state} for number, state in enumerate(states)]
    run = v1.PipelineJob(pipeline_spec=yaml.safe_load(compiled.read_text()), job_detail={"task_details": details})
    (walk,) = (step for step in job.steps(run) if step.name == "walk")
    assert (walk.state, walk.tasks) == (expected, len(states))


def test_a_record_holds_no_number_that_is_not_finite(here):
    finish(here)
    json.dumps(job.manifest(run_of(here)), allow_nan=False)


def test_a_pipeline_without_a_gate_rejects_nothing(here, capsys):
    finish(here)
    assert follow(here) == 0
    said = capsys.readouterr().out
    assert "SUCCEEDED: this pipeline releases nothing." in said
    assert "REJECTED" not in said
