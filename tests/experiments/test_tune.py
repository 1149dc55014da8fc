"""``make tune`` with real trainings: killed, interrupted, resumed, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from layer3 import trials
from layer3.backtest.metrics import sharpe
from layer3.experiments import tune
from layer3.experiments.market import load_market
from layer3.workflow import splits_of
from tests.fakes.processes import group

ROOT = Path(__file__).resolve().parents[2]
DATA = "synthetic:bars=5000,edge=3,seed=5"
QUICK = ["--data", DATA, "--seeds", "2", "--steps", "4096"]


def start(store: Path, *more: str) -> AbstractContextManager[subprocess.Popen[str]]:
    command = [sys.executable, "-u", "-m", "layer3.experiments.tune", *QUICK, "--store", str(store), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # A group of its own, as a terminal's Ctrl-C meets it.
    return group(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)


def records(store: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(store.rglob("trials/*/*.json"))]


def wait_for_a_trial(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("  trial "):
            return
    pytest.fail(f"it ended without a trial: {process.stderr.read() if process.stderr else ''}")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose search was ended by kill -9 after the first trial, or by then the first few."""
    store = tmp_path_factory.mktemp("store")
    with start(store, "--trials", "200", "--jobs", "2") as process:
        wait_for_a_trial(process)
        process.kill()
        process.communicate()
    return store


def test_after_kill_9_it_goes_on_and_loses_at_most_what_was_in_flight(
    killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = records(killed)
    assert before
    wanted = len(before) + 3
    arguments = [*QUICK, "--store", str(killed), "--trials", str(wanted), "--jobs", "2"]
    assert tune.main(arguments) == 0
    said = capsys.readouterr().out
    # The kill may have come between a record and its line in the journal.
    (done,) = [line for line in said.splitlines() if line.startswith("Study ")]
    assert any(f"; {n} of {wanted} trials done" in done for n in (len(before), len(before) - 1))
    assert f"{wanted} trials, {2 * wanted} policies; on record for these data: {2 * wanted} trainings." in said
    assert "were all equally good, the luckiest would still stand" in said
    assert "SYNTHETIC market" in said
    assert "Nothing was released, and the test part was not looked at." in said
    assert "Kelly only" in said
    table = said[said.index("Reward in") :]
    assert "  Defaults  " in table
    after = records(killed)
    assert [record for record in after if record in before] == before

    (page,) = killed.rglob("comparison.html")
    text = page.read_text()
    assert "SYNTHETIC DATA." in text
    assert f"{2 * wanted:,} different trainings" in text
    assert text.count('<tr><th scope="row">') == wanted
    assert text.count("Defaults<small>learning rate 0.00") == 1

    assert tune.main(arguments) == 0
    assert f"; {wanted} of {wanted} trials done" in capsys.readouterr().out
    assert records(killed) == after
    assert page.read_text() == text


def test_the_ledger_says_what_was_tried(killed: Path) -> None:
    market = load_market(DATA, "", "")
    for record in records(killed):
        assert record["kind"] == "tune"
        assert record["data"]["sha256"] == market.data.sha256
        assert record["data"]["symbol"] == "SYNTH-USD"
        assert record["seeds"] == [1, 2]
        assert record["folds"] == [{market.data.sha256: [[0, 2798]]}]
        assert record["policies"] == 2
        assert record["settings"][0]["ppo"]["steps"] == 4_096
        assert len(record["scores"]["validation_reward"]) == 2
    decisions = len(splits_of(market.bars).validation) - 2
    kept = trials.validation_returns(str(killed), market.data, decisions)
    ratios = [ratio for record in records(killed) for ratio in record["scores"]["validation_sharpe"]]
    assert kept.shape[1] >= 2
    assert all(min(abs(sharpe(column, 8_760.0) - ratio) for ratio in ratios) < 1e-3 for column in kept.T)
    # What was killed between its record and its line in the journal is on record twice, and counts once.
    tried = {json.dumps(record["settings"]) for record in records(killed)}
    assert trials.count(str(killed), market.data.sha256) == 2 * len(tried)
    assert not (killed / "models").exists()
    assert not (killed / "channels").exists()


def test_ctrl_c_ends_it_and_says_how_to_go_on(tmp_path: Path) -> None:
    with start(tmp_path, "--trials", "200", "--jobs", "2") as process:
        wait_for_a_trial(process)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.strip() == "tune: stopped; what has ended is kept: run the same command again to go on."
    assert records(tmp_path)


def test_the_test_part_changes_nothing(tmp_path: Path) -> None:
    """Other prices after the validation part: the same trials with the same scores."""
    from layer3.market.sources import load

    frame, _ = load(DATA, "SYNTH-USD")
    other = frame.copy()
    cut = 3_966
    rng = np.random.default_rng(9)
    factor = np.exp(np.cumsum(rng.normal(0, 0.01, len(frame) - cut)))
    for column in ("open", "high", "low", "close"):
        other.loc[cut:, column] *= factor
    seen: list[list[Any]] = []
    for name, candles in (("one", frame), ("other", other)):
        path = tmp_path / f"{name}.parquet"
        pd.DataFrame(candles).to_parquet(path, index=False)
        store = tmp_path / name
        arguments = ["--data", str(path), "--symbol", "BTC-USDT", "--seeds", "2", "--steps", "4096", "--trials", "3"]
        assert tune.main([*arguments, "--jobs", "1", "--store", str(store)]) == 0
        seen.append([(record["settings"], record["scores"]) for record in records(store)])
    assert len(seen[0]) == 3
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "0"], "trials is 0, expected 1 to 10,000"),
        (["--seeds", "1"], "seeds is 1, expected 2 to 100 policies: one alone has no interval"),
        (["--steps", "100"], "steps is 100, expected 2,048"),
        (["--jobs", "0"], "jobs is 0, expected 1 to 64"),
        (["--store", "gs://bucket/x"], "gs://bucket/x is a bucket"),
        (["--data", "nowhere.csv", "--symbol", "X"], "nowhere.csv: there is no such file"),
        (["--data", "nowhere.csv"], "which market is nowhere.csv"),
        (["--data", ""], "no data named"),
        (["--data", "synthetic:bars=2000"], "supply at least"),
        (["--data", "synthetic:bars=6000,edge=3"], "the sizing chain takes no position"),
        (["--sizing", "nowhere.yaml"], "cannot read the sizing configuration nowhere.yaml"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    store = [] if "--store" in arguments else ["--store", str(tmp_path / "store")]
    assert tune.main([*QUICK, *store, *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_written_is_said_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_bytes(b"")
    assert tune.main([*QUICK, "--store", str(taken)]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"tune: {taken}/tune")
    assert said.endswith(
        "Not a directory: check the folder; what has ended is kept: run the same command again to go on."
    )
