"""Submitting a run: what Vertex is sent, what is refused before, and that nothing is ever begun twice."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from google.cloud import aiplatform_v1 as v1
from google.protobuf import json_format

from layer3 import storage
from layer3.errors import ConfigurationError, DataError, RefusedError, SourceError
from layer3.market.simulator import MarketSpec, simulate
from layer3.market.sources import version_of
from layer3.version import source_sha256
from pipelines import submit
from pipelines.labels import run_labels
from pipelines.submit import Request, main, uploaded
from serving.platforms.target import Target
from serving.vertex import place_of
from tests.fakes.cloud import SERVING, World, world
from tests.fakes.google import label_problem
from tests.test_makefile import AWKWARD, say

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 9, 1, 6, tzinfo=UTC)
SMALL = ["--data", "synthetic:no-edge,bars=6000", "--steps", "4096", "--folds", "0"]


@pytest.fixture
def here(tmp_path, compiled, monkeypatch) -> Iterator[World]:
    """A cloud that takes runs and leaves them pending."""
    with world(tmp_path / "world", compiled) as cloud:
        cloud.vertex.pipelines.paused = True
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.gcs.url)
        yield cloud


def run(here: World, *more: str, waits: list[float] | None = None) -> int:
    """The command, without its waits."""
    waited = [] if waits is None else waits
    return main(["--cloud", str(here.file), "--spec", str(here.spec), *SMALL, *more], sleep=waited.append)


def jobs_of(here: World) -> list[v1.PipelineJob]:
    return list(here.vertex.pipelines.jobs.values())


def test_vertex_is_sent_the_compiled_pipeline_and_what_was_asked_for(here, capsys):
    assert run(here, "--threshold", "1.5", "--seed", "3") == 0
    (job,) = jobs_of(here)
    run_id = job.name.rsplit("/", 1)[1]
    assert re.fullmatch(r"himari-training-\d{8}-\d{6}-[0-9a-f]{4}", run_id)
    assert job.display_name == run_id
    assert job.service_account == here.cloud.pipeline_service_account
    runtime = job.runtime_config
    assert runtime.gcs_output_directory == "gs://bucket/runs"
    assert runtime.failure_policy == v1.PipelineFailurePolicy.PIPELINE_FAILURE_POLICY_FAIL_FAST
    given = json_format.MessageToDict(v1.PipelineJob.pb(job).runtime_config)["parameterValues"]
    assert given["data"] == "synthetic:no-edge,bars=6000"
    assert (given["sharpe_threshold"], given["seed"], given["train_steps"], given["folds"]) == (1.5, 3, 4096, 0)
    assert (given["store"], given["serving_image"], given["target"]) == ("gs://bucket", SERVING, "")
    place = place_of(given["vertex"])
    assert (place.project, place.experiment, place.endpoint) == ("himari-test", "himari", here.vertex.url)
    assert label_problem(job.labels) is None
    assert job.labels["source"] == source_sha256(ROOT)[:40]
    assert job.labels["contract"] == "himari-state-16-1"
    assert job.labels["data"] == "synthetic-no-edge-bars-6000"
    said = capsys.readouterr().out
    assert f"pipelines/runs/{run_id}?project=himari-test" in said
    assert f"make watch-pipeline RUN={run_id} CLOUD={here.file}" in said
    assert re.search(r"estimate +\d+\.\d\d USD \(\d+\.\d\d CAD\); assumed", said)


def test_every_step_keeps_its_own_caching(here):
    assert run(here) == 0
    (job,) = jobs_of(here)
    sent = json_format.MessageToDict(v1.PipelineJob.pb(job).pipeline_spec)
    compiled = yaml.safe_load(here.spec.read_text())
    assert sent == compiled
    tasks = compiled["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    caching = {
        name: task["cachingOptions"].get("enableCache", False)
        for name, task in tasks.items()
        if "cachingOptions" in task
    }
    assert caching["train"] is True
    assert caching["gate"] is False


def test_it_is_what_googles_own_client_submits(here, monkeypatch):
    """``PipelineJob.submit`` on the same pipeline: what Vertex holds afterwards differs in the name alone.

    Its question to Resource Manager, which goes to Google wherever the endpoint points, is answered here.
    """
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import aiplatform
    from google.cloud.aiplatform.utils import resource_manager_utils

    assert run(here) == 0
    (ours,) = jobs_of(here)
    given = json_format.MessageToDict(v1.PipelineJob.pb(ours).runtime_config)["parameterValues"]
    monkeypatch.setattr(resource_manager_utils, "get_project_number", lambda project: str(here.vertex.place.number))
    aiplatform.init(
        project="himari-test",
        location="us-central1",
        api_transport="rest",
        api_endpoint=here.vertex.url,
        credentials=AnonymousCredentials(),
    )
    try:
        job = aiplatform.PipelineJob(
            display_name="theirs",
            template_path=str(here.spec),
            job_id="theirs",
            pipeline_root="gs://bucket/runs",
            parameter_values=given,
            enable_caching=None,
            labels=dict(ours.labels),
            failure_policy="fast",
        )
        job.submit(service_account=here.cloud.pipeline_service_account, experiment="himari")
    finally:
        aiplatform.initializer.global_pool.shutdown(wait=True)
    theirs = here.vertex.pipelines.jobs[job.resource_name]
    for same in (ours, theirs):
        same.name = same.display_name = ""
        same.create_time, same.job_detail = None, None
    assert theirs == ours


def test_a_run_is_one_of_its_experiment_at_once(here):
    assert run(here) == 0
    (job,) = jobs_of(here)
    contexts = here.vertex.metadata.contexts
    (experiment,) = [name for name in contexts if name.endswith("/contexts/himari")]
    assert list(contexts[job.job_detail.pipeline_run_context.name].parent_contexts) == [experiment]


def test_an_experiment_that_cannot_be_reached_stops_no_run(here, capsys):
    here.vertex.fail("GetContext", status=403, message="no", times=9)
    assert run(here) == 0
    assert len(jobs_of(here)) == 1
    assert "The run's last step links it to himari." in capsys.readouterr().err


def test_a_service_makes_the_run_release_to_it(tmp_path, compiled, monkeypatch):
    with world(tmp_path / "world", compiled, service="himari-dev") as here:
        here.vertex.pipelines.paused = True
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", here.gcs.url)
        assert run(here) == 0
        (job,) = jobs_of(here)
        target = Target.from_json(job.runtime_config.parameter_values["target"])
        assert (target.service, target.service_account) == ("himari-dev", here.cloud.serving_service_account)
        assert job.runtime_config.parameter_values["serving_image"] == SERVING


def test_what_is_missing_is_said_at_once_and_nothing_is_submitted(here, capsys):
    here.gcs.buckets.clear()
    here.project.enabled.clear()
    assert run(here) == 2
    error = capsys.readouterr().err
    assert "2 things are missing, nothing was submitted" in error
    assert "  1. not enabled in himari-test" in error
    assert "     gcloud services enable" in error
    assert "     gcloud storage buckets create gs://bucket" in error
    assert here.vertex.calls == []


def test_a_run_that_is_too_dear_is_not_submitted(here, capsys):
    assert run(here, "--max-cost", "0.01") == 2
    assert re.search(r"estimated to cost \d+\.\d\d USD, more than the 0.01 USD.*MAX_COST=1,", capsys.readouterr().err)
    assert jobs_of(here) == []


@pytest.mark.parametrize("most", ["0", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(here, capsys, most):
    assert run(here, f"--max-cost={most}") == 2
    assert "expected USD above 0" in capsys.readouterr().err


def test_a_wrong_option_is_refused_before_anybody_is_asked(here, capsys):
    assert run(here, "--seed", "-1") == 2
    assert "run-pipeline: seed is -1" in capsys.readouterr().err
    assert here.project.calls == here.vertex.calls == []


def test_without_a_compiled_pipeline_it_says_how_to_make_it(here, capsys):
    here.spec.unlink()
    assert run(here) == 2
    assert "run `make compile`" in capsys.readouterr().err


def test_a_pipeline_of_other_parameters_is_compiled_anew(here, capsys):
    spec = yaml.safe_load(here.spec.read_text())
    del spec["root"]["inputDefinitions"]["parameters"]["target"]
    here.spec.write_text(yaml.safe_dump(spec))
    assert run(here) == 2
    assert "knows no parameter target: run `make compile`" in capsys.readouterr().err


# Once and no more, whatever goes wrong.


def test_a_lost_answer_starts_no_second_run(here, capsys):
    here.vertex.fail("CreatePipelineJob", "lose")
    assert run(here) == 0
    assert len(jobs_of(here)) == 1
    assert len(here.vertex.named("CreatePipelineJob")) == 2
    assert "not started twice" in capsys.readouterr().out


def test_a_command_that_never_got_an_answer_finds_its_run_when_it_is_typed_again(here, capsys):
    here.vertex.fail("CreatePipelineJob", "lose")
    here.vertex.fail("CreatePipelineJob", "drop", times=99)
    assert run(here) == 2
    error = capsys.readouterr().err
    assert "cannot submit the run" in error
    assert "run the same again" in error
    (began,) = jobs_of(here)
    here.vertex.heal()
    assert run(here) == 0
    assert [job.name for job in jobs_of(here)] == [began.name]
    assert "not started twice" in capsys.readouterr().out
    assert run(here) == 0  # and what is asked for again after that is a new run
    assert len(jobs_of(here)) == 2


def test_a_run_that_never_began_begins_under_the_name_it_got(here):
    here.vertex.fail("CreatePipelineJob", "drop", times=99)
    assert run(here) == 2
    assert jobs_of(here) == []
    (kept,) = (here.spec.parent / "submitting").iterdir()
    here.vertex.heal()
    assert run(here) == 0
    here_id = jobs_of(here)[0].name.rsplit("/", 1)[1]
    assert here.vertex.named("CreatePipelineJob")[0].query["pipelineJobId"] == [here_id]
    assert not kept.exists()


def test_two_terminals_that_ask_for_the_same_at_once_get_one_run(here):
    """As both begin before either is confirmed, and the other is confirmed first."""
    request = Request({"pipelineInfo": {"name": "himari-training"}}, {}, {})
    kept = here.spec.parent / "submitting" / f"{request.digest}.json"
    begin = threading.Barrier(8)

    def terminal(number: int) -> str:
        begin.wait()
        return submit._named(kept, request, NOW)

    with ThreadPoolExecutor(8) as terminals:
        assert len(set(terminals.map(terminal, range(8)))) == 1
    kept.unlink()

    def confirmed_elsewhere(seconds: float) -> None:
        (mine,) = kept.parent.iterdir()
        mine.unlink()

    here.vertex.fail("CreatePipelineJob", "lose")
    options = ["--cloud", str(here.file), "--spec", str(here.spec), *SMALL]
    assert main(options, sleep=confirmed_elsewhere) == 0
    assert len(jobs_of(here)) == 1


@pytest.mark.parametrize(("status", "after"), [(429, 3.0), (503, 17.0), (503, None), (500, None)])
def test_a_busy_vertex_is_asked_again_after_the_time_it_names(here, status, after):
    waits: list[float] = []
    here.vertex.fail("CreatePipelineJob", status=status, retry_after=after)
    assert run(here, waits=waits) == 0
    assert waits == [after or 1.0]
    assert len(jobs_of(here)) == 1


CALLS = [
    "ListPipelineJobs",
    "CreatePipelineJob",
    "GetContext",
    "GetMetadataStore",
    "CreateContext",
    "AddContextChildren",
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["drop", "lose"])
def test_a_connection_that_drops_in_any_call_costs_a_wait_and_nothing_else(here, call, kind):
    here.vertex.fail(call, kind)
    waits: list[float] = []
    assert run(here, waits=waits) == 0
    assert waits == [1.0]
    (job,) = jobs_of(here)
    assert here.vertex.metadata.contexts[job.job_detail.pipeline_run_context.name].parent_contexts


def test_a_refusal_says_what_to_do_and_stops_no_later_run(here, capsys):
    here.vertex.fail("CreatePipelineJob", status=403, message="Permission 'aiplatform.pipelineJobs.create' denied.")
    assert run(here) == 2
    error = capsys.readouterr().err
    assert "Permission 'aiplatform.pipelineJobs.create' denied." in error
    assert "--role=roles/aiplatform.user" in error
    assert jobs_of(here) == []
    assert run(here) == 0
    assert len(jobs_of(here)) == 1
    assert list((here.spec.parent / "submitting").iterdir()) == []


def test_ctrl_c_while_waiting_for_vertex_loses_nothing(here, capsys):
    here.vertex.fail("CreatePipelineJob", "lose")

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    assert main(["--cloud", str(here.file), "--spec", str(here.spec), *SMALL], sleep=interrupted) == 130
    assert "the same again goes on" in capsys.readouterr().err
    assert run(here) == 0
    assert len(jobs_of(here)) == 1


def request(here: World, **parameters: object) -> Request:
    given = {"store": "gs://bucket", "data": "synthetic:default"} | parameters
    return Request(yaml.safe_load(here.spec.read_text()), given, {"data": "x"})


def test_the_same_request_much_later_is_another_run(here, tmp_path):
    here.vertex.fail("CreatePipelineJob", "lose")
    here.vertex.fail("CreatePipelineJob", "drop", times=3)
    with pytest.raises(SourceError):
        submit.submit(here.cloud, request(here), tmp_path / "p", now=lambda: NOW, sleep=lambda s: None)
    later = NOW + timedelta(days=2)
    _, already = submit.submit(here.cloud, request(here), tmp_path / "p", now=lambda: later, sleep=lambda s: None)
    assert not already
    assert len(jobs_of(here)) == 2


def test_another_request_is_another_run(here, tmp_path):
    here.vertex.fail("CreatePipelineJob", "drop", times=4)
    with pytest.raises(SourceError):
        submit.submit(here.cloud, request(here), tmp_path / "p", sleep=lambda s: None)
    submit.submit(here.cloud, request(here, seed=2), tmp_path / "p", sleep=lambda s: None)
    assert jobs_of(here)[0].runtime_config.parameter_values["seed"] == 2
    assert len(list((tmp_path / "p").iterdir())) == 1


def test_a_name_that_somebody_else_has_is_not_taken_for_ours(here, tmp_path):
    kept = tmp_path / "p" / f"{request(here).digest}.json"
    kept.parent.mkdir()
    theirs = Request(request(here).spec, request(here).parameters, {"data": "theirs"})
    run_id, _ = submit.submit(here.cloud, theirs, tmp_path / "q")
    kept.write_text(json.dumps({"run_id": run_id, "at": NOW.isoformat()}))
    with pytest.raises(RefusedError, match="another run of the name"):
        submit.submit(here.cloud, request(here), tmp_path / "p", now=lambda: NOW)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"run_id": 1, "at": 2}', '{"run_id": "x", "at": "yesterday"}'])
def test_a_note_that_cannot_be_read_is_named(here, tmp_path, text):
    kept = tmp_path / f"{request(here).digest}.json"
    kept.write_text(text)
    with pytest.raises(ConfigurationError, match=f"{kept} cannot be read"):
        submit.submit(here.cloud, request(here), tmp_path)
    assert here.vertex.calls == []


# Data of this machine.


@pytest.fixture
def candles(tmp_path) -> Path:
    path = tmp_path / "some candles.parquet"
    simulate(MarketSpec(bars=6_000)).to_parquet(path, index=False)
    return path


def test_a_file_of_this_machine_is_put_into_the_store_once(here, candles, capsys):
    arguments = ["--data", str(candles), "--symbol", "BTC-USDT"]
    assert run(here, *arguments) == 0
    (job,) = jobs_of(here)
    version = job.runtime_config.parameter_values["data_version"]
    uri = f"gs://bucket/data/{version}/some_candles.parquet"
    assert job.runtime_config.parameter_values["data"] == uri
    assert here.gcs.content("bucket", f"data/{version}/some_candles.parquet") == candles.read_bytes()
    assert job.labels["data"] == version[:40]
    generation = here.gcs.objects["bucket", f"data/{version}/some_candles.parquet"].generation
    assert f"{uri}\n" in capsys.readouterr().out
    assert run(here, *arguments) == 0
    assert f"{uri} (was there)" in capsys.readouterr().out
    assert here.gcs.objects["bucket", f"data/{version}/some_candles.parquet"].generation == generation


def test_a_file_that_changes_while_it_is_looked_at_is_refused(here, candles):
    parameters = {"data": str(candles), "data_version": "0" * 64}
    with pytest.raises(DataError, match="was changed while it was being looked at"):
        uploaded(here.cloud, parameters)
    assert not [name for _, name in here.gcs.objects if name.startswith("data/")]


@pytest.mark.parametrize("status", [429, 503])
def test_a_store_that_is_busy_is_asked_again(here, candles, status):
    parameters = {"data": str(candles), "data_version": version_of(str(candles))}
    here.gcs.fail(status)
    uri = uploaded(here.cloud, parameters)["data"]
    assert storage.read_bytes(uri) == candles.read_bytes()


def test_a_store_that_refuses_is_named_with_what_to_check(here, candles):
    parameters = {"data": str(candles), "data_version": version_of(str(candles))}
    here.gcs.fail(403, times=9)
    with pytest.raises(SourceError, match=r"gs://bucket/data/.*this account may use the bucket"):
        uploaded(here.cloud, parameters)


def test_a_store_that_holds_other_bytes_under_the_name_is_refused(here, candles, monkeypatch):
    """Somebody wrote there between the look and the upload."""
    parameters = {"data": str(candles), "data_version": version_of(str(candles))}
    here.gcs.put("bucket", f"data/{parameters['data_version']}/some_candles.parquet", b"other")
    monkeypatch.setattr(storage, "exists", lambda uri: False)
    with pytest.raises(DataError, match="holds other bytes than its name says"):
        uploaded(here.cloud, parameters)


def test_a_bad_file_is_refused_before_anybody_is_asked(here, tmp_path, capsys):
    path = tmp_path / "short.csv"
    path.write_text("timestamp,open,high,low,close,volume\n2024-01-01T00:00:00Z,1,1,1,1,1\n")
    assert run(here, "--data", str(path), "--symbol", "BTC-USDT") == 2
    assert str(path) in capsys.readouterr().err
    assert here.project.calls == []


@pytest.mark.parametrize(
    ("git", "data", "version", "expected"),
    [
        ({"commit": "a" * 40, "dirty": False}, "b.csv", "c" * 64, {"git_commit": "a" * 40, "data": "c" * 40}),
        ({"commit": "a" * 40, "dirty": True}, "x:Y", "newest", {"git_commit": f"{'a' * 40}-dirty", "data": "x-y"}),
        ({"commit": None, "dirty": False}, "synthetic:a=1", "", {"git_commit": "none", "data": "synthetic-a-1"}),
        (
            {"commit": None, "dirty": False},
            "coinbase:BTC-USD",
            "2026-09-01T06:00:00+00:00",
            {"data": "2026-09-01t06-00-00-00-00"},
        ),
        ({"commit": None, "dirty": False}, "synthetic:" + "x" * 99, "", {"data": f"synthetic-{'x' * 30}"}),
    ],
)
def test_labels_obey_googles_rules(git, data, version, expected):
    labels = run_labels({"git": git, "source_sha256": "d" * 64}, data=data, data_version=version)
    assert label_problem(labels) is None
    assert {name: labels[name] for name in expected} == expected


# What stands behind make.


def test_make_run_pipeline_hands_on_what_is_written(tmp_path):
    shown = say(tmp_path, "run-pipeline", f"DATA={AWKWARD}", f"CLOUD={AWKWARD}", "SYMBOL=A-B", "WAIT=1", "MAX_COST=3")
    assert {f"--data={AWKWARD}", f"--cloud={AWKWARD}", "--symbol=A-B", "--wait", "--max-cost=3"} <= set(shown)
    assert {"pipelines.submit", "--spec=build/training.yaml", "--folds=18", "--fold-seeds=5"} <= set(shown)


def test_make_run_pipeline_waits_for_nothing_unless_asked(tmp_path):
    shown = say(tmp_path, "run-pipeline", "CUSTOM_JOB=1", "FOLDS=6")
    assert not [word for word in shown if word.startswith(("--wait", "--max-cost", "--threshold"))]
    assert {"--cloud=config/cloud.yaml", "--spec=build/training-custom-job.yaml", "--folds=6"} <= set(shown)


@pytest.mark.parametrize(("target", "cancels"), [("watch-pipeline", False), ("cancel-pipeline", True)])
def test_make_watches_and_cancels_a_run(tmp_path, target, cancels):
    shown = say(tmp_path, target, f"RUN={AWKWARD}", f"CLOUD={AWKWARD}")
    assert {"pipelines.watch", f"--run={AWKWARD}", f"--cloud={AWKWARD}"} <= set(shown)
    assert ("--cancel" in shown) is cancels
