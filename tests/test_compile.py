"""The compiled pipeline: what Vertex gets."""

import configparser
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import compile as compiler
from components.image import IMAGE
from layer3.errors import ConfigurationError
from tests.fakes.vertex.custom_jobs import custom_jobs

ROOT = Path(__file__).resolve().parents[1]
PINNED = "europe-docker.pkg.dev/p/himari/pipeline@sha256:" + "ab" * 32
STEPS = {"ingest", "train", "allot", "walk", "evaluate", "gate", "register", "deploy", "reject", "notify"}
SEARCH_STEPS = {"ingest", "propose", "score", "compare"}


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    path, _ = compiler.compile_pipelines(tmp_path_factory.mktemp("build"))
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def search_spec(tmp_path_factory):
    _, path = compiler.compile_pipelines(tmp_path_factory.mktemp("build"))
    return yaml.safe_load(path.read_text())


def dag_of(spec, name):
    return spec["components"][name]["dag"]["tasks"]


def body(spec):
    handler = next(name for name in spec["root"]["dag"]["tasks"] if name.startswith("exit-handler"))
    return dag_of(spec, spec["root"]["dag"]["tasks"][handler]["componentRef"]["name"])


def test_versions_are_the_ones_that_work_together():
    """Below kfp 2.17 a local If is silently false; older resolves downgrade each other silently."""
    assert importlib.metadata.version("kfp") == "2.17.0"
    assert importlib.metadata.version("google-cloud-pipeline-components").startswith("2.22.")
    major, minor, *_ = importlib.metadata.version("google-cloud-aiplatform").split(".")
    assert (int(major), int(minor)) >= (1, 165)
    assert int(major) < 2
    assert importlib.metadata.version("torch").split("+")[0] == "2.13.0"


def test_the_lock_holds_the_installed_versions_and_leaves_torch_to_the_user():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = {r.name: str(r.specifier) for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate()}
    for name in ("kfp", "google-cloud-aiplatform", "google-cloud-pipeline-components", "numpy", "safetensors"):
        assert locked[name] == f"=={importlib.metadata.version(name)}"
    assert not [name for name in locked if name.startswith(("nvidia-", "torch", "triton"))]


def test_every_step_has_a_container_a_display_name_and_nothing_else_runs(spec):
    executors = spec["deploymentSpec"]["executors"]
    assert {name.removeprefix("exec-") for name in executors} == STEPS
    for executor in executors.values():
        assert executor["container"]["command"] == ["python3", "-m", "kfp.dsl.executor_main"]
        assert executor["container"]["image"] == IMAGE
    for component in [spec["root"], *spec["components"].values()]:
        for task in component.get("dag", {}).get("tasks", {}).values():
            assert task["taskInfo"]["name"]


def test_steps_that_decide_are_never_cached_and_the_others_are(spec):
    tasks = dict(body(spec)) | {"notify": spec["root"]["dag"]["tasks"]["notify"]}
    for component in spec["components"].values():
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            if name in STEPS:
                tasks[name] = task
    cached = {name for name in STEPS if tasks[name].get("cachingOptions", {}).get("enableCache", False)}
    # What evaluate compares with, the champion and the ledger of trials, changes without its arguments changing.
    assert cached == {"ingest", "train", "allot", "walk"}


def folds_of(spec):
    """The loop over groups of folds: its task, and what is in it."""
    (loop,) = [task for task in body(spec).values() if "parameterIterator" in task]
    return loop, dag_of(spec, loop["componentRef"]["name"])


@pytest.mark.parametrize("step", ["train", "walk"])
def test_what_trains_asks_for_a_t4_and_is_tried_again(spec, step):
    resources = spec["deploymentSpec"]["executors"][f"exec-{step}"]["container"]["resources"]
    assert resources["accelerator"]["resourceType"] == "NVIDIA_TESLA_T4"
    assert str(resources["accelerator"]["resourceCount"]) == "1"
    assert resources["resourceCpuLimit"] == "4"
    assert resources["resourceMemoryLimit"] == "15G"
    assert (body(spec) | folds_of(spec)[1])[step]["retryPolicy"]["maxRetryCount"] == 2


def test_folds_are_spread_over_machines_and_collected_by_what_judges(spec):
    loop, inside = folds_of(spec)
    assert loop["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--allot-Output"}
    assert loop["iteratorPolicy"]["parallelismLimit"] == 6
    assert set(inside) == {"walk"}
    assert inside["walk"]["inputs"]["parameters"]["group"] == {
        "componentInputParameter": loop["parameterIterator"]["itemInput"]
    }
    collected = body(spec)["evaluate"]["inputs"]["artifacts"]["walks"]["taskOutputArtifact"]
    assert body(spec)[collected["producerTask"]] is loop
    assert spec["components"]["comp-evaluate"]["inputDefinitions"]["artifacts"]["walks"]["isArtifactList"] is True


def test_vertex_gets_the_walk_forward_of_two_years_by_default(spec):
    given = spec["root"]["inputDefinitions"]["parameters"]
    chosen = {name: given[name]["defaultValue"] for name in ("folds", "fold_seeds", "fold_groups", "fold_kind")}
    assert chosen == {"folds": 18, "fold_seeds": 5, "fold_groups": 6, "fold_kind": "rolling"}
    assert [given[name]["defaultValue"] for name in ("gate_limits", "override_name", "override_reason")] == ["", "", ""]


def test_the_gate_decides_by_one_unnamed_bool_with_if_and_else(spec):
    outputs = spec["components"]["comp-gate"]["outputDefinitions"]
    assert outputs["parameters"] == {"Output": {"parameterType": "BOOLEAN"}}
    conditions = [
        task["triggerPolicy"]["condition"]
        for component in spec["components"].values()
        for task in component.get("dag", {}).get("tasks", {}).values()
        if "condition" in task.get("triggerPolicy", {})
    ]
    asked = "inputs.parameter_values['pipelinechannel--gate-Output'] == true"
    assert sorted(conditions) == [f"!({asked})", asked]


def test_notify_runs_whatever_happens(spec):
    task = spec["root"]["dag"]["tasks"]["notify"]
    assert task["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert "taskFinalStatus" in task["inputs"]["parameters"]["status"]


def test_artifacts_are_typed(spec):
    def outputs(step):
        artifacts = spec["components"][f"comp-{step}"]["outputDefinitions"]["artifacts"]
        return {name: item["artifactType"]["schemaTitle"] for name, item in artifacts.items()}

    assert outputs("ingest") == {"candles": "system.Dataset", "features": "system.Dataset"}
    assert outputs("train") == {
        "model": "system.Model",
        "metrics": "system.Metrics",
        "curves": "system.HTML",
        "events": "system.Artifact",
    }
    assert outputs("walk") == {"policies": "system.Model"}
    assert outputs("evaluate") == {"evaluation": "system.Dataset", "metrics": "system.Metrics"}
    assert outputs("gate") == {"verdict": "system.Markdown", "tear_sheet": "system.HTML"}
    assert outputs("deploy") == {"released": "google.UnmanagedContainerModel", "note": "system.Markdown"}
    assert outputs("register") == {"registered": "google.VertexModel"}
    assert outputs("reject") == {"note": "system.Markdown"}


def test_an_image_is_set_in_every_step_only_when_pinned(tmp_path):
    paths = compiler.compile_pipelines(tmp_path, PINNED)
    for path in paths:
        executors = yaml.safe_load(path.read_text())["deploymentSpec"]["executors"]
        assert {executor["container"]["image"] for executor in executors.values()} == {PINNED}
    assert [path.name for path in paths] == ["training.yaml", "tuning.yaml"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["training.yaml", "tuning.yaml"]
    with pytest.raises(ConfigurationError, match="not pinned by digest"):
        compiler.compile_pipelines(tmp_path, "europe-docker.pkg.dev/p/himari/pipeline:latest")


def test_the_command_line_refuses_an_unpinned_image_unless_told(tmp_path, capsys):
    assert compiler.main(["--output", str(tmp_path), "--image", "x:latest"]) == 2
    said = capsys.readouterr().err
    assert "sha256" in said
    assert "--allow-tag" in said
    assert compiler.main(["--output", str(tmp_path), "--image", "x:latest", "--allow-tag"]) == 0
    assert images(yaml.safe_load((tmp_path / "training.yaml").read_text())) == {"x:latest"}


def test_the_images_of_the_last_build_are_taken_from_its_file(tmp_path):
    built = tmp_path / "images.json"
    built.write_text(json.dumps({"components": PINNED, "serving": "x@sha256:" + "0" * 64}))
    assert compiler.main(["--output", str(tmp_path), "--image", str(built)]) == 0
    assert images(yaml.safe_load((tmp_path / "tuning.yaml").read_text())) == {PINNED}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read the images of the last build"),
        ("[]", "mapping"),
        ("{", "is not YAML"),
        ('{"serving": "x"}', 'names no image under "components"'),
        ('{"components": "x:latest"}', "not pinned by digest"),
    ],
)
def test_a_build_that_says_nothing_of_use_is_refused(tmp_path, capsys, content, words):
    built = tmp_path / "images.json"
    if content is not None:
        built.write_text(content)
    assert compiler.main(["--output", str(tmp_path / "build"), "--image", str(built)]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "build").exists()


def images(spec):
    """What every step runs on, custom jobs apart."""
    return {executor["container"]["image"] for executor in spec["deploymentSpec"]["executors"].values()}


@pytest.fixture(scope="module")
def custom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    paths = compiler.compile_pipelines(folder, PINNED, custom_job=True)
    assert [path.name for path in paths] == ["training.yaml", "tuning.yaml", "training-custom-job.yaml"]
    return yaml.safe_load(paths[-1].read_text())


@pytest.mark.parametrize("step", ["train", "walk"])
def test_training_may_be_a_custom_job_on_a_spot_machine(custom, step):
    inputs = custom["components"][f"comp-{step}"]["inputDefinitions"]["parameters"]
    given = {name: item.get("defaultValue") for name, item in inputs.items()}
    assert given["strategy"] == "SPOT"
    assert given["restart_job_on_worker_restart"] is True
    assert given["timeout"] == "7200s"
    assert given["service_account"] == "{{$.pipeline_service_account}}"
    (pool,) = given["worker_pool_specs"]
    assert pool["machine_spec"] == {
        "machine_type": "n1-standard-4",
        "accelerator_type": "NVIDIA_TESLA_T4",
        "accelerator_count": 1,
    }
    assert pool["container_spec"]["image_uri"] == PINNED
    assert pool["container_spec"]["command"] == ["python3", "-m", "kfp.dsl.executor_main"]
    assert pool["container_spec"]["args"][-1] == step
    assert (body(custom) | folds_of(custom)[1])[step]["retryPolicy"]["maxRetryCount"] == 2


def test_a_custom_job_differs_from_a_step_in_its_machine_alone(custom, tmp_path):
    plain = yaml.safe_load(compiler.compile_pipelines(tmp_path, PINNED)[0].read_text())
    assert set(custom["deploymentSpec"]["executors"]) == set(plain["deploymentSpec"]["executors"])
    for name, component in plain["components"].items():
        if name in ("comp-train", "comp-walk"):
            theirs = custom["components"][name]
            assert types(theirs["inputDefinitions"]) == types(component["inputDefinitions"])
            assert types(theirs["outputDefinitions"]) == types(component["outputDefinitions"])
            assert set(component["inputDefinitions"]["parameters"]) <= set(theirs["inputDefinitions"]["parameters"])
        else:
            assert custom["components"][name] == component
    assert custom["root"] == plain["root"]
    ours = {
        name: item for name, item in custom["deploymentSpec"]["executors"].items() if name[5:] not in ("train", "walk")
    }
    assert ours.items() <= plain["deploymentSpec"]["executors"].items()


def types(definitions):
    """The types of the artifacts that go in or come out."""
    return {name: item["artifactType"] for name, item in definitions["artifacts"].items()}


@pytest.mark.parametrize("step", ["train", "walk"])
def test_a_custom_job_is_what_vertex_understands(custom, step):
    """The launcher's payload, its placeholders filled in, is a CustomJob of the service's own message type."""
    job = custom_jobs(custom)[f"exec-{step}"]
    assert job.display_name == f"himari-{step}"
    assert dict(job.labels) == {"himari-step": step}
    scheduling = job.job_spec.scheduling
    assert scheduling.strategy.name == "SPOT"
    assert scheduling.restart_job_on_worker_restart
    assert scheduling.timeout.total_seconds() == 7_200
    machine = job.job_spec.worker_pool_specs[0].machine_spec
    shape = (machine.machine_type, machine.accelerator_type.name, machine.accelerator_count)
    assert shape == ("n1-standard-4", "NVIDIA_TESLA_T4", 1)


def test_nothing_reads_the_environment_at_import(tmp_path):
    """Two compilations under different environments give the same bytes."""
    paths = []
    for number, extra in enumerate(({}, {"IMAGE": "x", "PROJECT": "y", "VERTEX_LOCATION": "z"})):
        folder = tmp_path / str(number)
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **extra}
        command = [sys.executable, str(ROOT / "compile.py"), "--output", str(folder)]
        subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)
        paths.append(folder)
    for name in ("training.yaml", "tuning.yaml"):
        assert (paths[0] / name).read_bytes() == (paths[1] / name).read_bytes()


@pytest.mark.parametrize("name", ["training.py", "tuning.py"])
def test_the_pipeline_file_stays_small(name):
    assert len((ROOT / "pipelines" / name).read_text().splitlines()) < 150


def test_a_search_scores_every_proposed_setting_and_collects_the_scores(search_spec):
    assert {name.removeprefix("exec-") for name in search_spec["deploymentSpec"]["executors"]} == SEARCH_STEPS
    tasks = search_spec["root"]["dag"]["tasks"]
    (loop,) = [name for name, task in tasks.items() if "parameterIterator" in task]
    assert tasks[loop]["iteratorPolicy"]["parallelismLimit"] == 4
    assert tasks[loop]["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--propose-Output"}
    inner = dag_of(search_spec, tasks[loop]["componentRef"]["name"])
    assert set(inner) == {"score"}
    assert inner["score"]["retryPolicy"]["maxRetryCount"] == 2
    collected = tasks["compare"]["inputs"]["parameters"]["results"]["taskOutputParameter"]
    assert collected["producerTask"] == loop
    assert not tasks["compare"].get("cachingOptions", {}).get("enableCache", False)
    outputs = search_spec["components"]["comp-compare"]["outputDefinitions"]["artifacts"]
    assert {name: item["artifactType"]["schemaTitle"] for name, item in outputs.items()} == {
        "comparison": "system.HTML"
    }


def test_a_search_can_release_nothing(search_spec):
    assert not {"deploy", "gate"} & {name.removeprefix("comp-") for name in search_spec["components"]}


def test_the_executor_finds_every_component():
    config = configparser.ConfigParser()
    config.read(ROOT / "components" / "kfp_config.ini")
    assert set(config["Components"]) == STEPS | SEARCH_STEPS
    for name, file in config["Components"].items():
        assert f"def {name}(" in (ROOT / "components" / file).read_text()
