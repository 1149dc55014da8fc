"""Releases with real candidate processes: what may serve, and that nothing else ever does."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from layer3 import contract
from layer3.agent.policy_file import load_policy
from layer3.champion import load, read
from layer3.errors import ReleaseError
from serving import candidate as beside
from serving import channels, proof
from serving.candidate import Candidate
from serving.platforms.local import Local
from serving.release import main, release
from tests.fakes.gcs import FakeGcs
from tests.fakes.processes import is_alive
from tests.fakes.servers import wait_for
from tests.serving.support import (
    ROOT,
    Client,
    edit_manifest,
    free_port,
    make_policy,
    serving_process,
    snapshot,
    tamper_weights,
)

STEPS = ["verify", "store", "start", "health", "smoke", "parity", "stop", "switch"]
LIAR = (sys.executable, "-m", "tests.serving.liar")


@pytest.fixture(autouse=True)
def no_process_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """After every test, each candidate process that it started has ended and was waited for."""
    started: list[int] = []
    popen = subprocess.Popen

    class Watched(popen):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self.pid)

    monkeypatch.setattr(beside.subprocess, "Popen", Watched)
    yield started
    assert [pid for pid in started if is_alive(pid)] == []


def champion(store: Path) -> str:
    channel = read(str(store))
    assert channel is not None
    return channel.champion.model_id


# What works


def test_a_release(store: Path, candidate: Path, no_process_left: list[int]) -> None:
    old, new = champion(store), load_policy(candidate)
    lines: list[str] = []
    ticks = iter(range(100))
    done = release(
        candidate,
        store=str(store),
        run_id="run-2",
        now=lambda: datetime(2026, 3, 1, tzinfo=UTC),
        clock=lambda: float(next(ticks)),
        log=lines.append,
    )
    assert (done.outcome, done.model_id, done.previous, done.run_id) == ("released", new.model_id, old, "run-2")
    assert [step.name for step in done.steps] == STEPS
    assert {step.seconds for step in done.steps} == {1.0}
    assert json.loads(json.dumps(done.to_json(), allow_nan=False))["steps"][5]["name"] == "parity"
    assert any(re.match(r"parity ok, 1.00 s: 32 golden pairs, largest difference \d", line) for line in lines)
    assert len(no_process_left) == 1

    body = json.loads((store / "channels" / "production.json").read_text())
    assert body["model_id"] == new.model_id
    assert body["policy_sha256"] == new.manifest["policy_sha256"]
    assert body["contract"] == contract.VERSION
    assert body["released_at"] == "2026-03-01T00:00:00+00:00"
    assert body["run_id"] == "run-2"
    assert body["previous"]["model_id"] == old
    for name in ("policy.safetensors", "manifest.json"):
        assert (store / "models" / new.model_id / name).read_bytes() == (candidate / name).read_bytes()
    assert channels.rollback(str(store)).champion.model_id == old


def test_the_first_release_has_no_previous(tmp_path: Path, candidate: Path) -> None:
    done = release(candidate, store=str(tmp_path / "new"), run_id="run-1")
    assert done.previous is None
    assert champion(tmp_path / "new") == done.model_id


def test_what_already_serves_is_left_alone(store: Path, tmp_path: Path, no_process_left: list[int]) -> None:
    before = snapshot(store, "models", "channels")
    lines: list[str] = []
    done = release(tmp_path / "champion", store=str(store), run_id="run-9", log=lines.append)
    assert done.outcome == "already serving"
    assert "nothing to do" in lines[-1]
    assert snapshot(store, "models", "channels") == before
    assert no_process_left == []


def test_a_champion_whose_files_are_lost_is_repaired_by_its_own_release(store: Path, tmp_path: Path) -> None:
    model_id = champion(store)
    (store / "models" / model_id / "manifest.json").unlink()
    done = release(tmp_path / "champion", store=str(store), run_id="run-9")
    assert (done.outcome, done.previous) == ("released", None)
    assert load(str(store)).model_id == model_id


def test_beside_a_serving_champion(store: Path, candidate: Path) -> None:
    old = champion(store)
    with serving_process(MODEL_URI=str(store / "channels" / "production.json")) as server:
        server.client.wait_for_health("ready", process=server.process)
        with pytest.raises(ReleaseError, match=rf"port {server.client.port} on 127.0.0.1 cannot be used"):
            release(candidate, store=str(store), run_id="r", platform=Local(port=server.client.port))
        release(candidate, store=str(store), run_id="r")
        assert server.client.health().body["model_version"] == old
    with serving_process(MODEL_URI=str(store / "channels" / "production.json")) as server:
        health = server.client.wait_for_health("ready", process=server.process)
    assert health.body["model_version"] == load_policy(candidate).model_id


def test_into_a_bucket(store: Path, candidate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = champion(store), load_policy(candidate).model_id
    with FakeGcs("bucket") as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        for path in store.rglob("*.*"):
            gcs.put("bucket", f"deep/{path.relative_to(store)}", path.read_bytes())
        done = release(candidate, store="gs://bucket/deep", run_id="r")
        assert (done.model_id, done.previous) == (new, old)
        assert load("gs://bucket/deep").model_id == new


def test_a_relative_store_from_another_folder(store: Path, candidate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store)
    assert release(candidate, store=".", run_id="r").outcome == "released"


# What must not: the champion's bytes stay as they are


def refuse(store: Path, candidate: Path, step: str, said: str, **options: Any) -> None:
    old, before = champion(store), snapshot(store, "channels")
    kept = snapshot(store, f"models/{old}")
    with pytest.raises(ReleaseError, match=f"(?s)step '{step}': .*{said}.*{old} still serves") as caught:
        release(candidate, store=str(store), run_id="r", platform=Local(**options))
    assert "was not released" in str(caught.value)
    assert snapshot(store, "channels") == before
    assert snapshot(store, f"models/{old}") == kept
    assert load(str(store)).model_id == old


def test_a_candidate_that_is_not_there(store: Path, tmp_path: Path) -> None:
    refuse(store, tmp_path / "nothing", "verify", "no policy at")


def test_tampered_weights(store: Path, candidate: Path) -> None:
    tamper_weights(candidate)
    refuse(store, candidate, "verify", "policy.safetensors has sha256")
    assert len(list((store / "models").iterdir())) == 1


def test_another_contract(store: Path, candidate: Path) -> None:
    edit_manifest(candidate, contract="himari-state-12/7")
    refuse(store, candidate, "verify", f"himari-state-12/7.*{contract.VERSION}")


def test_golden_pairs_edited_after_training(store: Path, candidate: Path) -> None:
    golden = json.loads((candidate / "manifest.json").read_text())["golden"]
    golden[7]["multiplier"] += 2e-5
    edit_manifest(candidate, golden=golden)
    refuse(store, candidate, "verify", "does not hold the network that was trained")


def test_other_weights_in_the_store_under_its_name(store: Path, candidate: Path) -> None:
    folder = store / "models" / load_policy(candidate).model_id
    make_policy(folder, seed=3)
    refuse(store, candidate, "store", "holds other weights")


def test_a_crash_of_the_candidate_at_start(store: Path, candidate: Path) -> None:
    command = (sys.executable, "-c", "import sys; sys.exit('the crash says this')")
    began = time.monotonic()
    refuse(store, candidate, "health", "ended with status 1.*the crash says this", command=command, health_seconds=300)
    assert time.monotonic() - began < 120  # noticed at once, not at the deadline


def test_a_command_that_does_not_exist(store: Path, candidate: Path) -> None:
    refuse(store, candidate, "start", "no-such-program", command=("/no-such-program",))


def test_a_taken_port(store: Path, candidate: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        refuse(store, candidate, "start", f"port {port} on 127.0.0.1 cannot be used", port=port)
    refuse(store, candidate, "start", "port 99999", port=99999)


@pytest.mark.parametrize(
    ("way", "step", "said"),
    [
        ("stranger", "health", "answered by .*20200101-someone.*another server holds the address"),
        ("garbage", "smoke", "lacks what the API promises"),
        ("failing", "smoke", "/predict answered HTTP 500"),
        ("out-of-range", "smoke", "multiplier 3.0.*out of range"),
        ("dies", "smoke", "ended with status 9.*out of memory"),
        ("other", "parity", "golden pair 0: the served multiplier .*not the network that was trained"),
        # The predecessor's server: a model that failed to load, and "healthy" all the same.
        ("constant", "parity", "golden pair 0: the served multiplier is 0.8"),
    ],
)
def test_a_server_that_lies(store: Path, candidate: Path, way: str, step: str, said: str) -> None:
    refuse(store, candidate, step, said, command=(*LIAR, way), health_seconds=120)


def test_a_server_that_never_gets_ready(store: Path, candidate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = []
    ask = Candidate.ask

    def heard(self: Candidate, *question: str) -> tuple[int, Any]:
        answers.append(answer := ask(self, *question))
        return answer

    monkeypatch.setattr(Candidate, "ask", heard)
    # Its time passes from its first answer on, however long this machine takes to start it.
    until_ready = partial(proof.wait_until_ready, clock=lambda: 0.5 * len(answers))
    monkeypatch.setattr(proof, "wait_until_ready", until_ready)
    said = "not ready within 0.7 s; last: HTTP 503: still thinking"
    refuse(store, candidate, "health", said, command=(*LIAR, "mute"), health_seconds=0.7)
    assert len(answers) == 2


def test_a_channel_that_someone_else_switched_meanwhile(store: Path, candidate: Path) -> None:
    path = store / "channels" / "production.json"

    def meddle(line: str) -> None:
        if line.startswith("stop ok"):
            path.write_text(json.dumps({**json.loads(path.read_text()), "run_id": "someone"}))

    with pytest.raises(ReleaseError, match=r"step 'switch': .*changed by someone else"):
        release(candidate, store=str(store), run_id="r", log=meddle)
    assert json.loads(path.read_text())["run_id"] == "someone"


def test_a_damaged_channel_stops_a_release_before_anything(store: Path, candidate: Path) -> None:
    (store / "channels" / "production.json").write_text("{")
    with pytest.raises(ReleaseError, match="is not a channel file"):
        release(candidate, store=str(store), run_id="r")
    assert (store / "channels" / "production.json").read_text() == "{"


def test_two_at_once(store: Path, candidate: Path) -> None:
    with channels.exclusive(str(store)), pytest.raises(ReleaseError, match="another release or rollback"):
        release(candidate, store=str(store), run_id="r")


# Interrupted


@pytest.mark.parametrize("step", STEPS[2:])
def test_ctrl_c_at_any_step(store: Path, candidate: Path, step: str) -> None:
    def interrupt(line: str) -> None:
        if line.startswith(f"{step} …"):
            raise KeyboardInterrupt

    before = snapshot(store, "channels")
    with pytest.raises(KeyboardInterrupt):
        release(candidate, store=str(store), run_id="r", log=interrupt)
    assert snapshot(store, "channels") == before


@pytest.mark.parametrize("step", ["health", "parity", "switch"])
def test_killed_at_any_step_the_champion_serves_and_the_same_command_finishes(
    store: Path, candidate: Path, step: str
) -> None:
    port = free_port()
    program = (
        "import os, signal, sys; from pathlib import Path; from serving.release import Local, release\n"
        "def log(line):\n"
        f"    if line.startswith('{step} …'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "release(Path(sys.argv[1]), store=sys.argv[2], run_id='r', platform=Local(int(sys.argv[3])), log=log)\n"
    )
    old, before = champion(store), snapshot(store, "channels")
    killed = subprocess.run(
        [sys.executable, "-c", program, str(candidate), str(store), str(port)], cwd=ROOT, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    assert snapshot(store, "channels") == before
    assert load(str(store)).model_id == old
    wait_for(lambda: not _answers(port))  # the orphan sees its standard input close
    done = release(candidate, store=str(store), run_id="r", platform=Local(port=port))
    assert (done.outcome, done.previous, champion(store)) == ("released", old, done.model_id)


def _answers(port: int) -> bool:
    try:
        Client(port).health()
    except OSError:
        return False
    return True


# The command line


def test_promote_status_rollback(
    store: Path, candidate: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = champion(store), load_policy(candidate).model_id
    monkeypatch.chdir(store)
    assert main(["promote", "--candidate", str(candidate), "--store", ".", "--run-id", "run-7"]) == 0
    output = capsys.readouterr()
    assert f"{new} serves now; a rollback returns to {old}" in output.out
    assert "parity ok" in output.err
    assert main(["promote", "--candidate", str(candidate), "--store", "."]) == 0
    assert "already serves: nothing was changed" in capsys.readouterr().out
    assert main(["rollback", "--store", "."]) == 0
    assert f"{old} serves again; left {new}" in capsys.readouterr().out
    assert main(["status", "--store", "."]) == 0
    output = capsys.readouterr()
    assert re.search(rf"champion  {old}  since .* run run-1  {contract.VERSION}", output.out)
    assert f"previous  {new}" in output.out
    assert "pass their self-test" in output.out
    tamper_weights(store / "models" / old)
    assert main(["status", "--store", "."]) == 1
    assert "has sha256" in capsys.readouterr().err


def test_promote_prints_json(store: Path, candidate: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["promote", "--candidate", str(candidate), "--store", str(store), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [step["name"] for step in record["steps"]] == STEPS


def test_refusals_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path / "store")
    assert main(["promote", "--candidate", str(tmp_path / "x"), "--store", store]) == 1
    assert "promote: the candidate was not released: step 'verify'" in capsys.readouterr().err
    assert main(["rollback", "--store", store]) == 1
    assert "nothing serves" in capsys.readouterr().err
    assert main(["status", "--store", store]) == 1
    assert "nothing serves" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["promote"], ["promote", "--store", "."], ["rollback"], ["nonsense"]])
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m serving.release" in capsys.readouterr().err


def test_it_runs_as_a_module() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "serving.release", "--help"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"promote", "rollback", "status"} <= set(re.findall(r"\w+", done.stdout))
    assert done.stderr == ""
