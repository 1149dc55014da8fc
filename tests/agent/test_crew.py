from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from layer3.agent import crew
from layer3.agent.crew import Crew, shared
from layer3.errors import ConfigurationError, TrainingError

ROOT = Path(__file__).parents[2]
FORKS = pytest.mark.skipif(sys.platform != "linux", reason="workers are threads here")


class Part:
    """One worker's own cell of a shared tensor."""

    def __init__(self, board: torch.Tensor, number: int) -> None:
        self._board, self._number = board, number

    def add(self, amount: float) -> tuple[int, int]:
        self._board[self._number] += amount
        return self._number, os.getpid()

    def total(self) -> float:
        return float(self._board.sum())

    def refuse(self, number: int) -> None:
        if number == self._number:
            raise ConfigurationError(f"worker {number} will not")

    def vanish(self, number: int) -> None:
        if number == self._number:
            os.kill(os.getpid(), signal.SIGKILL)

    def fail(self, number: int) -> None:
        if number == self._number:
            raise ZeroDivisionError("a bug of ours")


@pytest.fixture(params=[pytest.param(True, marks=FORKS), False], ids=["processes", "threads"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(crew, "_FORKS", request.param)
    return bool(request.param)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_workers_write_to_one_board_and_answer_in_their_order(kind: bool, count: int) -> None:
    board = shared(count)
    with Crew(count, lambda number: Part(board, number)) as workers:
        for k in range(5):
            answers = workers.call("add", 1.0 + k)
            assert [number for number, _ in answers] == list(range(count))
            assert len({pid for _, pid in answers}) == (count if kind else 1)
        assert workers.call("total") == [15.0 * count] * count
    assert board.tolist() == [15.0] * count


@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_a_worker_refuses_the_caller_hears(kind: bool, number: int) -> None:
    before = children()
    with (
        pytest.raises(ConfigurationError, match=f"worker {number} will not"),
        Crew(3, lambda k: Part(shared(3), k)) as workers,
    ):
        workers.call("refuse", number)
    assert children() == before


def test_what_cannot_be_made_is_said(kind: bool) -> None:
    def make(number: int) -> Part:
        if number == 1:
            raise TrainingError("no such fold")
        return Part(shared(2), number)

    before = children()
    with pytest.raises(TrainingError, match="no such fold"), Crew(2, make) as workers:
        workers.call("total")
    assert children() == before


@FORKS
@pytest.mark.parametrize("deed", ["vanish", "fail"])
def test_a_worker_that_is_gone_ends_the_training_with_a_sentence(deed: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = children()
    with Crew(3, lambda k: Part(shared(3), k)) as workers:
        with pytest.raises(TrainingError, match=r"a worker of the training \(process \d+\) ended by itself"):
            workers.call(deed, 2)
        with pytest.raises(TrainingError, match="ended by itself"):
            workers.call("total")
    assert ("ZeroDivisionError: a bug of ours" in capfd.readouterr().err) == (deed == "fail")
    assert children() == before


ORPHAN = """
import os, sys, time
from layer3.agent.crew import Crew
class Part:
    def pid(self): return os.getpid()
with Crew(3, lambda number: Part()) as workers:
    print(*workers.call("pid"), flush=True)
    time.sleep(600)
"""


@FORKS
def test_workers_end_with_a_caller_that_is_killed() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", ORPHAN], env=environment, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        own, *others = map(int, caller.stdout.readline().split())
        assert own == caller.pid
        assert len(others) == 2
        caller.kill()
    deadline = time.monotonic() + 20.0
    while any(Path(f"/proc/{pid}").exists() and "Z" not in state_of(pid) for pid in others):
        assert time.monotonic() < deadline, "workers outlived their caller"
        time.sleep(0.05)


def test_empty_tensors_are_shared_too() -> None:
    assert shared(3, 0, 2).shape == (3, 0, 2)
    assert shared(2, 3, dtype=torch.int64).tolist() == [[0, 0, 0], [0, 0, 0]]


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def children() -> set[str]:
    """Processes that this one started and has not waited for."""
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}
