"""The compiled pipeline run on this machine through its command line: both ways through the gate, every way out."""

import builtins
import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from kfp.local import executor_input_utils, subprocess_task_handler
from kfp.local.orchestrator import task_executor

import compile as compiler
from layer3 import machine
from layer3.agent.policy_file import load_policy
from layer3.errors import ConfigurationError, PipelineError
from layer3.market.simulator import MarketSpec, simulate
from layer3.version import source_sha256
from pipelines import local, observe, trace
from pipelines.observe import Watcher, observed

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "BTC-USDT_1h.csv.gz"
PLANTED = "synthetic:edge=2,bars=16000"
NO_EDGE = "synthetic:no-edge"
STEPS = "150000"


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    path, _ = compiler.compile_pipelines(tmp_path_factory.mktemp("build"))
    return path


class Shop:
    """A store and the command line over it."""

    def __init__(self, folder, spec):
        self.folder, self.spec = folder, spec

    def run(self, data, *more, steps=STEPS, folds="2"):
        before = set(self.runs())
        where = ["--data", str(data), "--store", str(self.folder), "--spec", str(self.spec)]
        code = local.main([*where, "--steps", steps, "--folds", folds, "--fold-seeds", "1", *more])
        new = sorted(set(self.runs()) - before)
        return code, json.loads((self.folder / "runs" / new[0] / "manifest.json").read_text()) if new else None

    def runs(self):
        folder = self.folder / "runs"
        return [path.name for path in folder.glob("himari-training-*")] if folder.exists() else []

    def champion(self):
        path = self.folder / "channels" / "production.json"
        return json.loads(path.read_text()) if path.exists() else None


@pytest.fixture(scope="module")
def shop(tmp_path_factory, spec):
    # "python3" in the path: kfp replaces that word in every argument of a command.
    return Shop(tmp_path_factory.mktemp("python3-store"), spec)


@pytest.fixture(scope="module")
def passed(shop):
    code, manifest = shop.run(PLANTED)
    return code, manifest, shop.champion()


@pytest.fixture(scope="module")
def rejected(shop, passed):
    before = shop.champion()
    code, manifest = shop.run(NO_EDGE)
    assert shop.champion() == before
    return code, manifest


def statuses(manifest):
    return {step["name"]: step["status"] for step in manifest["steps"]}


def test_a_planted_edge_is_released(passed, shop):
    code, manifest, champion = passed
    assert code == 0
    assert manifest["status"] == "SUCCEEDED"
    assert manifest["verdict"]["passed"] is True
    assert manifest["branch"] == "deploy"
    assert statuses(manifest) == {
        "ingest": "SUCCEEDED",
        "allot": "SUCCEEDED",
        "train": "SUCCEEDED",
        "walk": "SUCCEEDED",
        "evaluate": "SUCCEEDED",
        "gate": "SUCCEEDED",
        "register": "SUCCEEDED",
        "deploy": "SUCCEEDED",
        "reject": "SKIPPED",
        "notify": "SUCCEEDED",
    }
    assert champion["model_id"] == manifest["released"]["model_id"]
    load_policy(shop.folder / "models" / champion["model_id"])


def test_no_edge_is_rejected_and_the_champion_stays(rejected):
    code, manifest = rejected
    assert code == 0
    assert manifest["verdict"]["passed"] is False
    assert manifest["branch"] == "reject"
    # It is the evidence that says no: the candidate traded.
    values = {criterion["name"]: criterion["value"] for criterion in manifest["verdict"]["criteria"]}
    assert values["trades"] >= 30
    assert values["sharpe"] is not None
    assert manifest["released"] is None
    assert statuses(manifest)["deploy"] == "SKIPPED"
    assert statuses(manifest)["reject"] == "SUCCEEDED"


def test_the_manifest_answers_a_reviewer(passed, shop, spec):
    _, manifest, _ = passed
    assert manifest["parameters"]["data"] == PLANTED
    assert manifest["parameters"]["seed"] == 1
    assert manifest["versions"]["kfp"] == "2.17.0"
    assert set(manifest["git"]) == {"commit", "dirty"}
    assert manifest["spec_sha256"] == hashlib.sha256(spec.read_bytes()).hexdigest()
    assert manifest["synthetic"] is True
    steps = {step["name"]: step for step in manifest["steps"]}
    for step in steps.values():
        if step["status"] != "SUCCEEDED":
            continue
        assert step["seconds"] > 0
        assert (shop.folder / step["log"]).exists()
        for artifact in step["outputs"]["artifacts"].values():
            path = shop.folder / artifact["uri"]
            assert path.exists()
            if path.is_file():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == artifact["sha256"]
                assert path.stat().st_size == artifact["bytes"]
    model = steps["train"]["outputs"]["artifacts"]["model"]
    given = steps["evaluate"]["inputs"]["artifacts"]["model"]
    assert given == {"uri": model["uri"], "type": "system.Model", "sha256": model["sha256"], "producer": "train"}
    policies = steps["walk"]["outputs"]["artifacts"]["policies"]
    assert steps["evaluate"]["inputs"]["artifacts"]["walks"]["sha256"] == policies["sha256"]
    assert steps["evaluate"]["inputs"]["artifacts"]["walks"]["producer"] == "walk"
    assert steps["gate"]["outputs"]["parameters"] == {"Output": True}
    assert manifest["verdict"]["limits"]["sharpe"] == 1.0
    assert manifest["verdict"]["limits"]["walk_forward"]["required"] is True
    assert manifest["verdict"]["override"] is None
    assert steps["gate"]["depends_on"] == ["evaluate"]
    # There is no registry on this machine, and the record says so.
    registered = steps["register"]["outputs"]["artifacts"]["registered"]
    assert registered["metadata"]["registered"] is False


def test_synthetic_data_is_called_synthetic_wherever_it_appears(passed, shop):
    _, manifest, _ = passed
    folder = shop.folder / "runs" / manifest["run_id"]
    steps = {step["name"]: step for step in manifest["steps"]}
    assert steps["ingest"]["outputs"]["artifacts"]["candles"]["metadata"]["synthetic"] is True
    assert steps["train"]["outputs"]["artifacts"]["model"]["metadata"]["synthetic"] is True
    assert steps["evaluate"]["outputs"]["artifacts"]["evaluation"]["metadata"]["synthetic"] is True
    for page in (folder / "tear_sheet.html", shop.folder / "runs" / "index.html", folder / "gate" / "verdict"):
        assert "SYNTHETIC" in page.read_text()
    policy = load_policy(shop.folder / manifest["released"]["uri"])
    assert policy.manifest["synthetic"] is True


def test_the_index_lists_the_runs(passed, rejected, shop):
    page = (shop.folder / "runs" / "index.html").read_text()
    for _, manifest in (passed[:2], rejected):
        assert manifest["run_id"] in page
    assert "REJECTED" in page
    assert len((shop.folder / "runs" / passed[1]["run_id"] / "tear_sheet.html").read_bytes()) <= 500_000


def test_notify_wrote_how_it_ended(passed, shop):
    _, manifest, _ = passed
    told = json.loads((shop.folder / "runs" / manifest["run_id"] / "notification.json").read_text())
    assert told == {"run_id": manifest["run_id"], "state": "SUCCEEDED", "error": None}


def test_a_second_run_with_nothing_changed_is_served_from_the_cache(passed, shop, capsys):
    _, first, champion = passed
    code, second = shop.run(PLANTED)
    assert code == 0
    cached = {name for name, status in statuses(second).items() if status == "CACHED"}
    assert cached == {"ingest", "allot", "train", "walk"}
    assert second["verdict"]["passed"] is True
    # Now there is a champion on the same bars: itself. What was tried is what it was.
    told = [{one["name"]: one for one in manifest["verdict"]["criteria"]} for manifest in (first, second)]
    assert {name for name in told[0] if told[0][name] != told[1][name]} == {"versus_champion"}
    # What serves is the same policy; a release of what already serves changes nothing.
    assert shop.champion()["model_id"] == champion["model_id"]
    printed = capsys.readouterr().out
    assert "cached" in printed
    assert "RELEASED" in printed
    assert f"`make serve STORE={shop.folder}` serves it" in printed
    assert "\r" not in printed
    assert second["steps"][0]["outputs"] == first["steps"][0]["outputs"]


def test_no_cache_runs_everything_and_the_same_seed_gives_the_same_policy(passed, shop):
    _, first, _ = passed
    _, again = shop.run(PLANTED, "--no-cache")
    assert "CACHED" not in statuses(again).values()
    assert again["released"]["policy_sha256"] == first["released"]["policy_sha256"]


def test_a_changed_source_file_is_never_served_stale(tmp_path, spec):
    root = tmp_path / "project"
    for package in ("components", "layer3", "pipelines", "serving"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    data = "synthetic:no-edge,bars=4200"
    arguments = {"data": data, "symbol": "SYNTH-USD", "train_steps": 4_096, "folds": 0, "store": str(tmp_path)}

    def go():
        return statuses(local.run(spec, arguments, store=tmp_path, root=root))

    assert go()["ingest"] == "SUCCEEDED"
    assert go()["ingest"] == "CACHED"
    with (root / "layer3" / "market" / "simulator.py").open("a") as file:
        file.write("# changed\n")
    source_sha256.cache_clear()
    changed = go()
    assert [changed[name] for name in ("ingest", "train", "evaluate")] == ["SUCCEEDED"] * 3


def test_a_failing_step_shows_its_own_traceback_and_notify_still_runs(shop, capsys):
    before = shop.champion()
    code, manifest = shop.run("synthetic:bars=2500")
    assert code == 1
    error = capsys.readouterr().err
    assert "step 'Ingest candles' failed" in error
    assert "Traceback" in error
    assert "layer3.errors.DataError: synthetic:bars=2500: 2,500 bars" in error
    assert "/logs/ingest.log" in error
    assert manifest["status"] == "FAILED"
    assert statuses(manifest)["ingest"] == "FAILED"
    assert statuses(manifest)["notify"] == "SUCCEEDED"
    assert {
        statuses(manifest)[name] for name in ("allot", "train", "walk", "evaluate", "gate", "deploy", "reject")
    } == {"SKIPPED"}
    told = json.loads((shop.folder / "runs" / manifest["run_id"] / "notification.json").read_text())
    assert told["state"] == "FAILED"
    assert shop.champion() == before
    assert "DataError" in (shop.folder / "runs" / "index.html").read_text()


def test_an_override_releases_what_failed_and_says_so_everywhere(shop, capsys):
    before = shop.champion()
    code, manifest = shop.run(
        "synthetic:no-edge,bars=4200",
        "--override-name",
        "Ada",
        "--override-reason",
        "a drill",
        "--threshold",
        "50",
        steps="4096",
        folds="0",
    )
    assert code == 0
    assert manifest["verdict"]["override"] == {"name": "Ada", "reason": "a drill"}
    assert manifest["verdict"]["passed"] is True
    assert manifest["verdict"]["limits"]["sharpe"] == 50.0
    assert manifest["branch"] == "deploy"
    failed = {criterion["name"] for criterion in manifest["verdict"]["criteria"] if not criterion["passed"]}
    assert {"sharpe", "walk_forward"} <= failed
    assert "OVERRIDDEN by Ada: a drill" in capsys.readouterr().out
    assert "a drill" in (shop.folder / "runs" / manifest["run_id"] / "tear_sheet.html").read_text()
    assert "Overridden by Ada: a drill" in (shop.folder / "runs" / "index.html").read_text()
    assert shop.champion()["model_id"] == manifest["released"]["model_id"] != before["model_id"]


def test_limits_from_a_file_hold(shop, tmp_path):
    path = tmp_path / "gate.yaml"
    path.write_text("sharpe: 60.0\nwalk_forward:\n  required: false\n")
    _, manifest = shop.run("synthetic:no-edge,bars=4200", "--gate", str(path), steps="4096", folds="0")
    asked = {criterion["name"]: criterion for criterion in manifest["verdict"]["criteria"]}
    assert asked["sharpe"]["limit"] == 60.0
    assert "walk_forward" not in asked
    assert manifest["parameters"]["gate_limits"] == path.read_text()


def test_a_history_too_short_for_its_folds_is_a_finding(shop):
    _, manifest = shop.run("synthetic:no-edge,bars=4200", steps="4096", folds="200")
    asked = {criterion["name"]: criterion for criterion in manifest["verdict"]["criteria"]}
    assert asked["walk_forward"]["passed"] is False
    assert "4,200 bars in 200 folds give" in asked["walk_forward"]["sentence"]
    assert statuses(manifest)["walk"] == "SUCCEEDED"


def test_the_real_bitcoin_file(shop):
    if not REAL.exists():
        pytest.skip(f"the real candles are not at {REAL}")
    code, manifest = shop.run(REAL, "--symbol", "BTC-USDT", steps="20480")
    assert code == 0
    assert manifest["synthetic"] is False
    assert manifest["branch"] in {"deploy", "reject"}
    candles = manifest["steps"][0]["outputs"]["artifacts"]["candles"]["metadata"]
    assert candles["rows"] == 17_520
    assert candles["gaps"] == 0
    assert manifest["parameters"]["data_version"] == hashlib.sha256(REAL.read_bytes()).hexdigest()
    sheet = (shop.folder / "runs" / manifest["run_id"] / "tear_sheet.html").read_text()
    assert "BTC-USDT" in sheet
    assert "SYNTHETIC" not in sheet


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "synthetic:nonsense"], "not known"),
        (["--data", "synthetic:edge=much"], "edge"),
        (["--data", "nowhere.csv", "--symbol", "X"], "nowhere.csv"),
        (["--data", str(ROOT / "README.md"), "--symbol", "X"], "README.md"),
        (["--data", "coinbas:BTC-USD"], "did you mean coinbase"),
        (["--symbol", "BTC-USDT"], "the data are synthetic"),
        (["--seed", "-1"], "seed is -1"),
        (["--seed", str(2**32 - 3)], "the last member's seed would be 4294967296, expected below 2^32"),
        (["--steps", "10"], "steps is 10"),
        (["--steps", "99999999999999"], "expected 2,048 (one rollout) to 1,000,000,000"),
        (["--data", ""], "no data named"),
        (["--threshold", "nan"], "threshold is nan"),
        (["--threshold", "2", "--gate", str(ROOT / "config" / "gate.yaml")], "write sharpe: 2 into that file"),
        (["--gate", "nowhere.yaml"], "nowhere.yaml"),
        (["--gate", str(ROOT / "config" / "sizing.yaml")], "config/sizing.yaml"),
        (["--folds", "-1"], "folds is -1, expected 0"),
        (["--folds", "201"], "folds is 201"),
        (["--fold-seeds", "0"], "fold_seeds is 0"),
        (["--override-name", "Ada"], "the override has no reason"),
        (["--override-reason", "because"], "the override has no name"),
        (["--sizing", "nowhere.yaml"], "nowhere.yaml"),
        (["--spec", "no.yaml"], "make compile"),
        (["--store", "gs://bucket/x"], "needs a local folder"),
        (["--store", str(ROOT / "README.md")], "name another folder"),
    ],
)
def test_a_bad_argument_is_refused_before_anything_runs(tmp_path, spec, capsys, arguments, message):
    code = local.main(["--store", str(tmp_path), "--spec", str(spec), *arguments])
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_ends_a_run_in_one_sentence(tmp_path, spec, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert local.main(["--store", str(tmp_path), "--spec", str(spec)]) == 1
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"run-local: {tmp_path}/runs/")
    assert said.endswith("manifest.json: No space left on device: free some space; then run it again to go on.")


def test_a_file_needs_the_name_of_its_market(tmp_path, spec, capsys):
    path = tmp_path / "candles.csv"
    path.write_text("timestamp,open,high,low,close,volume\n")
    assert local.main(["--store", str(tmp_path), "--spec", str(spec), "--data", str(path)]) == 2
    assert "SYMBOL=" in capsys.readouterr().err


def test_a_file_that_breaks_a_rule_is_refused_before_a_run_begins(tmp_path, spec, capsys):
    path = tmp_path / "candles.csv"
    path.write_text("timestamp,open,high,low,close,volume\n2024-01-01T00:00:00Z,1,1,1,1,1\n")
    arguments = ["--store", str(tmp_path / "store"), "--spec", str(spec), "--data", str(path), "--symbol", "BTC-USDT"]
    assert local.main(arguments) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert "Traceback" not in error
    assert not (tmp_path / "store").exists()


def test_a_file_too_short_to_split_is_refused_before_a_run_begins(tmp_path, spec, capsys):
    candles = simulate(MarketSpec(bars=3_000))
    path = tmp_path / "short.csv"
    candles.to_csv(path, index=False)
    arguments = ["--store", str(tmp_path / "store"), "--spec", str(spec), "--data", str(path), "--symbol", "BTC-USDT"]
    assert local.main(arguments) == 2
    assert f"{path}: 3,000 bars give" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_says_so_and_leaves_no_process(tmp_path, spec, how):
    command = [sys.executable, "-m", "pipelines.local", "--store", str(tmp_path), "--spec", str(spec)]
    with subprocess.Popen(
        [*command, "--data", PLANTED, "--steps", "900000000"], cwd=ROOT, text=True, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 300
        # The policy or the folds: neither waits for the other.
        while (
            not [*tmp_path.glob("runs/*/logs/train.log"), *tmp_path.glob("runs/*/logs/walk.log")]
            and time.monotonic() < deadline
        ):
            time.sleep(0.1)
        process.send_signal(how)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "stopped" in said
    (manifest,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/*/manifest.json"))
    assert manifest["status"] == "FAILED"
    assert "stopped by Ctrl-C or SIGTERM" in manifest["error"]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert str(tmp_path).encode() not in path.read_bytes()


#: A run whose first step would take ten minutes, told to stop just when that step's process has begun.
AT_ONCE = """
import os, signal, subprocess, sys, time
from pipelines import local, observe

def stop():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3)

class Popen(subprocess.Popen):
    def __init__(self, command, **settings):
        super().__init__([sys.executable, "-c", "import time; time.sleep(600)"], **settings)
        print(self.pid, file=sys.stderr, flush=True)
        if sys.argv[1] == "begun":
            stop()

class Children(observe.Children):
    def watched(self, process):
        if sys.argv[1] == "not watched yet":
            stop()
        return super().watched(process)

def run(*arguments, original=observe._run):
    observe.subprocess.Popen = Popen
    return original(*arguments)

observe._run, observe.Children = run, Children
signal.signal(signal.SIGTERM, signal.default_int_handler)
sys.exit(local.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("moment", ["begun", "not watched yet"])
def test_a_stop_just_when_a_process_has_begun_ends_that_too(tmp_path, spec, moment):
    arguments = ["--store", str(tmp_path), "--spec", str(spec), "--data", PLANTED]
    command = [sys.executable, "-c", AT_ONCE, moment, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130, done.stderr
    assert "stopped" in done.stderr
    assert not Path("/proc", done.stderr.split()[0]).exists()


def test_a_step_that_is_killed_says_by_what_and_not_what_kfp_printed(tmp_path):
    log = tmp_path / "train.log"
    code = 'import os; print("{\\n  \\"schemaTitle\\": 1\\n}\\nSteps 1", flush=True); os.kill(os.getpid(), 9)'
    assert observe._run([sys.executable, "-c", code], {}, ROOT, log, lambda *_: None, observe.Children()) == -9
    said = trace._tail(log).splitlines()
    assert said == ["Steps 1", "The step's process was ended by SIGKILL; is there enough memory?"]


@pytest.mark.parametrize(("told", "said"), [({}, ["1", "1", "1"]), ({"OMP_NUM_THREADS": "3"}, ["None", "3", "None"])])
def test_a_steps_libraries_use_one_thread_unless_told_otherwise(tmp_path, monkeypatch, told, said):
    for name in machine.ONE_THREAD:
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    log = tmp_path / "evaluate.log"
    code = f"import os; print(*(os.environ.get(name) for name in {sorted(machine.ONE_THREAD)}))"
    assert observe._run([sys.executable, "-c", code], {}, ROOT, log, lambda *_: None, observe.Children()) == 0
    assert sorted(machine.ONE_THREAD) == ["MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"]
    assert log.read_text().split() == said


def test_a_flat_market_is_a_finding_of_every_criterion(tmp_path, spec):
    """The old system trained on a constant price."""
    n = 6_000
    flat = pd.DataFrame({"timestamp": pd.date_range("2024-01-01", periods=n, freq="h", tz="UTC")})
    for column in ("open", "high", "low", "close"):
        flat[column] = 100.0
    flat["volume"] = 1.0
    flat["signal_action"] = np.where(np.arange(n) % 48 < 24, "buy", "sell")
    flat["signal_confidence"] = 0.8
    path = tmp_path / "flat.csv"
    flat.to_csv(path, index=False)
    command = [sys.executable, "-m", "pipelines.local", "--data", str(path), "--symbol", "FLAT-USD"]
    done = subprocess.run(
        [*command, "--store", str(tmp_path), "--spec", str(spec), "--steps", "4096", "--folds", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Nothing was trained: the price is 100.0" in done.stdout
    (manifest,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/*/manifest.json"))
    assert manifest["verdict"]["passed"] is False
    assert manifest["released"] is None
    told = {criterion["name"]: criterion for criterion in manifest["verdict"]["criteria"]}
    for name in ("probabilistic_sharpe", "permutation_p", "versus_kelly", "not_degenerate", "no_leak", "walk_forward"):
        assert not told[name]["passed"]
        assert "constant price" in told[name]["sentence"], name
    (page,) = tmp_path.glob("runs/*/curves.html")
    assert "constant price" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("ran", [{"ingest", "gate"}, {"gate", "deploy", "reject"}])
def test_exactly_one_branch_must_run(spec, ran):
    """A condition that is neither true nor false skips both branches, and kfp calls that a success."""
    with pytest.raises(PipelineError, match="exactly one of the branches"):
        local._assert_one_branch(yaml.safe_load(spec.read_text()), ran)


def test_one_branch_is_right(spec):
    compiled = yaml.safe_load(spec.read_text())
    local._assert_one_branch(compiled, {"gate", "deploy"})
    local._assert_one_branch(compiled, {"gate", "reject"})


def test_the_seam_leaves_kfp_as_it_was(tmp_path):
    before = (
        task_executor.execute_single_task,
        subprocess_task_handler.SubprocessTaskHandler.run,
        executor_input_utils.get_local_pipeline_resource_name,
        builtins.print,
    )
    watcher = Watcher(lambda execution: None, lambda execution: None, lambda execution, done, total: None)
    with observed("run", tmp_path, ROOT, watcher):
        assert executor_input_utils.get_local_pipeline_resource_name("x") == "run"
        # As ParallelFor does.
        builtins.print = None
    assert before == (
        task_executor.execute_single_task,
        subprocess_task_handler.SubprocessTaskHandler.run,
        executor_input_utils.get_local_pipeline_resource_name,
        builtins.print,
    )


def test_a_missing_spec_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="make compile"):
        local.run(tmp_path / "none.yaml", {}, store=tmp_path)
