"""What training says: the guide's line at most every tenth, a warning once, a bar on a terminal only."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.agent.log import TrainingLog, duration, line, shown
from tests.agent.curves import make_curve, make_reports

ROOT = Path(__file__).resolve().parents[2]


def last_report(policies: int = 1, **bent):
    return make_reports([make_curve(10, seed, **bent) for seed in range(policies)])[-1]


def test_the_guides_line():
    report = last_report(
        reward=0.0123, sharpe=1.234, multiplier_mean=0.98, multiplier_sd=0.812, entropy=-1.2, kl=0.0031
    )
    assert line(report, 512) == (
        "Episode 40/40 | Reward +0.0123 | Sharpe +1.23 | Multiplier 0.98 ± 0.81 | "
        "Entropy -1.20 | KL 0.0031 | Time 0.5 s"
    )


def test_the_line_of_a_population_gives_mean_and_range():
    low, high = make_curve(10, reward=-0.01, sharpe=0.5, kl=0.01), make_curve(10, reward=0.03, sharpe=2.5, kl=0.03)
    text = line(make_reports([low, high])[4], 512)
    assert text.startswith("Episode 40/80 | 2 policies | Reward +0.0100 (-0.0100 to +0.0300) | ")
    assert "Sharpe +1.50 (+0.50 to +2.50)" in text
    assert "KL 0.0200" in text


@given(updates=st.integers(1, 300), policies=st.integers(1, 3))
def test_a_line_every_tenth_at_most_and_always_at_the_end(updates, policies):
    said = []
    log = TrainingLog([f"seed-{i}" for i in range(policies)], 500, said.append)
    reports = make_reports([make_curve(updates, seed) for seed in range(policies)])
    for report in reports:
        log(report)
    assert len(said) == min(10, updates)
    assert said[-1] == line(reports[-1], 500)
    places = [int(re.match(r"Episode +([\d,]+)/", text)[1].replace(",", "")) for text in said]
    assert places == sorted(set(places)) or updates < 3


def test_a_training_that_goes_on_from_a_checkpoint_speaks_at_once():
    said = []
    log = TrainingLog(["seed-1"], 500, said.append)
    log(make_reports([make_curve(100)])[44])
    assert len(said) == 1


def test_a_warning_is_said_once_and_names_its_policy():
    said = []
    log = TrainingLog(["seed-7", "seed-8"], 500, said.append)
    for report in make_reports([make_curve(100), make_curve(100, kl=0.3)]):
        log(report)
    warnings = [text for text in said if text.startswith("WARNING: ")]
    assert len(warnings) == 1
    assert warnings[0].startswith("WARNING: seed-8: The KL divergence explodes: 0.300")


def test_one_policy_of_several_settings_is_named_too():
    said = []
    log = TrainingLog(["rate-1", "rate-2"], 500, said.append)
    log(last_report(kl=1.0))
    assert said[1].startswith("WARNING: rate-1: ")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (99.94, "99.9 s"), (99.95, "1.7 min"), (5_996, "99.9 min"), (5_997, "1.7 h")]
)
def test_lengths_of_time(seconds, text):
    assert duration(seconds) == text


def test_without_a_terminal_there_are_lines_alone(capsys):
    with shown(["seed-1"], 500) as tell:
        for report in make_reports([make_curve(40)]):
            tell(report)
    text = capsys.readouterr().out
    assert len(text.splitlines()) == 10
    assert all(part.startswith("Episode ") for part in text.splitlines())
    assert "\r" not in text


def test_on_a_terminal_there_is_a_bar_with_speed_and_time_left():
    code = (
        "import time\n"
        "from layer3.agent.log import shown\n"
        "from tests.agent.curves import make_curve, make_reports\n"
        "with shown(['seed-1'], 500) as tell:\n"
        "    for report in make_reports([make_curve(40)]):\n"
        "        tell(report); time.sleep(0.02)\n"
    )
    main, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    pieces = []
    with (
        os.fdopen(main, "rb", buffering=0) as terminal,
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=end, stderr=end) as process,
    ):
        os.close(end)
        with contextlib.suppress(OSError):  # Linux reports the end of a pseudo-terminal as an error.
            while piece := terminal.read(65_536):
                pieces.append(piece)
    assert process.returncode == 0
    text = b"".join(pieces).decode()
    assert text.count("Episode ") == 10
    assert re.search(r"training: +\d+%\|.*\[\d\d:\d\d<\d\d:\d\d, +[\d.]+k steps/s\]", text)
    assert "\r" in text
