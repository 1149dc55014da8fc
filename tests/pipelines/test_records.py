"""Run records: manifests written whole and finite, and one page that survives whatever it is made from."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from layer3.backtest.report import render_verdict_markdown
from pipelines.graph import lay_out
from pipelines.records import refresh_index, write_manifest
from tests.backtest.sheets import Page, make_evaluation, make_verdict, open_in_chromium

HOSTILE = '</pre></style><script>alert(1)</script><img src=//evil.example onerror="x">\'{{ 7 * 7 }}'
NUMBERS = {"policy_sharpe": 1.25, "kelly_only_sharpe": 0.5, "policy_trades": 80, "flat_trades": 0, "loss": 0.125}
ORDER = ["ingest", "train", "evaluate", "gate", "deploy", "reject", "notify"]


def artifact(run_id: str, step: str, name: str, kind: str, **metadata: Any) -> dict[str, Any]:
    uri = f"runs/{run_id}/{step}/{name}"
    return {"type": kind, "uri": uri, "sha256": "ab12" * 16, "bytes": 123_456, "metadata": metadata}


def make_run(root: Path, number: int = 0, *, passed: bool = True, failed: bool = False, **changes: Any) -> Path:
    """One run as pipelines/local.py leaves it: manifest and the files it names; returns the run's folder."""
    run_id = f"himari-{number:04}"
    verdict = make_verdict(passed)
    folder = root / "runs" / run_id
    outputs: dict[str, dict[str, Any]] = {
        "ingest": {"candles": artifact(run_id, "ingest", "candles", "system.Dataset", rows=43_800, sha256="9f" * 32)},
        "train": {"policy": artifact(run_id, "train", "policy", "system.Model@0.0.1", seed=7)},
        "evaluate": {
            "tear_sheet": artifact(run_id, "evaluate", "tear_sheet", "system.HTML"),
            "metrics": artifact(run_id, "evaluate", "metrics", "system.Metrics", **NUMBERS),
        },
        "gate": {"verdict": artifact(run_id, "gate", "verdict", "system.Markdown")},
    }
    waits = {
        "train": ["ingest"],
        "evaluate": ["ingest", "train"],
        "gate": ["evaluate"],
        "deploy": ["train", "gate"],
        "reject": ["gate"],
        "notify": ["deploy", "reject"],
    }
    skipped = {"evaluate", "gate", "deploy", "reject"} if failed else {"reject" if passed else "deploy"}
    if failed:
        outputs = {"ingest": outputs["ingest"]}
    for made in outputs.values():
        for item in made.values():
            path = root / item["uri"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("<!doctype html><title>sheet</title><p>the sheet" if "HTML" in item["type"] else "data")
    if not failed:
        text = render_verdict_markdown(make_evaluation(20), verdict)
        (folder / "gate" / "verdict").write_text(text, encoding="utf-8")
    (folder / "train.log").write_text("log of train")
    steps = [
        {
            "name": name,
            "display_name": name.capitalize(),
            "component": f"comp-{name}",
            "status": "SKIPPED"
            if name in skipped
            else "FAILED"
            if failed and name == "train"
            else "CACHED"
            if name == "ingest"
            else "SUCCEEDED",
            "attempts": 2 if name == "train" else 1,
            "started": "2026-01-01T00:00:00+00:00",
            "ended": None,
            "seconds": 65.0,
            "depends_on": waits.get(name, []),
            "inputs": {
                "parameters": {"seed": 7},
                "artifacts": {
                    key: {"uri": item["uri"], "type": item["type"], "sha256": item["sha256"], "producer": source}
                    for source in waits.get(name, [])
                    for key, item in outputs.get(source, {}).items()
                },
            },
            "outputs": {"parameters": {}, "artifacts": outputs.get(name, {})},
            "log": f"runs/{run_id}/train.log",
            "error": "Traceback\n" + "line\n" * 90 + "TrainingError: loss is not finite"
            if name == "train" and failed
            else None,
        }
        for name in ORDER
    ]
    manifest = {
        "schema": 1,
        "run_id": run_id,
        "pipeline": "himari-training",
        "status": "FAILED" if failed else "SUCCEEDED",
        "started": (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)).isoformat(),
        "ended": None,
        "seconds": 83.4,
        "parameters": {"data": "", "market": "edge", "symbol": "BTC-USDT", "seed": 7 + number},
        "versions": {"python": "3.11.7", "kfp": "2.17.0"},
        "git": {"commit": "7333219abcdef", "dirty": True},
        "source_sha256": "1f" * 32,
        "spec_sha256": "2e" * 32,
        "synthetic": number % 2 == 0,
        "branch": None if failed else "deploy" if passed else "reject",
        "released": {"model_id": "himari-model-1"} if passed and not failed else None,
        "error": None,
        "verdict": None if failed else verdict.to_json(),
        "steps": steps,
    }
    write_manifest(folder, manifest | changes)
    return folder


def read(root: Path) -> tuple[str, Page]:
    path = refresh_index(root / "runs")
    assert path == root / "runs" / "index.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.elements}
    return html, page


def links(page: Page) -> list[str]:
    return [target for tag, _, target in page.references if tag == "a"]


def test_a_manifest_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "run", {"schema": 1, "name": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"schema": 1, "name": "é"}
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_manifest(tmp_path / "run", {"steps": [{"seconds": bad}]})
    with pytest.raises(TypeError):
        write_manifest(tmp_path / "run", {"path": tmp_path})
    assert json.loads(path.read_text(encoding="utf-8"))["name"] == "é"
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["manifest.json"]


def test_a_failed_write_leaves_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_manifest(tmp_path, {"schema": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_manifest(tmp_path, {"schema": 2})
    assert json.loads(path.read_text()) == {"schema": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def test_no_runs_yet(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    _, page = read(tmp_path)
    assert "0 runs" in page.text


def test_a_passed_run_shows_everything_a_reviewer_asks(tmp_path: Path) -> None:
    make_run(tmp_path)
    html, page = read(tmp_path)
    for part in (
        "2026-01-01 00:00",
        "himari-0000",
        "BTC-USDT",
        "synthetic",
        "PASSED",
        "1 m 23 s",
        "7333219a+",
        "SYNTHETIC DATA.",
        "all 8 criteria hold",
        "released himari-model-1",
        "Sentence number 7",
        "branch taken",
        "Metric Policy Kelly only Flat",
        "Sharpe ratio 1.25 0.50 n/a",
        "Closed trades 80 n/a 0",
        "loss 0.125",
        "2 attempts",
        "after ingest, train",
        "from train",
        "system.Dataset, 123 kB ab12ab12ab12",
        "rows 43800",
        "# PASSED: all 8 criteria hold",
        "python 3.11.7",
        "1f" * 32,
    ):
        assert part in page.text, part
    assert html.count('class="edge taken"') == 2
    assert html.count('class="edge off"') == 2
    assert all((tmp_path / "runs" / unquote(link)).exists() for link in links(page))
    assert "himari-0000/train.log" in links(page)


def test_a_rejected_and_a_failed_run(tmp_path: Path) -> None:
    make_run(tmp_path, 1, passed=False)
    make_run(tmp_path, 2, failed=True)
    html, page = read(tmp_path)
    assert "4 of 8 criteria failed" in page.text
    assert "No verdict: the run did not reach the gate." in page.text
    assert page.text.count("TrainingError: loss is not finite") == 1
    assert html.count("line\n") == 39
    assert html.count("node failed") == 1
    assert html.count("node skipped") == 5
    assert html.index("himari-0002") < html.index("himari-0001")
    assert html.count('<details class="run" open>') == 1


def test_facts_are_in_the_order_of_their_names_and_a_long_title_is_whole(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    step = manifest["steps"][0]
    step["display_name"] = "Evaluate on held-out data"
    step["inputs"]["parameters"] = {"symbol": "S", "data": "D"}
    write_manifest(folder, manifest)
    html, page = read(tmp_path)
    assert "data D symbol S" in page.text
    assert ">Evaluate on</text>" in html
    assert ">held-out data</text>" in html


def test_the_tear_sheet_opens_as_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    _, page = read(tmp_path)
    assert links(page).count("himari-0000/tear_sheet.html") == 3
    assert "himari-0000/evaluate/tear_sheet" not in links(page)
    copy = folder / "tear_sheet.html"
    assert copy.read_bytes() == (folder / "evaluate" / "tear_sheet").read_bytes()
    stamp = copy.stat()
    read(tmp_path)
    assert copy.stat().st_ino == stamp.st_ino
    (folder / "evaluate" / "tear_sheet").write_text("<p>another, longer sheet than before it was")
    read(tmp_path)
    assert "another" in copy.read_text()
    (folder / "evaluate" / "tear_sheet").unlink()
    _, page = read(tmp_path)
    assert "himari-0000/tear_sheet.html" in links(page)
    copy.unlink()
    _, page = read(tmp_path)
    assert not any("tear_sheet" in link for link in links(page))


def test_two_pages_of_one_name_do_not_meet(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["steps"][3]["outputs"]["artifacts"]["tear_sheet"] = artifact(
        "himari-0000", "gate", "tear_sheet", "system.HTML"
    )
    (folder / "gate" / "tear_sheet").write_text("<p>gate's own")
    write_manifest(folder, manifest)
    _, page = read(tmp_path)
    assert "himari-0000/gate-tear_sheet.html" in links(page)
    assert (folder / "gate-tear_sheet.html").read_text() == "<p>gate's own"
    assert "the sheet" in (folder / "tear_sheet.html").read_text()


def test_artifacts_in_a_bucket_and_elsewhere(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    items = manifest["steps"][0]["outputs"]["artifacts"]
    items["candles"]["uri"] = "gs://bucket/a b/candles"
    items["other"] = artifact("himari-0000", "x", "y", "system.Model") | {"uri": "javascript:alert(1)"}
    items["absolute"] = artifact("himari-0000", "x", "y", "system.Model") | {"uri": str(folder / "train.log")}
    write_manifest(folder, manifest)
    _, page = read(tmp_path)
    assert "https://storage.cloud.google.com/bucket/a%20b/candles" in links(page)
    assert not any("javascript" in link for link in links(page))
    assert "javascript:alert(1) is not on this machine" in page.text
    assert links(page).count("himari-0000/train.log") == 8


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("", "Expecting value"),
        ('{"schema": 1', "Expecting"),
        ("[]", "manifest is [], expected an object"),
        ("[" * 200_000, "nested too deeply"),
        ('{"schema": 1, "x": NaN}', "holds NaN"),
        ('{"schema": 9}', "schema is 9, this program reads 1"),
        ('{"schema": 1}', "manifest.run_id is None, expected text"),
        ("\xff\xfe", "codec can't decode"),
        ({"steps": "many"}, "manifest.steps is 'many', expected a list"),
        ({"steps": [{"name": "a", "status": 3}]}, "manifest.steps[0].status is 3, expected text"),
        ({"seconds": "long"}, "manifest.seconds is 'long', expected a number"),
        ({"seconds": True}, "manifest.seconds is True, expected a number"),
        ({"started": "yesterday"}, "manifest.started is 'yesterday', expected an ISO date and time"),
        ({"verdict": {"passed": "yes", "criteria": []}}, "manifest.verdict.passed is 'yes'"),
        ({"git": []}, "manifest.git is [], expected an object"),
        ({"steps": [{"name": "a", "status": "FAILED", "depends_on": ["a"]}]}, "wait for each other in a circle: a"),
        ({"steps": [{"name": "a", "status": "FAILED"}] * 2}, "two steps have the same name"),
    ],
)
def test_a_damaged_manifest_is_listed_and_hurts_no_other(
    tmp_path: Path, damage: str | dict[str, Any], reason: str
) -> None:
    make_run(tmp_path, 1)
    if isinstance(damage, str):
        broken = tmp_path / "runs" / "broken"
        broken.mkdir()
        (broken / "manifest.json").write_bytes(damage.encode("latin-1"))
    else:
        make_run(tmp_path, 2, **damage)
    _, page = read(tmp_path)
    assert "unreadable." in page.text
    assert reason in page.text
    assert "all 8 criteria hold" in page.text


def test_a_manifest_that_is_a_folder_or_a_dangling_link(tmp_path: Path) -> None:
    make_run(tmp_path, 1)
    (tmp_path / "runs" / "folder" / "manifest.json").mkdir(parents=True)
    (tmp_path / "runs" / "dangling").mkdir()
    (tmp_path / "runs" / "dangling" / "manifest.json").symlink_to(tmp_path / "nowhere")
    _, page = read(tmp_path)
    assert "folder: unreadable." in page.text


def test_a_minimal_running_manifest(tmp_path: Path) -> None:
    started = {"schema": 1, "run_id": "r", "status": "RUNNING", "started": "2026-01-01T00:00:00Z", "steps": []}
    write_manifest(tmp_path / "runs" / "r", started)
    _, page = read(tmp_path)
    assert "running" in page.text
    assert "No verdict" in page.text


def test_everything_from_a_manifest_is_escaped(tmp_path: Path) -> None:
    folder = make_run(tmp_path, parameters={"symbol": HOSTILE, HOSTILE: HOSTILE}, run_id=HOSTILE, status=HOSTILE)
    manifest = json.loads((folder / "manifest.json").read_text())
    step = manifest["steps"][0]
    step |= {"display_name": HOSTILE, "error": HOSTILE, "log": HOSTILE, "status": HOSTILE}
    step["outputs"]["artifacts"] = {
        HOSTILE: artifact("x", "y", "z", HOSTILE, **{HOSTILE: [HOSTILE]}) | {"uri": HOSTILE}
    }
    (folder / "gate" / "verdict").write_text(HOSTILE)
    write_manifest(folder, manifest)
    html, page = read(tmp_path)
    assert HOSTILE in page.text
    assert "<script" not in html
    assert "49" not in re.findall(r"'(\d+)", page.text)


def test_two_hundred_runs_stay_usable(tmp_path: Path) -> None:
    for number in range(200):
        make_run(tmp_path, number, passed=number % 3 == 0, failed=number % 7 == 6)
    html, page = read(tmp_path)
    assert "200 runs" in page.text
    assert len(html.encode()) < 4_000_000
    assert html.count('<details class="run"') == 200
    assert html.count('<details class="run" open>') == 1
    assert html == refresh_index(tmp_path / "runs").read_text(encoding="utf-8")


def test_the_graph_goes_left_to_right_without_short_cuts() -> None:
    graph = lay_out({"a": [], "b": ["a"], "c": ["a", "b", "gone"], "d": ["c"], "e": ["c", "b"]})
    assert [(edge.source, edge.target) for edge in graph.edges] == [("a", "b"), ("b", "c"), ("c", "d"), ("c", "e")]
    x = {node.name: node.x for node in graph.nodes}
    assert x["a"] < x["b"] < x["c"] < x["d"] == x["e"]
    assert all(0 < node.x < graph.width and 0 < node.y < graph.height for node in graph.nodes)
    assert lay_out({}).nodes == ()
    with pytest.raises(ValueError, match="circle: b, c"):
        lay_out({"a": [], "b": ["c"], "c": ["b"]})


def test_chromium_opens_it(tmp_path: Path) -> None:
    make_run(tmp_path, 1, passed=False)
    path = refresh_index(tmp_path / "runs")
    dom = open_in_chromium(path, tmp_path / "profile")
    assert "4 of 8 criteria failed" in dom
    assert "branch taken" in dom
    sheet = open_in_chromium(tmp_path / "runs" / "himari-0001" / "tear_sheet.html", tmp_path / "second")
    assert "<p>the sheet" in sheet
