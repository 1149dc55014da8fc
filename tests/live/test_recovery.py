"""What an engine goes on from after ``kill -9``: each test looks at the files as a killed process leaves them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layer3.live.configuration import Layer3Config, load_config
from layer3.live.decision_log import DecisionLog
from layer3.live.log_file import files
from layer3.live.phase1 import Layer3Phase1
from layer3.live.recorder import Recorder, head
from layer3.live.recovery import recovered
from tests.live.desk import CALM, NOON, OFF, signal_of

SYMBOL = "BTC-USD"


class Process:
    """An engine with its snapshot and its log, as the runner has them."""

    def __init__(self, folder: Path) -> None:
        paths = {"state": {"path": str(folder / "state.json")}, "decision_log": {"path": str(folder / "log.jsonl")}}
        self.config: Layer3Config = load_config(None, {**OFF, **paths})
        self.now = NOON
        self.engine = Layer3Phase1(self.config, clock=lambda: self.now)
        self.engine.save()
        self.log = DecisionLog(folder / "log.jsonl", lambda: head(self.engine), fsync="none", max_bytes=1)
        self.recorder = Recorder(self.log, self.engine)
        self.engine.observers.append(self.recorder.observe)

    def size(self, trade: float) -> None:
        self.now += 3_600 * 10**9
        signal = signal_of(timestamp_ns=self.now)
        self.engine.calculate_position(signal, CALM, 100.0, 0.0, None, [trade])

    def knows(self) -> Any:
        return json.loads(json.dumps(self.engine.snapshot()["memory"]))


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    process.size(0.01)
    yield process
    process.engine.close()
    process.log.close()


def memory(process: Process) -> Any:
    found = recovered(process.config)
    assert found is not None
    return json.loads(json.dumps(found["memory"]))


def test_a_decision_after_the_snapshot_is_known(process: Process, caplog: pytest.LogCaptureFixture) -> None:
    process.engine.save()
    process.size(0.02)
    assert memory(process) == process.knows()
    assert "is made again from the decision log" in caplog.text


def test_a_residual_after_the_snapshot_is_known(process: Process) -> None:
    process.engine.save()
    assert process.recorder.record_residual(SYMBOL, 0.01, 0.03)
    assert memory(process) == process.knows()


def test_a_reset_after_the_snapshot_is_known(process: Process) -> None:
    process.size(-0.05)
    assert process.knows()["account"]["locked"]
    process.engine.save()
    process.recorder.reset_daily_loss()
    assert not memory(process)["account"]["locked"]


def test_what_a_new_file_begins_with_is_known_before_its_first_decision(process: Process) -> None:
    assert process.log.roll()
    assert memory(process) == process.knows()


def test_killed_between_two_files_the_older_one_counts(process: Process) -> None:
    assert process.log.roll()
    process.log.path.unlink()
    [old] = files(process.log.path)
    assert old != process.log.path
    assert memory(process) == process.knows()


def test_after_a_clean_end_nothing_is_said(process: Process, caplog: pytest.LogCaptureFixture) -> None:
    assert process.recorder.record_residual(SYMBOL, 0.01, 0.03)
    process.engine.save()
    with caplog.at_level(logging.INFO):
        assert memory(process) == process.knows()
    assert caplog.text == ""


def test_a_log_that_was_cut_is_said_and_the_snapshot_counts(process: Process, caplog: pytest.LogCaptureFixture) -> None:
    process.engine.save()
    process.log.path.write_bytes(process.log.path.read_bytes().splitlines(keepends=True)[-1])
    assert memory(process) == process.knows()
    assert "the decision log cannot be made again: the last snapshot counts" in caplog.text


def test_after_a_clean_end_nothing_is_made_again(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds where the log is long."""
    process.recorder.reject("signal", "no JSON")
    process.engine.save()
    monkeypatch.delattr("layer3.live.recovery.replay")
    assert memory(process) == process.knows()


def test_a_snapshot_of_a_later_process_counts_more_than_an_old_log(process: Process) -> None:
    process.now += 10**9
    with Layer3Phase1(process.config, clock=lambda: process.now) as later:
        signal = signal_of(timestamp_ns=process.now)
        later.calculate_position(signal, CALM, 200.0, 0.0, None, [0.05])
    assert memory(process) == json.loads(json.dumps(later.snapshot()["memory"])) != process.knows()
