"""The store: what was acknowledged survives any death, the same twice is once, another under its id is refused."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer3.ab.assignment import Arm, Design
from layer3.ab.records import Decision, Outcome
from layer3.ab.store import SCHEMA, Store
from layer3.errors import DataError
from tests.fakes.threads import at_once

ROOT = Path(__file__).resolve().parents[2]
DECISION = Decision("d1", "x", "u", Arm.POLICY, "forced", "BTC", "m", 1_000.0, 1_500.0, 1e5, "api", 10)
OUTCOME = Outcome("d1", 15.0, 0.01, 60.0)
FOREVER = 2**62


def begun(path: Path) -> Store:
    store = Store(path)
    store.begin("x", Design("x").as_text(), 1)
    return store


def test_what_is_acknowledged_waits_for_the_disk(tmp_path: Path) -> None:
    with begun(tmp_path / "ab.sqlite") as store:
        pragmas = {
            name: store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}


def test_a_decision_has_no_outcome_row_before_its_outcome(tmp_path: Path) -> None:
    path = tmp_path / "ab.sqlite"
    with begun(path) as store:
        store.add_decision(DECISION, 11)
        assert [(row.outcome, row.known_ns) for row in store.rows("x")] == [(None, 0)]
        assert sqlite3.connect(path).execute("SELECT count(*) FROM outcome").fetchone() == (0,)
        assert store.add_outcome("x", OUTCOME, 12, FOREVER) == DECISION
        (row,) = store.rows("x")
    assert (row.decision, row.outcome, row.known_ns) == (DECISION, OUTCOME, 12)
    assert row.closed_ns == 10 + 60_000_000_000


def test_the_same_again_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    with begun(tmp_path / "ab.sqlite") as store:
        for now in (11, 99):
            store.add_decision(DECISION, now)
            store.add_outcome("x", OUTCOME, now, FOREVER)
        (row,) = store.rows("x")
        assert row.known_ns == 11
        with pytest.raises(
            DataError, match=r"decision 'd1' was recorded before with policy_usd 1500\.0, now it is 1\.0"
        ):
            store.add_decision(replace(DECISION, policy_usd=1.0), 12)
        with pytest.raises(DataError, match=r"recorded before with pnl_usd 15\.0, now it is 16\.0"):
            store.add_outcome("x", replace(OUTCOME, pnl_usd=16.0), 12, FOREVER)
        assert store.rows("x") == [row]


@settings(max_examples=25)
@given(order=st.permutations(range(6)), twice=st.lists(st.integers(0, 5), max_size=6))
def test_outcomes_in_any_order_and_any_number_of_times_give_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], twice: list[int]
) -> None:
    with begun(tmp_path_factory.mktemp("order") / "ab.sqlite") as store:
        for number in range(6):
            store.add_decision(replace(DECISION, id=str(number), decided_ns=number), 11)
        for number in [*order, *twice]:
            store.add_outcome("x", Outcome(str(number), float(number), 0.01, 1.0), 12, FOREVER)
        kept = [(row.decision.id, row.outcome.pnl_usd) for row in store.rows("x") if row.outcome]
    assert kept == [(str(number), float(number)) for number in range(6)]


@pytest.mark.parametrize("field", ["kelly_usd", "policy_usd", "portfolio_value"])
@pytest.mark.parametrize("value", [math.nan, -math.inf, 10**400, None, "1", True])
def test_decisions_that_are_no_numbers_are_refused(tmp_path: Path, field: str, value: object) -> None:
    with begun(tmp_path / "ab.sqlite") as store, pytest.raises(DataError, match=f"{field} is .*finite number"):
        store.add_decision(replace(DECISION, **{field: value}), 11)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"portfolio_value": 0.0}, "dollars above 0"),
        ({"kelly_usd": -1.0}, "different sides"),
        ({"id": ""}, "id is '', expected a text"),
        ({"symbol": None}, "symbol is None"),
        ({"source": 3}, "source is 3"),
        ({"decided_ns": 1.5}, "decided_ns is 1.5"),
        ({"decided_ns": 2**63}, "whole number"),
        ({"how": "assigned"}, "take what assign"),
    ],
)
def test_decisions_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with begun(tmp_path / "ab.sqlite") as store:
        with pytest.raises(DataError, match=words):
            store.add_decision(replace(DECISION, **change), 11)
        assert store.rows("x") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pnl_usd": math.nan}, "pnl_usd is nan"),
        ({"realised_return": None}, "realised_return is None"),
        ({"realised_return": 30.0}, r"3 % is 0\.03"),
        ({"duration_s": -1.0}, "seconds from 0"),
        ({"decision_id": "d2"}, "record the decision first"),
        ({"duration_s": 1e6}, "lies in the future"),
    ],
)
def test_outcomes_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with begun(tmp_path / "ab.sqlite") as store:
        store.add_decision(DECISION, 11)
        with pytest.raises(DataError, match=words):
            store.add_outcome("x", replace(OUTCOME, **change), 12, 100 * 10**9)
        assert store.rows("x")[0].outcome is None


def test_an_outcome_belongs_to_the_experiment_of_its_decision(tmp_path: Path) -> None:
    with begun(tmp_path / "ab.sqlite") as store:
        store.begin("y", Design("y").as_text(), 2)
        store.add_decision(DECISION, 11)
        with pytest.raises(DataError, match="experiment 'y'"):
            store.add_outcome("y", OUTCOME, 12, FOREVER)


def test_the_first_assignment_and_the_first_stop_hold(tmp_path: Path) -> None:
    with begun(tmp_path / "ab.sqlite") as store:
        assert store.assigned("x", "u") is None
        assert store.assign("x", "u", Arm.POLICY, 0.5, 3) == (Arm.POLICY, 0.5)
        assert store.assign("x", "u", Arm.KELLY, 0.1, 4) == (Arm.POLICY, 0.5)
        assert store.stopped("x") is None
        assert store.stop("x", "first", 5) == store.stop("x", "second", 6) == store.stopped("x")


def test_threads_share_a_store(tmp_path: Path) -> None:
    with begun(tmp_path / "ab.sqlite") as store:

        def work(worker: int) -> None:
            for number in range(20):
                store.add_decision(replace(DECISION, id=f"{worker}-{number}"), 11)

        at_once(work, range(8))
        assert len(store.rows("x")) == 160


@pytest.mark.parametrize("read_only", [True, False])
def test_files_that_are_no_store_are_refused(tmp_path: Path, read_only: bool) -> None:
    text, other, newer = (tmp_path / name for name in ("text", "other.sqlite", "newer.sqlite"))
    text.write_text("not a database, but long enough to have a header of a hundred bytes " * 20)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE t (x)")
    begun(newer).close()
    with sqlite3.connect(newer) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    with pytest.raises(DataError, match="not a database"):
        Store(text, read_only=read_only)
    with pytest.raises(DataError, match="no experiment store"):
        Store(other, read_only=read_only)
    with pytest.raises(DataError, match=f"has schema {SCHEMA + 1}, this program reads and writes {SCHEMA}"):
        Store(newer, read_only=read_only)


def test_reading_makes_no_file_and_changes_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no experiment store"):
        Store(tmp_path / "none.sqlite", read_only=True)
    assert list(tmp_path.iterdir()) == []
    begun(tmp_path / "ab.sqlite").close()
    with Store(tmp_path / "ab.sqlite", read_only=True) as store:
        assert store.names() == ("x",)
        with pytest.raises(DataError, match="readonly"):
            store.add_decision(DECISION, 11)
        with pytest.raises(DataError, match="knows no experiment 'z': it holds 'x'"):
            store.experiment("z")


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    with begun(tmp_path / "ab.sqlite") as store:
        store.add_decision(replace(DECISION, kelly_usd=np.float32(8.0), decided_ns=np.int64(10)), 11)  # type: ignore[arg-type]
        store.add_decision(replace(DECISION, kelly_usd=8.0), 12)
        assert store.rows("x")[0].decision == replace(DECISION, kelly_usd=8.0)


def test_a_full_disk_is_a_sentence_and_loses_nothing(tmp_path: Path) -> None:
    with begun(tmp_path / "ab.sqlite") as store:
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages + 4}")
        kept = 0

        def fill() -> None:
            nonlocal kept
            while True:
                store.add_decision(replace(DECISION, id=f"{kept}"), 11)
                kept += 1

        with pytest.raises(DataError, match="was not written: database or disk is full"):
            fill()
        store._connection.execute("PRAGMA max_page_count = 100000")
        assert len(store.rows("x")) == kept > 10
        store.add_decision(replace(DECISION, id=f"{kept}"), 11)
        assert len(store.rows("x")) == kept + 1


#: Writes decisions and outcomes for ever, and says what was acknowledged.
WRITER = """
import sys
from pathlib import Path
from layer3.ab.assignment import Arm
from layer3.ab.records import Decision, Outcome
from layer3.ab.store import Store

store, number = Store(Path(sys.argv[1])), 0
while True:
    name = f"{sys.argv[2]}-{number}"
    store.add_decision(Decision(name, "x", "u", Arm.KELLY, "forced", "BTC", "m", 1.0, 2.0, 1e5, "api", number), number)
    print("decision", name, flush=True)
    store.add_outcome("x", Outcome(name, number / 7, 0.01, 1.0), number, 2**62)
    print("outcome", name, number / 7, flush=True)
    number += 1
"""


def test_a_killed_writer_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path, rng = tmp_path / "ab.sqlite", random.Random(1)
    begun(path).close()
    decided: set[str] = set()
    known: dict[str, float] = {}
    for turn in range(12):
        command = [sys.executable, "-c", WRITER, str(path), str(turn)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(rng.randint(1, 30))]
            os.kill(child.pid, signal.SIGKILL)
            lines += child.stdout.readlines()
        assert child.returncode == -signal.SIGKILL
        for kind, name, *value in (line.split() for line in lines if line.endswith("\n")):
            decided.add(name)
            if kind == "outcome":
                known[name] = float(value[0])
        with Store(path) as store:
            rows = {row.decision.id: row for row in store.rows("x")}
        assert decided <= set(rows)
        assert {name: rows[name].outcome.pnl_usd for name in known} == known  # type: ignore[union-attr]
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(known) > 40


def test_two_processes_agree_on_every_unit(tmp_path: Path) -> None:
    path = tmp_path / "ab.sqlite"
    begun(path).close()
    code = """
import json, sys
from pathlib import Path
from layer3.ab.assignment import Arm
from layer3.ab.store import Store
store = Store(Path(sys.argv[1]))
print(json.dumps([store.assign("x", str(u), Arm(sys.argv[2]), 0.5, 1)[0] for u in range(150)]))
"""
    policy, kelly = ([sys.executable, "-c", code, str(path), arm] for arm in ("policy", "kelly"))
    with (
        subprocess.Popen(policy, cwd=ROOT, stdout=subprocess.PIPE, text=True) as one,
        subprocess.Popen(kelly, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other,
    ):
        first, second = (json.loads(child.communicate(timeout=300)[0]) for child in (one, other))
    assert first == second
    assert len(first) == 150
