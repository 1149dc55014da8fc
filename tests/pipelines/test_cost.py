"""Cost: a strict price table, free parts, durations of past runs, and the budget."""

from __future__ import annotations

import argparse
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import compile as compiler
from layer3.errors import ConfigurationError
from pipelines import cost, submit
from pipelines.cost import month_estimate, render, run_estimate
from pipelines.defaults import MEMBERS
from pipelines.manifest import SCHEMA, write_manifest
from pipelines.prices import GPU_STEPS, Price, load_prices
from pipelines.spec import leaves
from pipelines.submit import add_request_options

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "config/prices.yaml"


def write(tmp_path: Path, change: dict[str, Any]) -> Path:
    """The project's table with values put at dotted places (a value of ... removes the key)."""
    document = yaml.safe_load(TABLE.read_text())
    for place, value in change.items():
        *parents, last = place.split(".")
        node = document
        for parent in parents:
            node = node[parent]
        if value is ...:
            del node[last]
        else:
            node[last] = value
    path = tmp_path / "prices.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def record(
    store: Path, run_id: str, seconds: dict[str, list[float]], status: str = "SUCCEEDED", **asked: object
) -> None:
    steps = [
        {"name": f"{name}-{number}", "component": f"comp-{name}", "status": "SUCCEEDED", "seconds": spent}
        for name, tasks in seconds.items()
        for number, spent in enumerate(tasks)
    ]
    folder = store / "runs" / run_id
    folder.mkdir(parents=True)
    said = {"schema": SCHEMA, "run_id": run_id, "status": status, "started": run_id, "steps": steps}
    write_manifest(folder, said | {"parameters": asked})


def test_every_figure_of_the_table_has_its_source_and_says_whether_anybody_read_it() -> None:
    prices = load_prices(TABLE)
    for price in prices.prices.values():
        assert price.source.startswith("https://cloud.google.com/"), price
        assert price.read is None or date(2026, 1, 1) < price.read < date(2027, 1, 1), price
        assert price.usd > 0
    assert (prices.budget_cad, prices.budget_months) == (400.0, 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prices.egress_gib.usd": -1}, "prices.egress_gib.usd is -1, expected a number of at least 0"),
        ({"prices.egress_gib.usd": float("nan")}, "prices.egress_gib.usd is nan"),
        ({"prices.egress_gib.usd": True}, "prices.egress_gib.usd is True"),
        ({"prices.egress_gib.usd": "0.12"}, "prices.egress_gib.usd is '0.12'"),
        ({"prices.egress_gib.source": "my memory"}, "prices.egress_gib.source is 'my memory'"),
        ({"prices.egress_gib.read": "soon"}, "prices.egress_gib.read is 'soon', expected a day"),
        ({"prices.egress_gib": 3}, "prices.egress_gib is 3, expected usd, per, source, read"),
        ({"prices.egress_gib": ...}, "prices.egress_gib is missing"),
        ({"prices.egres_gib": {}}, "unknown key 'prices.egres_gib'; did you mean 'egress_gib'"),
        ({"usd_to_cad.value": 0}, "usd_to_cad.value is 0, expected a number above 0"),
        ({"budget.months": ...}, "budget.months is missing"),
        ({"assumptions.step_minutes": {}}, "assumptions.step_minutes is {}"),
        ({"assumptions.step_minutes.train": None}, "assumptions.step_minutes.train is None"),
    ],
)
def test_a_wrong_table_is_refused_by_file_and_key(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = write(tmp_path, change)
    with pytest.raises(ConfigurationError, match=re.escape(f"{path}: {sentence}")):
        load_prices(path)


def test_a_missing_table_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cost.main(["--prices", str(tmp_path / "none.yaml")]) == 2
    assert "the price table" in capsys.readouterr().err


@given(quantity=st.floats(0, 1e9), free=st.floats(0, 1e6), usd=st.floats(0, 10))
def test_only_what_goes_beyond_the_free_part_is_paid(quantity: float, free: float, usd: float) -> None:
    price = Price("x", usd, "GiB", "https://example", None, free)
    assert price.of(quantity) == pytest.approx(usd * max(quantity - free, 0.0))


def test_a_run_is_assumed_until_one_was_measured(tmp_path: Path) -> None:
    prices = load_prices(TABLE)
    assumed = run_estimate(prices, str(tmp_path))
    assert assumed.basis == f"assumed: there is no successful run in {tmp_path} yet"
    record(tmp_path, "2026-01-01", {"ingest": [60.0], "train": [600.0]}, status="FAILED")
    assert run_estimate(prices, str(tmp_path)) == assumed

    record(tmp_path, "2026-01-02", {"ingest": [60.0], "train": [600.0], "walk": [300.0, 300.0]})
    measured = run_estimate(prices, str(tmp_path))
    assert measured.basis == "work of the steps: median of 1 past run; starting a task: assumed"
    begin = prices.assumptions
    hours = {line.what: line.quantity for line in measured.lines}
    # Two tasks of the loop and the training step have a GPU: three starts.
    assert hours["NVIDIA T4"] == pytest.approx((20 + 3 * begin.gpu_start_minutes) / 60)
    assert hours["e2-standard-4, the other steps"] == pytest.approx((1 + begin.start_minutes) / 60)
    assert measured.usd == pytest.approx(
        0.03
        + hours["NVIDIA T4"] * (0.4025 + 0.21849885)
        + hours["e2-standard-4, the other steps"] * 0.154126276
        + begin.writes_per_run / 1000 * 0.01
    )


def test_only_the_newest_five_runs_count_and_a_broken_record_does_not_stop_it(tmp_path: Path) -> None:
    for day, minutes in enumerate([900, 10, 20, 30, 40, 50], start=1):
        record(tmp_path, f"2026-01-0{day}", {"train": [minutes * 60.0]})
    (tmp_path / "runs/2026-01-09").mkdir()
    (tmp_path / "runs/2026-01-09/manifest.json").write_text("{")
    prices = load_prices(TABLE)
    gpu = next(line for line in run_estimate(prices, str(tmp_path)).lines if line.what == "NVIDIA T4")
    assert gpu.quantity == pytest.approx((30 + prices.assumptions.gpu_start_minutes) / 60)


def gpu_hours(store: Path, **asked: object) -> float:
    lines = run_estimate(load_prices(TABLE), str(store), asked).lines
    return next(line.quantity for line in lines if line.what == "NVIDIA T4")


def test_what_a_run_is_asked_to_train_is_in_its_estimate(tmp_path: Path) -> None:
    """Else MAX_COST would stop nothing."""
    assumed = load_prices(TABLE).assumptions
    start, train, walk = assumed.gpu_start_minutes, assumed.step_minutes["train"], assumed.step_minutes["walk"]
    assert gpu_hours(tmp_path) == pytest.approx((7 * start + train + walk) / 60)
    assert gpu_hours(tmp_path, train_steps=5_000_000) == pytest.approx((7 * start + 10 * (train + walk)) / 60)
    assert gpu_hours(tmp_path, members=8) == pytest.approx((7 * start + 8 / MEMBERS * train + walk) / 60)
    assert gpu_hours(tmp_path, fold_seeds=10, folds=9) == pytest.approx((7 * start + train + walk) / 60)
    assert gpu_hours(tmp_path, folds=0) == pytest.approx((2 * start + train) / 60)
    assert run_estimate(load_prices(TABLE), str(tmp_path), {"train_steps": 10**9}).usd > 10


def test_a_past_run_tells_of_those_that_train_about_as_much(tmp_path: Path) -> None:
    assumed = load_prices(TABLE).assumptions
    start, walk = assumed.gpu_start_minutes, assumed.step_minutes["walk"]
    record(tmp_path, "2026-01-01", {"ingest": [600.0], "train": [3600.0], "walk": [60.0] * 6}, folds=0)
    assert gpu_hours(tmp_path) == pytest.approx((7 * start + 60 + walk) / 60), "its walk had nothing to do"
    assert gpu_hours(tmp_path, train_steps=1_000_000) == pytest.approx((7 * start + 120 + 2 * walk) / 60)
    much = run_estimate(load_prices(TABLE), str(tmp_path), {"train_steps": 100_000_000})
    assert much.basis == (
        "work of the steps: median of 1 past run, but train and walk: assumed, none of them trained about as much; "
        "starting a task: assumed"
    )
    assert next(line.quantity for line in much.lines if line.what.startswith("e2")) == pytest.approx(
        (10 + assumed.start_minutes) / 60
    )


def test_what_is_assumed_unless_said_is_what_run_pipeline_asks() -> None:
    parser = argparse.ArgumentParser()
    add_request_options(parser)
    said = parser.parse_args([])
    assert {
        "train_steps": said.steps,
        "members": said.members,
        "folds": said.folds,
        "fold_seeds": said.fold_seeds,
        "fold_groups": submit._GROUPS,
    } == cost.DEFAULTS


def test_the_steps_with_a_gpu_are_those_of_the_compiled_pipeline(tmp_path: Path) -> None:
    training = next(path for path in compiler.compile_pipelines(tmp_path) if path.stem == "training")
    spec = yaml.safe_load(training.read_text())
    executors = spec["deploymentSpec"]["executors"]
    with_gpu = {
        name.removeprefix("exec-")
        for name, executor in executors.items()
        if "accelerator" in executor["container"].get("resources", {})
    }
    assert with_gpu == GPU_STEPS
    steps = {leaf.component.removeprefix("comp-") for leaf in leaves(spec)}
    assert steps <= set(load_prices(TABLE).assumptions.step_minutes), "a step that the price table knows nothing of"


def test_a_month_scales_with_requests_beyond_what_is_free() -> None:
    prices = load_prices(TABLE)
    few = month_estimate(prices, requests_per_day=1_000, runs_per_month=4)
    many = month_estimate(prices, requests_per_day=1_000_000, runs_per_month=4)
    by_what = {line.what: line for line in many.lines}
    requests = 1_000_000 * 365.25 / 12
    assert by_what["serving: CPU"].usd == pytest.approx((requests * 0.1 - 180_000) * 0.000024)
    assert by_what["serving: requests"].usd == pytest.approx((requests / 1e6 - 2) * 0.40)
    assert next(line for line in few.lines if line.what == "serving: CPU").usd == 0
    assert many.cad == pytest.approx(many.usd * prices.usd_to_cad)


def test_the_report_says_what_remains_or_by_how_much_it_is_too_much(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cost.main(["--store", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    prices = load_prices(TABLE)
    run, month = (
        run_estimate(prices, str(tmp_path)),
        month_estimate(prices, requests_per_day=10_000, runs_per_month=4.33),
    )
    assert out.strip() == render(prices, run, month, 4.33)
    total = 3 * (4.33 * run.cad + month.cad)
    assert f"3 months with 13 training runs: {total:.2f} of 400.00 CAD" in out
    assert f"remains {400 - total:.2f} CAD" in out
    assert "not yet read on their pages, look them up: vertex_tesla_t4" in out

    assert cost.main(["--store", str(tmp_path), "--requests-per-day", "5e6"]) == 1
    assert "over the budget by" in capsys.readouterr().out
    assert cost.main(["--requests-per-day", "-1"]) == 2
    assert "--requests-per-day is -1.0" in capsys.readouterr().err
