"""What a run shows while it goes: a line a step, a bar where there is a terminal, and nothing moving where not."""

import io
import re

import pytest
from kfp import dsl

from pipelines.observe import Execution
from pipelines.spec import Leaf
from pipelines.trace import Trace

CRASH = "[KFP Executor noise]\n{\nTraceback (most recent call last):\n  x\nValueError: boom\n"
LEAVES = [Leaf("ingest", "Ingest candles", "ingest", ()), Leaf("train", "Train policy", "train", ("ingest",))]


@pytest.fixture
def go(tmp_path, monkeypatch):
    def run(live, *, fail=False, said=CRASH):
        out = io.StringIO()
        monkeypatch.setattr("sys.stdout", out)
        trace = Trace(LEAVES, tmp_path, live=live)
        watcher = trace.watcher
        candles = tmp_path / "candles"
        candles.write_bytes(b"abc")
        artifact = dsl.Dataset(name="candles", uri=str(candles), metadata={"rows": 3})
        first = Execution("ingest", {"data": "x"})
        watcher.started(first)
        first.outputs, first.succeeded = {"candles": artifact}, True
        watcher.ended(first)
        second = Execution("train", {"candles": artifact})
        watcher.started(second)
        second.attempts, second.log = 1, tmp_path / "train.log"
        second.log.write_text(said)
        watcher.progress(second, 1, 4)
        watcher.progress(second, 4, 4)
        second.succeeded = not fail
        watcher.ended(second)
        monkeypatch.undo()
        return trace, out.getvalue()

    return run


def test_quiet_where_there_is_no_terminal(go):
    _, text = go(False)
    assert text.splitlines()[0].split() == ["[1/2]", "Ingest", "candles", "cached", "0.0", "s"]
    assert len(text.splitlines()) == 2
    assert "\r" not in text
    assert "%" not in text


def test_a_bar_in_training_where_there_is_one(go):
    _, text = go(True)
    assert "training" in text
    assert "%|" in text
    assert re.search(r"1\.00/4\.00 \[00:00<\S+, +\S+ steps/s\]", text)
    assert "\r[2/2] Train policy" in text


def test_a_bar_begins_where_training_goes_on_from(go):
    """Not at 0: what a checkpoint brought along would count as done in no time."""
    _, text = go(True)
    assert "0.00/4.00" not in text


def test_a_steps_warnings_stand_below_its_line(go):
    _, text = go(False, said="WARNING: the actions have collapsed\nPolicy x, 250,000 steps on cpu\n")
    lines = text.splitlines()
    assert lines[1].endswith("s   Policy x, 250,000 steps on cpu")
    assert lines[2:] == ["      WARNING: the actions have collapsed"]


def test_lineage_names_the_producer_and_the_content(go):
    trace, _ = go(False)
    ingest, train = trace.record()["steps"]
    made = ingest["outputs"]["artifacts"]["candles"]
    assert ingest["status"] == "CACHED"
    assert made["bytes"] == 3
    assert made["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert train["inputs"]["artifacts"]["candles"]["producer"] == "ingest"
    assert train["inputs"]["artifacts"]["candles"]["sha256"] == made["sha256"]


def test_a_failed_step_says_its_own_last_words(go):
    trace, text = go(False, fail=True)
    assert "FAILED" in text
    said = trace.failure()
    assert "step 'Train policy' failed" in said
    assert "ValueError: boom" in said
    assert "KFP Executor" not in said
    assert trace.record()["steps"][1]["error"].endswith("ValueError: boom")


def test_no_failure_no_words(go):
    trace, _ = go(False)
    assert trace.failure() is None


@pytest.fixture
def looped(tmp_path, monkeypatch):
    """Two iterations of one step at once, the second one failing where asked; then a step that collects."""

    def run(live, *, fail=False):
        out = io.StringIO()
        monkeypatch.setattr("sys.stdout", out)
        leaves = [Leaf("walk", "Walk forward", "walk", ()), Leaf("evaluate", "Evaluate", "evaluate", ("walk",))]
        trace = Trace(leaves, tmp_path, live=live)
        made = []
        pair = [Execution("walk", {"group": [number], "kind": "rolling"}, iteration=number) for number in (1, 2)]
        for one in pair:
            trace.watcher.started(one)
        for one in pair:
            trace.watcher.progress(one, 10 * one.iteration, 100)
            path = tmp_path / f"policies-{one.iteration}"
            path.write_bytes(b"x" * one.iteration)
            made.append(dsl.Model(name="policies", uri=str(path), metadata={}))
        for one, artifact in zip(pair, made, strict=True):
            one.attempts, one.log = 1, tmp_path / f"walk-{one.iteration}.log"
            one.log.write_text(f"group {one.iteration}\n")
            one.succeeded = not (fail and one.iteration == 2)
            one.outputs = {"policies": artifact}
            trace.watcher.ended(one)
        last = Execution("evaluate", {"walks": made, "seed": 1})
        trace.watcher.started(last)
        last.attempts, last.succeeded = 1, True
        trace.watcher.ended(last)
        monkeypatch.undo()
        return trace, out.getvalue()

    return run


def test_iterations_of_a_loop_are_one_step_that_holds_what_each_made(looped):
    trace, text = looped(False)
    walk, evaluate = trace.record()["steps"]
    assert (walk["status"], walk["attempts"], walk["log"]) == ("SUCCEEDED", 2, "walk-1.log")
    assert walk["inputs"]["parameters"] == {"group": [1], "kind": "rolling", "group-2": [2]}
    assert {name: made["uri"] for name, made in walk["outputs"]["artifacts"].items()} == {
        "policies": "policies-1",
        "policies-2": "policies-2",
    }
    assert [line.split()[-2:] for line in text.splitlines()[:2]] == [["group", "1"], ["group", "2"]]
    collected = evaluate["inputs"]["artifacts"]
    assert {name: given["uri"] for name, given in collected.items()} == {"walks": "policies-1", "walks-2": "policies-2"}
    assert {given["producer"] for given in collected.values()} == {"walk"}
    assert evaluate["inputs"]["parameters"] == {"seed": 1}


def test_one_iteration_that_fails_fails_the_step_and_its_log_is_shown(looped):
    trace, _ = looped(False, fail=True)
    step = trace.record()["steps"][0]
    assert (step["status"], step["log"]) == ("FAILED", "walk-2.log")
    assert "group 2" in trace.failure()


def test_iterations_at_once_share_one_bar(looped):
    _, text = looped(True)
    assert "training folds" in text
    assert "30.0/200" in text
