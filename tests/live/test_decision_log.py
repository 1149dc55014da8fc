from __future__ import annotations

import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.errors import ConfigurationError, DataError
from layer3.live.decision_log import DecisionLog, Fsync
from layer3.live.log_file import decode, encode, files, read, read_all
from tests.fakes.servers import wait_for
from tests.fakes.threads import at_once

APPENDER = Path(__file__).with_name("appender.py")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def head() -> Mapping[str, Any]:
    return {"state": {"trades": 1}}


def open_log(path: Path, **options: Any) -> DecisionLog:
    return DecisionLog(path, head, **({"clock": lambda: NOW} | options))


def kinds(path: Path) -> list[Any]:
    return [record.get("number", record["kind"]) for record in read_all(path)]


def write(path: Path, *numbers: int, **options: Any) -> None:
    with open_log(path, **options) as log:
        for number in numbers:
            log.append({"kind": "decision", "number": number})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON))
def test_a_record_is_one_line_of_json_and_comes_back(record: dict[str, Any]) -> None:
    line = encode(record)
    assert line.count(b"\n") == 1
    assert decode(line) == record
    checksum, length, inner = json.loads(line)
    text = line[line.index(b",", 12) + 1 : -2]
    assert (inner, length, int(checksum, 16)) == (record, len(text), zlib.crc32(text))


@given(st.data())
def test_no_cut_and_no_changed_bit_passes_for_a_record(data: st.DataObject) -> None:
    line = encode({"size": 1234.5, "reason": "long", "number": data.draw(st.integers())})
    cut = data.draw(st.integers(0, len(line) - 2))
    assert decode(line[:cut]) is None
    place, bit = data.draw(st.integers(0, len(line) - 2)), data.draw(st.integers(0, 7))
    changed = bytearray(line)
    changed[place] ^= 1 << bit
    assert decode(bytes(changed)) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_json_cannot_say_is_refused_and_nothing_written(tmp_path: Path, value: object) -> None:
    with open_log(tmp_path / "d.jsonl") as log, pytest.raises(DataError, match="cannot be written as JSON"):
        log.append({"price": value})
    assert kinds(tmp_path / "d.jsonl") == ["head"]


def test_a_file_begins_with_its_head_and_a_restart_adds_one(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "d.jsonl"
    write(path, 1, 2)
    write(path, 3)
    assert kinds(path) == ["head", 1, 2, "head", 3]
    assert next(read(path)) == {
        "kind": "head",
        "schema": "himari-decisions/1",
        "time": "2026-01-02T03:04:05.000000+00:00",
        "state": {"trades": 1},
    }


def test_it_rolls_by_size_and_by_day_and_reads_back_in_order(tmp_path: Path) -> None:
    path, now = tmp_path / "d.jsonl", NOW
    with DecisionLog(path, head, max_bytes=2_000, clock=lambda: now) as log:
        for number in range(100):
            log.append({"kind": "decision", "number": number})
            due = path.stat().st_size >= 2_000
            assert log.roll() == due
        assert len(files(path)) > 2
        now += timedelta(hours=21)
        assert log.roll()
        assert not log.roll()
        log.append({"kind": "decision", "number": 100})
    assert [entry for entry in kinds(path) if entry != "head"] == list(range(101))
    for file in files(path):
        assert next(read(file))["kind"] == "head"
        assert file.stat().st_size < 2_200
    assert files(path)[0].name == "d.000001.jsonl"
    assert files(path)[-1] == path
    assert files(tmp_path / "d.000001.jsonl") == [tmp_path / "d.000001.jsonl"]


def test_an_old_file_that_is_taken_up_rolls_by_its_own_day(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    write(path, 1)
    os.utime(path, (0, (NOW - timedelta(days=1)).timestamp()))
    with open_log(path) as log:
        assert log.roll()
    assert kinds(tmp_path / "d.000001.jsonl") == ["head", 1, "head"]


def test_when_no_new_file_can_be_begun_the_old_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.jsonl"
    log = open_log(path, max_bytes=1)
    begin = log._begin

    def refuse(content: Mapping[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log, "_begin", refuse)
    with pytest.raises(OSError, match="No space"):
        log.roll()
    log.append({"kind": "decision", "number": 1})
    monkeypatch.setattr(log, "_begin", begin)
    assert log.roll()
    log.close()
    assert kinds(path) == ["head", 1, "head"]


@pytest.mark.parametrize("tail", [b"[", b'["00000000",3,{"a', b"\x00" * 4096, encode({"kind": "x"})[:-1], b"[]\n[]\n"])
def test_a_torn_tail_is_kept_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, tail: bytes) -> None:
    path = tmp_path / "d.jsonl"
    write(path, 1)
    with path.open("ab") as file:
        file.write(tail)
    with open_log(path) as log:
        assert log.kept_aside == tmp_path / "d.torn-000001"
        log.append({"kind": "decision", "number": 2})
    assert log.kept_aside.read_bytes() == tail
    assert kinds(path) == ["head", 1, "head", 2]
    [said] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "torn line" in said.getMessage()
    assert said.__dict__["kept"] == str(log.kept_aside)


def test_damage_before_the_end_is_never_cut_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "d.jsonl"
    write(path, 1, 2, 3)
    content = path.read_bytes()
    broken = content.replace(b'"number":2', b'"number":9')
    path.write_bytes(broken)
    write(path, 4)
    assert (tmp_path / "d.000001.jsonl").read_bytes() == broken
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert [record.get("number", record["kind"]) for record in read(path)] == ["head", 4]
    where = len(b"".join(content.splitlines(keepends=True)[:2]))
    with pytest.raises(DataError, match=rf"d\.000001\.jsonl: line 3 \(byte {where}\)"):
        list(read_all(path))


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    write(path, 1)
    with path.open("ab") as file:
        file.write(encode({"number": 2})[:-1])
    assert kinds(path) == ["head", 1]


def test_two_processes_may_not_write_one_log(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with open_log(path), pytest.raises(ConfigurationError, match="another process writes"):
        open_log(path)
    open_log(path).close()


@pytest.mark.parametrize(
    "options",
    [{"fsync": "yes"}, {"interval_s": 0.0}, {"interval_s": float("nan")}, {"max_bytes": 0}, {"max_bytes": True}],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        open_log(tmp_path / "d.jsonl", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: No such file"):
        list(read_all(tmp_path / "absent.jsonl"))
    with pytest.raises(DataError, match=r"absent\.jsonl: No such file"):
        list(read_all(tmp_path / "absent" / "absent.jsonl"))


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "d.jsonl", os.write
    with open_log(path) as log:
        calls = 0

        def full(fd: int, content: Any) -> int:
            nonlocal calls
            calls += 1
            if calls == 1:
                return real(fd, content[:7])
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match="No space"):
                log.append({"kind": "decision", "number": 1})
        log.append({"kind": "decision", "number": 2})
    assert kinds(path) == ["head", 2]
    with pytest.raises(OSError, match="closed"):
        log.append({})


def test_after_a_failed_sync_nothing_more_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with open_log(tmp_path / "d.jsonl") as log:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            with pytest.raises(OSError, match="Input/output"):
                log.append({"number": 1})
        with pytest.raises(OSError, match="Input/output"):
            log.append({"number": 2})


def test_when_the_disk_is_waited_for(tmp_path: Path) -> None:
    with open_log(tmp_path / "each.jsonl") as log:
        for _ in range(5):
            log.append({})
        assert log.syncs == 5
    with open_log(tmp_path / "none.jsonl", fsync="none") as log:
        for _ in range(5):
            log.append({})
        assert log.syncs == 0
    with open_log(tmp_path / "interval.jsonl", fsync="interval", interval_s=0.02) as log:
        log.append({})
        wait_for(lambda: log.records == log._synced)
        with log._sync_lock:
            synced = log.syncs
        time.sleep(0.1)
        assert log.syncs == synced > 0, "idle, nothing is left to sync"


@pytest.mark.parametrize(("fsync", "waits"), [("each", True), ("interval", False), ("none", False)])
def test_a_disk_that_hangs_delays_who_asked_for_it_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync, waits: bool
) -> None:
    hangs, works = threading.Event(), threading.Event()
    real = os.fdatasync

    def hang(fd: int) -> None:
        hangs.set()
        assert works.wait(60.0)
        real(fd)

    with open_log(tmp_path / "d.jsonl", fsync=fsync, interval_s=0.01) as log:
        monkeypatch.setattr(os, "fdatasync", hang)
        done = threading.Event()
        caller = threading.Thread(target=lambda: (log.append({"number": 1}), log.append({"number": 2}), done.set()))
        caller.start()
        if fsync != "none":
            assert hangs.wait(60.0)
        assert done.wait(0.2 if waits else 60.0) is not waits
        works.set()
        caller.join()


def test_threads_share_the_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fdatasync

    def slow(fd: int) -> None:
        time.sleep(0.005)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    path = tmp_path / "d.jsonl"
    with open_log(path) as log:
        at_once(lambda first: [log.append({"number": first + i}) for i in range(20)], range(0, 160, 20))
        # One each would be 160.
        assert log.syncs < 160
    assert sorted(record["number"] for record in read(path) if "number" in record) == list(range(160))


@pytest.mark.parametrize(("fsync", "threads"), [("each", 1), ("each", 4), ("interval", 2), ("none", 4)])
def test_kill_9_loses_no_acknowledged_record(tmp_path: Path, fsync: str, threads: int) -> None:
    """Many rounds on one log, which rolls as it grows; the numbers that the pipe has are the ones acknowledged."""
    path, rng = tmp_path / "d.jsonl", random.Random(7)
    acknowledged: set[int] = set()
    first = 0
    for _ in range(8):
        command = [sys.executable, str(APPENDER), str(path), fsync, str(threads), "150000", str(first)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(Path.cwd())}
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            rest = b"".join(child.stdout.readline() for _ in range(3))  # however slow the disk is
            time.sleep(rng.uniform(0.0, 0.08))
            os.kill(child.pid, signal.SIGKILL)
            rest += child.stdout.read()
        numbers = {int(line) for line in rest.splitlines(keepends=True) if line.endswith(b"\n")}
        acknowledged |= numbers
        # The reader of the killed process's file, then the next process, which repairs.
        found = [record["number"] for record in read_all(path) if record["kind"] == "decision"]
        assert len(found) == len(set(found))
        assert acknowledged <= set(found)
        first = max(found, default=0) + 1_000
    assert len(acknowledged) >= 20
