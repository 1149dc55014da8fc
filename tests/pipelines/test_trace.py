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
        watcher.progress(1, 4)
        watcher.progress(4, 4)
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
