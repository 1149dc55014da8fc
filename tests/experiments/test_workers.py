"""Real processes: their answers, their refusals, and their deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from layer3 import machine
from layer3.errors import LostWorkerError, TrainingError
from layer3.experiments.workers import workers
from tests.fakes.processes import group, is_alive
from tests.fakes.servers import wait_for

ROOT = Path(__file__).resolve().parents[2]


def work(task: int, tell: Callable[[int], None]) -> int:
    """Squares; refuses 3, breaks at 4, dies at 5, loses a process of its own at 8."""
    if task == 3:
        raise TrainingError("three cannot be trained")
    if task == 4:
        raise ZeroDivisionError("four")
    if task == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 8:
        raise LostWorkerError("a worker of the training ended by itself")
    tell(task)
    return task * task


def test_answers_and_refusals() -> None:
    with workers(2, work) as crew:
        assert crew.idle == [0, 1]
        crew.give(0, 6)
        crew.give(1, 3)
        assert crew.idle == []
        events = [crew.listen() for _ in range(3)]
        assert crew.idle == [0, 1]
        crew.give(1, 7)
        events += [crew.listen() for _ in range(2)]
    of_first = [(event.kind, event.value) for event in events if event.worker == 0]
    of_second = [(event.kind, event.value) for event in events if event.worker == 1]
    assert of_first == [("progress", 6), ("answer", 36)]
    assert of_second == [("refusal", "three cannot be trained"), ("progress", 7), ("answer", 49)]


def test_a_worker_that_is_killed_says_by_what() -> None:
    with workers(1, work) as crew:
        crew.give(0, 5)
        with pytest.raises(RuntimeError, match="ended by SIGKILL; is there enough memory"):
            crew.listen()


def test_a_worker_that_is_killed_with_its_task_unread_says_so_too() -> None:
    with workers(1, work) as crew:
        pid = crew._processes[0].pid
        os.kill(pid, signal.SIGSTOP)
        crew.give(0, 6)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="ended by SIGKILL; is there enough memory"):
            crew.listen()


@pytest.mark.parametrize(
    ("task", "words"), [(4, "ZeroDivisionError: four"), (8, "LostWorkerError: a worker of the training ended")]
)
def test_a_worker_that_breaks_leaves_its_traceback(task: int, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    """One that lost a process too: as a refusal it would be on record, and never be tried again."""
    with workers(1, work) as crew:
        crew.give(0, task)
        with pytest.raises(RuntimeError, match="exit code 1; its own words are above"):
            crew.listen()
    assert words in capfd.readouterr().err


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(
        "import os, time\n"
        "from layer3.experiments.workers import workers\n"
        "def work(task, tell):\n"
        "    while True:\n"
        "        tell(os.getpid()); time.sleep(0.01)\n"
        "if __name__ == '__main__':\n"
        "    with workers(2, work) as crew:\n"
        "        crew.give(0, 1)\n"
        "        print(crew.listen().value, crew._processes[1].pid, flush=True)\n"
        "        time.sleep(60)\n"
    )
    with group([sys.executable, program], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=_environment()) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
        parent.wait()
        wait_for(lambda: not any(map(is_alive, pids)))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def limits(_: int, tell: Callable[[int], None]) -> list[str | None]:
    return [os.environ.get(name) for name in machine.ONE_THREAD]


@pytest.mark.parametrize("told", [None, "2"])
def test_a_workers_libraries_keep_to_one_core_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, told: str | None
) -> None:
    for name in machine.ONE_THREAD:
        monkeypatch.delenv(name, raising=False)
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    before = dict(os.environ)
    with workers(1, limits) as crew:
        assert dict(os.environ) == before
        crew.give(0, 1)
        assert crew.listen().value == ([told, None, None] if told else ["1", "1", "1"])
