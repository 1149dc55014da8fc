"""``python -m pipelines.explain``: any run's outcome in words, and never a traceback."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer3.backtest.record import Criterion, Verdict
from layer3.errors import ConfigurationError, PipelineError
from pipelines.explain import explain_run, find_run, main
from pipelines.manifest import write_manifest

HELD = Criterion("trades", 80.0, ">=", 30.0, True, "80 closed round trips, at least 30 asked.")
LOST = Criterion("sharpe", 0.4, ">=", 1.0, False, "Annualised Sharpe ratio 0.40, at least 1 asked.")
REJECTED = json.loads(json.dumps(Verdict(False, (LOST, HELD)).to_json()))
PASSED = json.loads(json.dumps(Verdict(True, (HELD,)).to_json()))
EVALUATION = {
    "symbol": "BTC-USDT",
    "source": "candles.csv",
    "model_id": "himari-7",
    "seed": 3,
    "period_start": "2024-03-10T00:00:00+00:00",
    "period_end": "2025-03-09T00:00:00+00:00",
    "interval_seconds": 3600,
    "trials": 40,
}


def step(name: str, status: str, **artifacts: dict[str, Any]) -> dict[str, Any]:
    made = {key: {"uri": f"runs/x/{key}", "metadata": metadata} for key, metadata in artifacts.items()}
    return {"name": name, "display_name": name.title(), "status": status, "outputs": {"artifacts": made}}


def make_run(store: Path, run_id: str = "himari-training-20260101-000000-aa11", **changes: Any) -> Path:
    folder = store / "runs" / run_id
    manifest = {
        "schema": 1,
        "run_id": run_id,
        "status": "SUCCEEDED",
        "started": "2026-01-01T00:00:00.000+00:00",
        "parameters": {"symbol": "ASKED-FOR", "data": "candles.csv", "seed": 3},
        "synthetic": False,
        "verdict": REJECTED,
        "released": None,
        "steps": [
            step("train", "SUCCEEDED", metrics={"trials": 1}),
            step("evaluate", "CACHED", evaluation=EVALUATION),
        ],
    }
    write_manifest(folder, manifest | changes)
    return folder


def test_a_rejected_run_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path)
    (folder / "tear_sheet.html").write_text("<p>")
    assert main(["--run", folder.name, "--store", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Run {folder.name}, started 2026-01-01")
    assert "REJECTED: 1 of 2 criteria failed." in text
    assert "What would change it" in text
    for shown in ("BTC-USDT", "himari-7", "2024-03-10", "1 hour"):
        assert shown in text
    assert "ASKED-FOR" not in text
    assert any(line.split() == ["Trials", "40"] for line in text.splitlines())
    assert "tear_sheet.html" in text.replace("\n", "")
    assert max(map(len, text.splitlines())) <= 100


def test_a_released_run_names_its_model(tmp_path: Path) -> None:
    folder = make_run(tmp_path, verdict=PASSED, released={"model_id": "himari-7"}, synthetic=True)
    text = explain_run(folder, 88)
    assert "PASSED: the criterion holds." in text
    assert "SYNTHETIC market" in text
    assert text.endswith("Released: himari-7\n")
    nothing = explain_run(make_run(tmp_path, verdict=PASSED), 88)
    assert "Nothing was released, although the verdict allowed it." in nothing


def test_an_override_is_told(tmp_path: Path) -> None:
    verdict = REJECTED | {"passed": True, "override": {"name": "Ada Lovelace", "reason": "Paper account only."}}
    folder = make_run(tmp_path, verdict=verdict, released={"model_id": "himari-7"})
    text = " ".join(explain_run(folder, 88).split())
    assert "OVERRIDDEN: 1 of 2 criteria failed, and Ada Lovelace released it all the same." in text
    assert "Paper account only." in text


def test_a_run_that_failed_before_its_verdict_says_where_and_why(tmp_path: Path) -> None:
    error = "step 'Train' failed, its output ends with\n" + "    line\n" * 40 + "    TrainingError: loss is not finite"
    text = explain_run(
        make_run(tmp_path, status="FAILED", verdict=None, error=error, steps=[step("train", "FAILED")]), 88
    )
    assert "FAILED before the gate had judged: there is no verdict." in text
    assert "The step that failed: Train." in text
    assert "TrainingError: loss is not finite" in text
    assert text.count("line") < 15
    assert "logs" in text


def test_a_run_that_failed_after_its_verdict_says_both(tmp_path: Path) -> None:
    steps = [step("deploy", "FAILED")]
    text = explain_run(make_run(tmp_path, status="FAILED", verdict=PASSED, error="port in use", steps=steps), 88)
    assert "PASSED: the criterion holds." in text
    assert "FAILED after the gate had judged." in text
    assert "port in use" in text
    assert "Nothing was released" in text


def test_a_run_that_has_not_ended_and_one_without_a_gate(tmp_path: Path) -> None:
    running = explain_run(make_run(tmp_path, status="RUNNING", verdict=None), 88)
    assert "RUNNING: it is still at work, or it was killed" in running
    assert "no gate judged anything" in explain_run(make_run(tmp_path, verdict=None), 88)


IDS = ["himari-training-20260101-000000-aa11", "himari-training-20260102-000000-bb22", "himari-tuning-20260103-cc33"]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    # The one that started last is neither the first nor the last by name.
    for name, day in zip(IDS, (1, 9, 3), strict=True):
        make_run(tmp_path, name, started=f"2026-01-{day:02}T00:00:00+00:00")
    (tmp_path / "runs" / "no-manifest").mkdir()
    return tmp_path / "runs"


def test_a_run_is_found_by_id_by_the_beginning_of_it_and_by_latest(runs: Path) -> None:
    for name in IDS:
        assert find_run(runs, name).name == name
    assert find_run(runs, "himari-tu").name == IDS[2]
    assert find_run(runs, "himari-training-20260102").name == IDS[1]
    assert find_run(runs, "latest").name == IDS[1]
    make_run(runs.parent, IDS[1][:-2])
    assert find_run(runs, IDS[1][:-2]).name == IDS[1][:-2]


def test_latest_passes_over_records_that_cannot_be_read(runs: Path) -> None:
    for name, text in (("zzz", "{"), ("zzzz", '{"schema": 1}')):
        (runs / name).mkdir()
        (runs / name / "manifest.json").write_text(text)
    make_run(runs.parent, "later", started="2026-01-09T02:00:00+05:00")
    make_run(runs.parent, "odd", started="yesterday")
    assert find_run(runs, "latest").name == IDS[1]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("himari-training", r"2 runs begin with 'himari-training': .*aa11, .*bb22; say more of the id"),
        ("himari-trianing-20260102-000000-bb22", r"no run .*did you mean himari-training-20260102-000000-bb22"),
        ("zzz", r"there is no run 'zzz' in .*; there are himari-tuning.*; RUN=latest is the last one"),
        ("../runs/" + IDS[0], r"there is no run"),
        ("no-manifest", r"there is no run"),
    ],
)
def test_an_unknown_run_is_answered_with_the_nearest(
    runs: Path, wanted: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        find_run(runs, wanted)
    assert main(["--run", wanted, "--store", str(runs.parent)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("explain: ")


def test_no_run_named_is_the_latest(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--run", ""], ["--run", "latest"]):
        assert main([*arguments, "--store", str(runs.parent)]) == 0
        assert f"Run {IDS[1]}" in capsys.readouterr().out


def test_a_run_in_a_bucket_is_explained_by_watching_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--store", "gs://bucket", "--run", "himari-training-1"]) == 2
    assert "gs://bucket is a bucket" in (said := capsys.readouterr().err)
    assert "`make watch-pipeline RUN=<run id>`" in said


@pytest.mark.parametrize("store", ["absent", "empty", "gs://bucket", "s3://bucket", ""])
def test_a_store_without_runs(tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty" / "runs").mkdir(parents=True)
    where = str(tmp_path / store) if store in ("absent", "empty") else store
    assert main(["--store", where]) == 2
    assert capsys.readouterr().err.startswith("explain: ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema": 2}',
        '{"schema": 1}',
        "[" * 5_000,
        "\x00",
        json.dumps({"schema": 1, "run_id": "a", "status": "S", "started": "x", "steps": 3}),
        json.dumps({"schema": 1, "run_id": "a", "status": "S", "started": "x", "steps": [], "verdict": {"passed": 1}}),
    ],
)
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "broken"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(text)
    assert main(["--run", "broken", "--store", str(tmp_path)]) == 1
    assert "the record of run broken cannot be read" in capsys.readouterr().err
    with pytest.raises(PipelineError):
        explain_run(folder, 88)


def test_a_verdict_that_compares_in_its_own_way_is_named(tmp_path: Path) -> None:
    verdict = REJECTED | {"criteria": [dataclasses.asdict(HELD) | {"comparison": "~"}]}
    with pytest.raises(PipelineError, match="compares by '~'"):
        explain_run(make_run(tmp_path, verdict=verdict), 88)


def test_a_terminal_without_the_signs_gets_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["--store", str(tmp_path)]) == 0
    sys.stdout.flush()
    assert b"asked ? 1.00" in raw.getvalue()


def test_as_a_command(tmp_path: Path) -> None:
    make_run(tmp_path)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pipelines.explain", "--run", "himari", "--store", str(tmp_path)]
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"COLUMNS": "300"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "REJECTED: 1 of 2 criteria failed." in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)
KEYS = ["status", "started", "parameters", "synthetic", "verdict", "released", "steps", "error"]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3), st.text(max_size=12))
def test_whatever_the_record_holds_there_is_an_answer(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any], wanted: str
) -> None:
    store = tmp_path_factory.mktemp("store")
    folder = make_run(store)
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert main(["--run", folder.name, "--store", str(store)]) in (0, 1)
    assert main([f"--run={wanted}", "--store", str(store)]) in (0, 1, 2)
