"""TensorBoard reads back what was written: every figure of every policy, after a crash and after a fresh start too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from layer3.agent.events import EventLog
from layer3.errors import ConfigurationError, TrainingError
from tests.agent.curves import figures_of, make_curve, make_reports

ROOT = Path(__file__).resolve().parents[2]


def ticking(start=1_700_000_000.0):
    """A clock that goes on by a second whenever it is asked."""
    now = start

    def clock():
        nonlocal now
        now += 1.0
        return now

    return clock


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def write(folder: Path, curves, names=("seed-1", "seed-2"), clock=None, start=0):
    with EventLog(folder, names[: len(curves)], clock or ticking()) as events:
        for report in make_reports(curves)[start:]:
            events(report)


@given(seed=st.integers(0, 2**32 - 1), updates=st.integers(1, 20))
def test_every_figure_of_every_policy_comes_back(tmp_path_factory, seed, updates):
    folder = tmp_path_factory.mktemp("events")
    curves = [make_curve(updates, seed), make_curve(updates, seed + 1)]
    write(folder, curves)
    for name, curve in zip(("seed-1", "seed-2"), curves, strict=True):
        found = read(folder / name)
        assert set(found) == set(figures_of(curve[0]))
        for tag, points in found.items():
            assert [step for step, _ in points] == [progress.steps for progress in curve]
            assert [value for _, value in points] == pytest.approx([getattr(p, tag) for p in curve], rel=1e-6)


def test_a_process_that_is_killed_leaves_all_it_was_told(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from layer3.agent.events import EventLog\n"
        "from tests.agent.curves import make_curve, make_reports\n"
        "log = EventLog(Path(sys.argv[1]), ['seed-1'])\n"
        "for report in make_reports([make_curve(7)]): log(report)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert len(read(tmp_path / "seed-1")["reward"]) == 7


def test_a_file_cut_off_in_the_middle_of_a_record_is_read_up_to_there(tmp_path):
    write(tmp_path, [make_curve(5)])
    (file,) = (tmp_path / "seed-1").iterdir()
    os.truncate(file, file.stat().st_size - 10)
    assert len(read(tmp_path / "seed-1")["reward"]) == 4


def test_going_on_from_a_checkpoint_replaces_what_came_after_it(tmp_path):
    first, again = make_curve(20, seed=1), make_curve(20, seed=1, sharpe=9.0)
    clock = ticking()
    write(tmp_path, [first], clock=clock)
    write(tmp_path, [again], clock=clock, start=12)
    points = read(tmp_path / "seed-1")["sharpe"]
    assert [step for step, _ in points] == [progress.steps for progress in first]
    assert [value for _, value in points] == pytest.approx([p.sharpe for p in first[:12]] + [9.0] * 8, rel=1e-6)


@pytest.mark.parametrize("name", ["../seed", "a/b", "/tmp", "", ".", ".."])
def test_a_name_that_is_no_folders_is_refused(tmp_path, name):
    with pytest.raises(ConfigurationError, match="cannot name a folder"):
        EventLog(tmp_path, [name])


def test_two_policies_of_one_name_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="must differ"):
        EventLog(tmp_path, ["seed-1", "seed-1"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's disk that is always full")
def test_a_full_disk_ends_in_a_sentence(tmp_path):
    first, second = make_reports([make_curve(2)])
    with EventLog(tmp_path, ["seed-1"]) as log:
        log(first)
        log._files[0].close()
        # What the disk refused is still in the buffer when the log is closed.
        log._files[0] = Path("/dev/full").open("wb")  # noqa: SIM115 (the log closes it)
        with pytest.raises(TrainingError, match=r"events below .*No space left on device: free some.*last checkpoint"):
            log(second)
