from __future__ import annotations

import contextlib
import json
import logging
import os
import pty
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layer3.live.configuration import load_config
from layer3.live.decision_log import DecisionLog
from layer3.live.log_file import HEAD, decode, encode, read_all
from layer3.live.loop import Runner, SignalClock
from layer3.live.phase1 import Layer3Phase1
from layer3.live.recorder import Recorder, head
from layer3.live.replay import replay
from layer3.live.runner import main
from layer3.live.streams import Lines, Message, Stop, TextSink, open_sink
from layer3.live.tally import Tally
from tests.fakes.policy_server import ANSWER, PolicyServer
from tests.fakes.servers import free_port, redis_server, running, wait_for

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config" / "example_signals.jsonl"
COMMAND = [sys.executable, "-m", "layer3.live.runner"]
#: What differs between two runs that decide the same.
OWN = ("decision_id", "latency_ms", "line", "entry", "config_hash")


def environment(**settings: object) -> dict[str, str]:
    plain = {"OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "COLUMNS": "160"}
    # A machine under load must not make a signal of now a stale one.
    settings = {"METRICS__PORT": 0, "RISK__STALE_SIGNAL_S": 600} | settings
    return {**os.environ, **plain, **{f"HIMARI_L3__{name}": str(value) for name, value in settings.items()}}


def run(*arguments: object, stdin: bytes = b"", **settings: object) -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, env=environment(**settings), cwd=ROOT, timeout=300)


@contextlib.contextmanager
def start(*arguments: object, errors: Path | None = None, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """A runner that is killed where the test does not end it; what it logs goes to the file ``errors``."""
    pipe, command = subprocess.PIPE, [*COMMAND, *map(str, arguments)]
    with (
        (errors or Path(os.devnull)).open("wb") as log,
        subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=log, env=environment(**settings), cwd=ROOT
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def answers(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def plain(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in OWN}


def fresh(number: int = 0, **changes: object) -> bytes:
    """A signal of now."""
    message = json.loads(EXAMPLE.read_text().splitlines()[number])
    message["signal"] |= {"timestamp_ns": time.time_ns(), **changes}
    del message["price_timestamp_ns"]
    return json.dumps(message).encode() + b"\n"


@pytest.fixture(scope="module")
def whole() -> list[dict[str, Any]]:
    """The answers to the example, without stopping."""
    done = run("--input", EXAMPLE, "--clock", "signal")
    assert done.returncode == 0, done.stderr
    return answers(done.stdout)


def test_the_example_is_answered_line_by_line(whole: list[dict[str, Any]]) -> None:
    assert [answer["line"] for answer in whole] == list(range(1, 53))
    assert sum("decision_id" in answer for answer in whole) == 49
    refused = {answer["line"]: answer["refusal"] for answer in whole if answer.get("refusal")}
    assert refused == {41: "bad_input", 45: "stale_price"}
    [torn, misspelt] = [answer for answer in whole if "error" in answer]
    assert (torn["line"], torn["field"], torn["position_size_usd"]) == (44, "", 0.0)
    assert (misspelt["line"], misspelt["field"]) == (46, "signal.confidense")
    assert whole[49] == {"line": 50, "residual": {"symbol": "BTC-USDT", "learnt": True}}
    assert {answer["action"] for answer in whole if "action" in answer} >= {"buy", "sell", "hold", "strong_sell"}
    assert any(answer.get("position_size_usd", 0.0) > 0.0 for answer in whole)


def test_a_recorded_stream_is_stale_by_the_machines_clock() -> None:
    done = run("--input", EXAMPLE, "--once")
    [answer] = answers(done.stdout)
    assert (answer["refusal"], answer["position_size_usd"]) == ("stale_price", 0.0)


def test_every_decision_of_the_log_can_be_made_again(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    done = run("--input", EXAMPLE, "--clock", "signal", "--log", log, "--output", tmp_path / "out" / "d.jsonl")
    assert done.returncode == 0, done.stderr
    assert b"52 messages      49 decisions, 1 residual, 2 messages that could not be read in " in done.stdout
    assert f"made again by: make replay LOG={log}\n".encode() in done.stdout
    command = [sys.executable, "-m", "layer3.live.replay", "--log", str(log)]
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (again.returncode, again.stdout) == (0, "49 decisions made again, 0 differ (0 fields)\n")
    kinds = [record["kind"] for record in read_all(log)]
    assert kinds == ["head", *["decision"] * 43, "rejected", "decision", "rejected", *["decision"] * 3, "residual",
                     *["decision"] * 2]  # fmt: skip
    assert [record["origin"]["line"] for record in read_all(log) if "origin" in record] == list(range(1, 53))
    assert answers((tmp_path / "out" / "d.jsonl").read_bytes())[0]["line"] == 1


def test_stopped_and_started_it_decides_as_if_it_had_not_been(tmp_path: Path, whole: list[dict[str, Any]]) -> None:
    lines = EXAMPLE.read_bytes().splitlines(keepends=True)
    settings = {"STATE__PATH": tmp_path / "state.json", "DECISION_LOG__PATH": tmp_path / "log.jsonl"}
    found = []
    for part in (lines[:7], lines[7:30], lines[30:]):
        done = run("--clock", "signal", stdin=b"".join(part), **settings)
        assert done.returncode == 0
        found += answers(done.stdout)
    assert [plain(answer) for answer in found] == [plain(answer) for answer in whole]


def test_killed_again_and_again_it_decides_as_if_it_had_not_been(tmp_path: Path, whole: list[dict[str, Any]]) -> None:
    lines = EXAMPLE.read_bytes().splitlines(keepends=True)
    settings = {"STATE__PATH": tmp_path / "state.json", "DECISION_LOG__PATH": tmp_path / "log.jsonl"}
    found: list[dict[str, Any]] = []
    for part in (lines[:7], lines[7:30], lines[30:50], lines[50:]):
        with start("--clock", "signal", errors=tmp_path / "errors", **settings) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"".join(part))
            process.stdin.flush()
            found += [json.loads(process.stdout.readline()) for _ in part]
            process.kill()
            process.communicate(timeout=300)
    assert [plain(answer) for answer in found] == [plain(answer) for answer in whole]
    # It was the log that knew, and each of its parts can be made again.
    assert b"is made again from the decision log" in (tmp_path / "errors").read_bytes()
    command = [sys.executable, "-m", "layer3.live.replay", "--log", str(settings["DECISION_LOG__PATH"])]
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (again.returncode, again.stdout) == (0, "49 decisions made again, 0 differ (0 fields)\n")


def test_a_kill_switch_stays_on_over_a_kill_and_a_snapshot_that_was_moved_away_is_not_brought_back(
    tmp_path: Path,
) -> None:
    state = tmp_path / "state.json"
    settings = {"STATE__PATH": state, "DECISION_LOG__PATH": tmp_path / "log.jsonl", "RISK__KILL_SIGNAL": True}
    with start(**settings) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for sent in (None, signal.SIGUSR1):
            if sent is not None:
                process.send_signal(sent)
            process.stdin.write(fresh())
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
        assert answer["refusal"] == "kill_switch"
        process.kill()
        process.communicate(timeout=300)
    [still] = answers(run(stdin=fresh(), **settings).stdout)
    assert (still["refusal"], still["reason"]) == ("kill_switch", answer["reason"])
    state.unlink()
    [anew] = answers(run(stdin=fresh(), **settings).stdout)
    assert anew["refusal"] is None


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_told_to_stop_while_it_waits(tmp_path: Path, name: str) -> None:
    paths = {"STATE__PATH": tmp_path / "state.json", "DECISION_LOG__PATH": tmp_path / "log.jsonl"}
    with start(errors=tmp_path / "errors", **paths) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(3):
            process.stdin.write(fresh(number))
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["position_size_usd"] > 0.0
        process.send_signal(getattr(signal, name))
        output, _ = process.communicate(timeout=300)
    assert (process.returncode, output) == (0, b"")
    assert json.loads((tmp_path / "state.json").read_text())["state"]["memory"]["symbols"].keys() == {
        "BTC-USDT",
        "ETH-USDT",
    }
    last = json.loads((tmp_path / "errors").read_bytes().splitlines()[-1])
    assert (last["message"], last["answered"]) == ("stopped by a signal", 3)


def test_told_to_stop_while_it_works_it_finishes_what_is_in_hand(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with start("--log", log, "--clock", "signal", DECISION_LOG__FSYNC="none") as process:
        assert process.stdin is not None
        feed = threading.Thread(
            target=_feed, args=(process.stdin.fileno(), EXAMPLE.read_bytes().splitlines(keepends=True)[0])
        )
        feed.start()
        assert process.stdout is not None
        first = b"".join(process.stdout.readline() for _ in range(20))
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(300) == 0
        feed.join()
    found = answers(first + rest)
    logged = [record["decision"]["decision_id"] for record in read_all(log) if record["kind"] == "decision"]
    assert [answer["decision_id"] for answer in found] == logged
    assert len(found) >= 20


def _feed(pipe: int, line: bytes) -> None:
    try:
        while True:
            os.write(pipe, line)
    except BrokenPipeError:
        pass


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--input", "absent.jsonl"], "cannot read the signals absent.jsonl"),
        (
            ["--output", "same", "--log", "./same"],
            "--output and the decision log are one file, ./same: name two",
        ),
        (["--output", "x/../same", "--log", "same"], "--output and the decision log are one file"),
        (["--input", "same", "--output", "same"], "--input and --output are one file, same: name two"),
        (["--input", "/proc"], "cannot read the signals /proc: it is a folder"),
        (["--log", "/dev/full"], "error: the decision log /dev/full is a device or a pipe: name a file"),
        (["--input", "http://127.0.0.1/x"], "expected - or a file or redis://"),
        (["--input", "redis://127.0.0.1:1/0"], "names no stream"),
        (["--input", "redis://:secret@127.0.0.1:1/0?stream=s"], "no Redis answers at redis://127.0.0.1:1/0:"),
        (["--input", str(EXAMPLE), "--output", "/proc"], "cannot write the decisions"),
        (["--log", "/proc/nowhere/log"], "error: the decision log /proc/nowhere/log cannot be written: No such file"),
    ],
)
def test_what_cannot_be_begun_is_said_in_a_sentence(
    arguments: list[str], says: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIMARI_L3__METRICS__PORT", "0")
    logger = logging.getLogger("layer3")
    before = list(logger.handlers), logger.level, logger.propagate
    try:
        assert main(arguments) == 2
    finally:
        logger.handlers, logger.level, logger.propagate = before
    out, errors = capfd.readouterr()
    assert out == ""
    assert says in errors
    assert "Traceback" not in errors
    assert "secret" not in errors


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"STATE__PATH": "/proc/nowhere/state.json"}, "error: the state /proc/nowhere/state.json cannot be written:"),
        ({"EXPERIMENT__PATH": "/proc/nowhere.sqlite"}, "error: /proc/nowhere.sqlite cannot be used as an experiment"),
        ({"EXPERIMENT__PATH": EXAMPLE}, "cannot be used as an experiment store: file is not a database"),
        ({"EXPERIMENT__RAMP": "[[0, 2]]"}, "no day from 0 with a share in [0, 1]"),
    ],
)
def test_a_setting_that_cannot_be_begun_with_is_said_in_one_sentence(settings: dict[str, object], says: str) -> None:
    done = run("--input", EXAMPLE, "--clock", "signal", LOGGING__LEVEL="ERROR", **settings)
    assert (done.returncode, done.stdout) == (2, b"")
    [line] = done.stderr.decode().splitlines()
    assert says in line


def test_arguments_that_nobody_knows(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--limit", "0"])
    assert "whole number from 1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--clock" in capsys.readouterr().out


def test_an_output_that_cannot_be_written_ends_it() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "--input", str(EXAMPLE), "--clock", "signal"], stdout=full, stderr=subprocess.PIPE,
            env=environment(), cwd=ROOT, timeout=300,
        )  # fmt: skip
    assert done.returncode == 1
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_log_that_cannot_be_written_ends_it_before_the_answer_is_out(tmp_path: Path) -> None:
    import resource

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    done = subprocess.run(
        [*COMMAND, "--input", str(EXAMPLE), "--clock", "signal", "--log", str(tmp_path / "log.jsonl")],
        capture_output=True, env=environment(), cwd=ROOT, timeout=300, preexec_fn=small_files,
    )  # fmt: skip
    assert done.returncode == 1
    logged = [record["decision"]["decision_id"] for record in read_all(tmp_path / "log.jsonl") if "decision" in record]
    assert 0 < len(logged) < 49
    assert [answer["decision_id"] for answer in answers(done.stdout)] == logged


def test_a_state_that_cannot_be_saved_at_the_end_is_said(tmp_path: Path) -> None:
    folder, errors = tmp_path / "state", tmp_path / "errors"
    with start(errors=errors, STATE__PATH=folder / "state.json", STATE__EVERY_S=3_600) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(fresh())
        process.stdin.flush()
        assert process.stdout.readline()
        shutil.rmtree(folder)
        folder.write_text("no folder any more")
        process.communicate(timeout=300)
    assert process.returncode == 1
    assert b"the state or the log could not be saved at the end" in errors.read_bytes()
    assert b"Traceback" not in errors.read_bytes()


def test_the_served_policy_is_asked_in_cloud_mode() -> None:
    with PolicyServer() as server:
        cloud = {"DEPLOYMENT_MODE": "cloud", "POLICY__ENDPOINT": server.url, "POLICY__TIMEOUT_MS": 5_000}
        done = run("--input", EXAMPLE, "--clock", "signal", "--once", **cloud)
    [answer] = answers(done.stdout)
    assert (answer["multiplier_source"], answer["multiplier"]) == ("gcp_api", ANSWER["position_multiplier"])


def _closed(decision: Mapping[str, Any], gained: float) -> bytes:
    """The message that a decision's trade has closed."""
    pnl = gained * abs(decision["position_size_usd"])
    outcome = {"decision_id": decision["decision_id"], "pnl_usd": pnl, "realised_return": gained, "duration_s": 0.0}
    return json.dumps({"outcome": outcome}).encode() + b"\n"


def test_an_experiment_from_the_first_signal_to_the_report(tmp_path: Path) -> None:
    store, log = tmp_path / "ab.sqlite", tmp_path / "log.jsonl"
    rng = random.Random(4)
    with PolicyServer() as server:
        settings = {
            "DEPLOYMENT_MODE": "cloud", "POLICY__ENDPOINT": server.url, "POLICY__TIMEOUT_MS": 5_000,
            "EXPERIMENT__PATH": store, "EXPERIMENT__LEAST_UNITS": 10, "EXPERIMENT__WAIT_MS": 60_000,
            "EXPERIMENT__NAME": "a-test", "RISK__STALE_PRICE_S": 600,
        }  # fmt: skip
        with start("--log", log, **settings) as process:
            assert process.stdin is not None
            assert process.stdout is not None

            def ask(message: bytes) -> dict[str, Any]:
                process.stdin.write(message)  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                answer: dict[str, Any] = json.loads(process.stdout.readline())  # type: ignore[union-attr]
                return answer

            told = [ask(fresh()) for _ in range(60)]
            done = [ask(_closed(answer, rng.gauss(0.0, 0.001)))["outcome"] for answer in told[:50]]
            wrong = ask(_closed(told[0] | {"decision_id": "nobody"}, 0.0))
            process.kill()  # what was answered is on the disk
            process.communicate(timeout=300)
        again = run("--log", log, stdin=_closed(told[0], 0.5) + fresh(), **settings)
    assert all(answer["experiment"]["how"] == "assigned" for answer in told)
    for answer in told:
        size = answer["experiment"][f"{answer['experiment']['arm']}_usd"]
        assert answer["position_size_usd"] == pytest.approx(size)
        assert answer["experiment"]["policy_usd"] == pytest.approx(1.25 * answer["experiment"]["kelly_usd"])
    assert {answer["experiment"]["arm"] for answer in told} == {"policy", "kelly"}
    assert all(answer == {"decision_id": before["decision_id"], "recorded": True, "stopped": None}
               for answer, before in zip(done, told, strict=False))  # fmt: skip
    assert "record the decision first" in wrong["error"]
    final, size = answers(again.stdout)
    assert "an outcome is final" in final["error"]
    assert size["position_size_usd"] > 0.0
    report = subprocess.run(
        # Whatever changed since, the environment that runs this test is taken as it is.
        ["make", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.ready", "ab-report", f"STORE={store}",
         f"HTML={tmp_path / 'ab.html'}"],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert report.returncode == 0, report.stderr
    assert report.stdout.startswith("a-test\n")
    assert "no outcome yet: 11 (decisions)" in report.stdout
    assert "<svg" in (tmp_path / "ab.html").read_text()
    made_again = subprocess.run(
        [sys.executable, "-m", "layer3.live.replay", "--log", str(log)], capture_output=True, text=True, cwd=ROOT
    )
    assert made_again.stdout == "61 decisions made again, 0 differ (0 fields)\n"


def test_what_a_killed_runner_told_and_did_not_record_is_recorded_at_the_next_start(tmp_path: Path) -> None:
    settings = {"EXPERIMENT__PATH": tmp_path / "ab.sqlite", "DECISION_LOG__PATH": tmp_path / "log.jsonl"}
    done = run("--input", EXAMPLE, "--clock", "signal", **settings)
    told = [answer["decision_id"] for answer in answers(done.stdout) if answer.get("experiment")]
    assert len(told) == 47
    with contextlib.closing(sqlite3.connect(tmp_path / "ab.sqlite", isolation_level=None)) as store:
        found = [name for (name,) in store.execute("SELECT id FROM decision ORDER BY rowid")]
        assert found == told
        store.execute("DELETE FROM decision WHERE rowid > 40")
        store.execute("DELETE FROM assignment")
        assert run(**settings).returncode == 0
        found = [name for (name,) in store.execute("SELECT id FROM decision ORDER BY rowid")]
    assert found == told


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b'{"outcome": {"decision_id": "x", "pnl_usd": 1, "realised_return": 0.1, "duration_s": 1}}', "no experiment"),
        (b'{"outcome": {"decision_id": "x", "pnl_usd": null, "realised_return": 0.1, "duration_s": 1}}', "pnl_usd"),
        (b'{"outcome": {"decision_id": 7, "pnl_usd": 1, "realised_return": 0.1, "duration_s": 1}}', "decision_id"),
        (b'{"outcome": {"decision_id": "x"}}', "expected an object of decision_id, pnl_usd"),
        (b'{"outcome": [], "signal": {}}', "nothing beside it"),
    ],
)
def test_an_outcome_that_cannot_be_joined(message: bytes, says: str) -> None:
    sink, stop = Kept(), Stop()
    with Layer3Phase1(load_config(None, {"policy": {"enabled": False}})) as engine:
        answer = Runner(engine, Lines(-1, stop), sink, tally=Tally()).answer(Message(1, message))
    stop.close()
    assert says in answer["error"]
    assert answer["field"].startswith("outcome")


def test_metrics_are_served_while_it_runs() -> None:
    port = free_port()
    with start(METRICS__PORT=port) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(fresh())
        process.stdin.flush()
        process.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        process.terminate()
        process.communicate(timeout=300)
    assert 'himari_l3_position_decisions_total{strategy_id="synthetic-momentum"} 1.0' in text


def test_a_changed_configuration_is_taken_up_and_recorded(tmp_path: Path) -> None:
    config, log = tmp_path / "layer3.yaml", tmp_path / "log.jsonl"
    config.write_text("hot_reload: true\nportfolio_value: 100000.0\n")
    with start("--config", config, "--log", log) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def worth() -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(fresh())
            process.stdin.flush()
            return float(json.loads(process.stdout.readline())["portfolio_value"])

        assert worth() == 100_000.0
        partial = tmp_path / "new"
        partial.write_text("hot_reload: true\nportfolio_value: 200000.0\n")
        partial.replace(config)
        wait_for(lambda: worth() == 200_000.0)
        process.terminate()
        process.communicate(timeout=300)
    assert [record["kind"] for record in read_all(log)].count("configuration") == 1
    command = [sys.executable, "-m", "layer3.live.replay", "--log", str(log)]
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0, again.stdout


def _in_terminal(*arguments: object) -> str:
    """What a terminal shows of the runner."""
    main, secondary = pty.openpty()
    command = [*COMMAND, *map(str, arguments)]
    with subprocess.Popen(command, stdout=secondary, stderr=secondary, env=environment(), cwd=ROOT) as process:
        os.close(secondary)
        shown = b""
        while select.select([main], [], [], 300.0)[0]:
            try:
                shown += os.read(main, 65_536)
            except OSError:  # the other end is closed
                break
        assert process.wait(300) == 0
    os.close(main)
    return shown.decode()


def test_a_terminal_shows_a_table_unless_it_is_the_output(tmp_path: Path) -> None:
    fixed = ("--input", EXAMPLE, "--clock", "signal")
    shown = _in_terminal(*fixed, "--output", tmp_path / "d.jsonl")
    assert "50 decisions" not in shown
    assert "49 decisions" in shown
    assert "2 no signals" in shown
    assert "synthetic-reversal" in shown
    assert len(answers((tmp_path / "d.jsonl").read_bytes())) == 52
    plain = _in_terminal(*fixed, "--output", tmp_path / "d.jsonl", "--no-table")
    assert ("49 decisions (" in shown, "49 decisions (" in plain) == (True, False)
    assert all("52 messages      49 decisions, 1 residual" in text for text in (shown, plain))
    assert "49 decisions" not in _in_terminal(*fixed)


class TestRedis:
    @pytest.fixture
    def port(self) -> int:
        return free_port()

    @pytest.fixture
    def client(self, port: int, tmp_path: Path) -> Iterator[redis.Redis]:
        command = redis_server(port, tmp_path)
        with running(*command, port=port, log=tmp_path / "redis.log"), redis.Redis(port=port) as client:
            yield client

    @staticmethod
    def addresses(port: int) -> tuple[str, ...]:
        base = f"redis://127.0.0.1:{port}/0"
        return "--input", f"{base}?stream=signals&consumer=c1", "--output", f"{base}?stream=decisions"

    @staticmethod
    def out(client: redis.Redis) -> list[dict[str, Any]]:
        return [json.loads(fields[b"data"]) for _, fields in client.xrange("decisions")]  # type: ignore[union-attr]

    def test_a_stream_is_answered_and_acknowledged(
        self, client: redis.Redis, port: int, whole: list[dict[str, Any]]
    ) -> None:
        for line in EXAMPLE.read_bytes().splitlines():
            client.xadd("signals", {"data": line})
        client.xadd("signals", {"else": "x"})
        done = run(*self.addresses(port), "--clock", "signal", "--limit", 53)
        assert done.returncode == 0, done.stderr
        found = self.out(client)
        assert [plain(answer) for answer in found[:43]] == [plain(answer) for answer in whole[:43]]
        assert found[-1]["field"] == ""
        entries = [entry.decode() for entry, _ in client.xrange("signals")]  # type: ignore[union-attr]
        assert [answer["entry"] for answer in found] == entries
        assert client.xpending("signals", "layer3")["pending"] == 0  # type: ignore[index]

    def test_killed_again_and_again_it_sizes_each_signal_once(
        self, client: redis.Redis, port: int, tmp_path: Path
    ) -> None:
        rng = random.Random(3)
        lines = EXAMPLE.read_bytes().splitlines()
        entries: list[str] = []

        def more() -> None:
            entries.extend(client.xadd("signals", {"data": lines[i % 40]}).decode() for i in range(80))  # type: ignore[union-attr]

        log, store = tmp_path / "log.jsonl", tmp_path / "ab.sqlite"
        arguments = (*self.addresses(port), "--clock", "signal", "--log", log)
        for _ in range(5):
            more()
            before = client.xlen("decisions")
            with start(*arguments, EXPERIMENT__PATH=store) as process:
                wait_for(lambda: client.xlen("decisions") > before)  # noqa: B023
                time.sleep(rng.uniform(0.0, 0.15))
                process.kill()
                process.communicate()
        more()  # a runner that was through with the others before each kill has work left, however slow this test is
        left = client.xinfo_groups("signals")[0]
        assert 80 <= left["lag"] + left["pending"] < len(entries)  # type: ignore[index]
        with start(*arguments, EXPERIMENT__PATH=store) as process:
            wait_for(lambda: (g := client.xinfo_groups("signals")[0])["lag"] == 0 and g["pending"] == 0, 300.0)  # type: ignore[index]
            process.terminate()
            process.communicate(timeout=300)
        assert process.returncode == 0
        logged = [record["origin"]["entry"] for record in read_all(log) if record["kind"] == "decision"]
        assert logged == entries
        told: dict[str, str] = {}
        for answer in self.out(client):
            assert told.setdefault(answer["entry"], answer["decision_id"]) == answer["decision_id"]
        assert list(told) == entries
        # What was told is what the experiment knows, each once.
        with contextlib.closing(sqlite3.connect(store)) as opened:
            known = [name for (name,) in opened.execute("SELECT id FROM decision")]
        judged = [record["decision"] for record in read_all(log) if record["kind"] == "decision"]
        assert sorted(known) == sorted(each["decision_id"] for each in judged if each["experiment"] is not None)

    def test_a_redis_that_goes_and_comes_back_is_waited_for(self, port: int, tmp_path: Path) -> None:
        command = redis_server(port, tmp_path)
        with contextlib.ExitStack() as held:
            with running(*command, port=port, log=tmp_path / "r1") as server, redis.Redis(port=port) as client:
                client.xadd("signals", {"data": fresh()})
                process = held.enter_context(start(*self.addresses(port), errors=tmp_path / "errors"))
                wait_for(lambda: client.xlen("decisions") == 1)
                server.terminate()
                server.wait()
            wait_for(lambda: b"Redis is away" in (tmp_path / "errors").read_bytes())
            with running(*command, port=port, log=tmp_path / "r2"), redis.Redis(port=port) as client:
                client.xadd("signals", {"data": fresh()})
                wait_for(lambda: client.xlen("decisions") == 2)
                process.terminate()
                process.communicate(timeout=300)
        assert process.returncode == 0
        assert b"Traceback" not in (tmp_path / "errors").read_bytes()

    def test_told_to_stop_while_redis_is_away(self, port: int, tmp_path: Path) -> None:
        with contextlib.ExitStack() as held:
            command = redis_server(port, tmp_path)
            with running(*command, port=port, log=tmp_path / "r1") as server, redis.Redis(port=port) as client:
                client.xadd("signals", {"data": fresh()})
                settings = {"STATE__PATH": tmp_path / "state.json"}
                process = held.enter_context(start(*self.addresses(port), errors=tmp_path / "errors", **settings))
                wait_for(lambda: client.xlen("decisions") == 1)
                server.terminate()
                server.wait()
            wait_for(lambda: b"Redis is away" in (tmp_path / "errors").read_bytes())
            process.terminate()
            process.communicate(timeout=300)
        assert process.returncode == 0
        assert (tmp_path / "state.json").exists()


class KeptLog:
    """A decision log in memory, as strict about what JSON can say as the one on the disk."""

    def __init__(self, engine: Layer3Phase1) -> None:
        self.records: list[dict[str, Any]] = []
        self.latest_head = 1, engine.config_hash
        self.append({"kind": HEAD, **head(engine)})

    def append(self, record: Mapping[str, Any]) -> None:
        kept = decode(encode(record))
        assert kept is not None
        self.records.append(kept)

    def roll(self) -> bool:
        return False


class Kept:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        self.lines.append(text)

    def close(self) -> None:
        """Nothing is open."""


class Delivered:
    """Messages that were read before and not acknowledged, or new ones."""

    def __init__(self, again: list[Message], new: list[Message]) -> None:
        self.again, self.new = again, new

    def unfinished(self) -> list[Message]:
        return self.again

    def messages(self) -> Iterator[Message]:
        return iter(self.new)

    def done(self, message: Message) -> None:
        """Nobody asks."""

    def close(self) -> None:
        """Nothing is open."""


def test_what_comes_again_after_a_crash_is_neither_sized_nor_learnt_twice(tmp_path: Path) -> None:
    lines = EXAMPLE.read_bytes().splitlines()
    messages = [Message(number, lines[i], f"{number}-0") for number, i in enumerate((0, 49, 1), start=1)]
    clock, sink = SignalClock(), Kept()
    with (
        Layer3Phase1(load_config(None, {"policy": {"enabled": False}}), clock=clock) as engine,
        DecisionLog(tmp_path / "log.jsonl", lambda: head(engine), fsync="none") as log,
    ):
        recorder = Recorder(log, engine)
        engine.observers.append(recorder.observe)
        for source in (Delivered([], messages), Delivered(messages, [])):
            Runner(engine, source, sink, tally=Tally(), recorder=recorder, clock=clock).run(None)
        known = engine.figures("BTC-USDT")
    assert sink.lines[3:] == sink.lines[:3]
    assert known is not None
    assert known.residuals == 1


def test_a_residual_in_the_log_of_an_older_program_is_not_learnt_again(tmp_path: Path) -> None:
    message = Message(2, EXAMPLE.read_bytes().splitlines()[49], "2-0")
    origin, sink = {"line": 2, "entry": "2-0"}, Kept()
    with (
        Layer3Phase1(load_config(None, {"policy": {"enabled": False}})) as engine,
        DecisionLog(tmp_path / "log.jsonl", lambda: head(engine), fsync="none") as log,
    ):
        told = {"symbol": "BTC-USDT", "predicted": 0.01, "realised": 0.02}
        log.append({"kind": "residual", "origin": origin, **told})
        Runner(engine, Delivered([message], []), sink, tally=Tally(), recorder=Recorder(log, engine)).run(None)
    assert json.loads(sink.lines[0]) == {**origin, "residual": {"symbol": "BTC-USDT", "learnt": None}}


def pairs() -> st.SearchStrategy[bytes]:
    example, residual = (EXAMPLE.read_bytes().splitlines()[line] for line in (0, 49))
    cut = st.integers(0, len(example)).map(lambda n: example[:n])
    words = [
        b"NaN",
        b"-1",
        b'"x"',
        b'"nan"',
        b'"text buy"',
        b'"\\ud800"',
        b"null",
        b"[]",
        b"{}",
        b"1e999",
        b"true",
        b"9" * 400,
    ]
    values = [b"0.882", b"0.41", b'"buy"', b'"trending_up"', b"1767225600000000000", b"0.0002", b"[]"]
    swapped = st.tuples(st.sampled_from(values), st.sampled_from(words)).map(lambda pair: example.replace(*pair))
    learnt = st.sampled_from(words).map(lambda word: residual.replace(b"0.002", word))
    return st.one_of(st.binary(max_size=60), cut, swapped, learnt, st.text(max_size=20).map(str.encode))


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(pairs(), max_size=5))
def test_whatever_the_line_it_is_answered_and_can_be_made_again(lines: list[bytes]) -> None:
    clock, sink, stop = SignalClock(), Kept(), Stop()
    read, write = os.pipe()
    try:
        os.write(write, b"\n".join(lines))
        os.close(write)
        with Layer3Phase1(load_config(None, {"policy": {"enabled": False}}), clock=clock) as engine:
            source = Lines(read, stop)
            log = KeptLog(engine)
            recorder = Recorder(log, engine)  # type: ignore[arg-type]
            engine.observers.append(recorder.observe)
            Runner(engine, source, sink, tally=Tally(), clock=clock, recorder=recorder).run(None)
            source.close()
            again = replay(log.records)
            assert (again.differences, again.state["memory"]) == ([], engine.snapshot()["memory"])
    finally:
        stop.close()
    expected = [line for line in b"\n".join(lines).split(b"\n") if line.strip()]
    assert len(sink.lines) == len(expected)
    for text in sink.lines:
        answer = json.loads(text)
        assert "\n" not in text
        assert "residual" in answer or -50_000.0 <= answer["position_size_usd"] <= 50_000.0


def test_a_line_without_end_is_answered_and_the_next_one_too(tmp_path: Path) -> None:
    stop = Stop()
    content = b"x" * (3 * 2**20) + b"\n\n  \nlast"
    path = tmp_path / "lines"
    path.write_bytes(content)
    source = Lines(os.open(path, os.O_RDONLY), stop)
    assert list(source.messages()) == [Message(1, None), Message(4, b"last")]
    path.write_bytes(b"x" * (2**20 + 1))
    source.close()
    source = Lines(os.open(path, os.O_RDONLY), stop)
    assert list(source.messages()) == [Message(1, None)]
    source.close()
    stop.close()


def test_a_sink_writes_whole_lines(tmp_path: Path) -> None:
    sink = TextSink(os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT))
    sink.write("a")
    sink.write("ü" * 100_000)
    sink.close()
    assert (tmp_path / "out").read_text() == "a\n" + "ü" * 100_000 + "\n"


def test_what_follows_a_torn_line_is_no_part_of_it(tmp_path: Path) -> None:
    out, stop = tmp_path / "out", Stop()
    out.write_bytes(b'{"line": 1}\n{"li')
    for text in ('{"line": 2}', '{"line": 3}'):
        sink = open_sink(str(out), stop)
        sink.write(text)
        sink.close()
    stop.close()
    assert out.read_text().splitlines() == ['{"line": 1}', '{"li', '{"line": 2}', '{"line": 3}']
