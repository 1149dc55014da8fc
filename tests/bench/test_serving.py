"""The serving benchmark: its pieces on tasks whose answers are known, and the whole of it once; nothing is timed."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution
from pathlib import Path

import numpy as np
import pytest

from bench import serving
from bench.hot_path import random_policy
from bench.load import guides, requests, weight, wrk
from bench.load.client import closed_loop, open_loop
from layer3.agent.policy_file import PARITY

ROOT = Path(__file__).resolve().parents[2]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def answering(answer: Callable[[int], list[bytes] | None]) -> Iterator[int]:
    """A server that sends to its n-th request the pieces ``answer(n)``, or hangs up; yields its port."""
    counter = iter(range(1_000_000))

    def converse(connection: socket.socket) -> None:
        with connection:
            while connection.recv(1 << 16):
                pieces = answer(next(counter))
                if pieces is None:
                    return
                for piece in pieces:
                    connection.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=converse, args=(connection,)))
                threads[-1].start()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for thread in threads:
                thread.join()


def ask(port: int, times: int, connections: int = 1, check: Callable[[bytes], bool] = bool):
    prepared = [requests.request("/predict", body, {}) for body in requests.bodies(3)]
    return closed_loop(port, prepared, connections=connections, until=lambda sent: sent == times, check=check)


def test_every_request_is_answered_once():
    with answering(lambda _: [OK]) as port:
        found = ask(port, 100, connections=7)
    assert found.statuses == Counter({200: 100})
    assert found.failed == 0
    assert found.latencies.shape == (100,)
    assert (found.latencies > 0.0).all()


def test_an_answer_in_pieces_is_one():
    with answering(lambda _: [OK[:20], OK[20:-1], OK[-1:]]) as port:
        assert ask(port, 5).statuses == Counter({200: 5})


def test_refusals_broken_connections_and_wrong_answers_are_counted_apart():
    refusal = OK.replace(b"200 OK", b"503 Service Unavailable")
    answers = [[OK], [refusal], None, [OK.replace(b"ok", b"no")], [OK]]
    with answering(lambda n: answers[n]) as port:
        found = ask(port, 5, check=lambda body: body == b"ok")
    assert found.statuses == Counter({200: 3, 503: 1, 0: 1})
    assert found.wrong == [b"no"]
    assert found.failed == 3


def test_a_server_that_stalls_pays_for_all_who_wait():
    def answer(number: int) -> list[bytes]:
        if number == 10:
            time.sleep(0.3)
        return [OK]

    prepared = [requests.request("/predict", b"{}", {})]
    with answering(answer) as port:
        found = open_loop(port, prepared, connections=1, rate=1_000.0, seconds=0.2, seed=0)
    assert found.statuses == Counter({200: 200})
    # A client that waited before it asked again would have seen one slow answer; some 190 were due meanwhile.
    assert (found.latencies > 0.05).sum() > 100


def test_the_guides_server_answers_as_ours_does(tmp_path):
    policy = random_policy(np.random.default_rng(0), tmp_path, 1)
    agent = guides.Agent(tmp_path)
    for state in requests.states(50):
        multiplier, _ = agent.get_action(state, deterministic=True)
        assert multiplier == pytest.approx(float(policy.act(state)[0]), abs=PARITY)


def test_states_are_of_the_contract():
    states = requests.states(1_000)
    assert states.shape == (1_000, 16)
    assert (np.abs(states) <= 1.0).all()
    assert len(np.unique(states, axis=0)) == 1_000


def test_what_the_server_needs_and_nothing_else_is_weighed():
    names = set(weight.closure("himari", frozenset({"serve"})))
    assert {"numpy", "uvicorn", "uvloop", "httptools", "msgspec", "safetensors"} <= names
    assert names.isdisjoint({"himari", "torch", "pandas", "kfp", "pytest", "hypothesis", "cryptography", "fastapi"})
    assert "cryptography" in weight.closure("himari", frozenset({"serve", "identity"}))


def test_a_weight_is_what_its_files_take(tmp_path):
    folder = tmp_path / "one-1.dist-info"
    folder.mkdir()
    (tmp_path / "tests").mkdir()
    for name, size in {"one.py": 5_000, "one.pyi": 1, "tests/large.py": 100_000}.items():
        (tmp_path / name).write_bytes(b"x" * size)
    (folder / "RECORD").write_text("one.py,,\none.pyi,,\ntests/large.py,,\nmissing.py,,\n../../../bin/one,,\n")
    one = Distribution.at(folder)
    assert weight.mebibytes(one, image=False) == (2 + 1 + 25) * 4096 / 2**20
    assert weight.mebibytes(one, image=True) == 2 * 4096 / 2**20


def test_the_image_leaves_out_what_its_dockerfile_does():
    text = (ROOT / "serving" / "Dockerfile").read_text()
    assert set(re.findall(r"-name '\*(\.\w+)'", text)) == set(weight.LEFT_OUT)
    assert set(re.findall(r"-path '\*/(\w+)/\*\.so'", text)) == set(weight.STRIPPED)
    assert "-type d -name tests -prune" in text


def test_without_wrk_it_says_where_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serving"])
    monkeypatch.setattr(wrk.shutil, "which", lambda _: None)
    assert serving.main() == 2
    assert "apt-get install wrk" in capsys.readouterr().err


def test_all_of_it_runs():
    if not wrk.found():
        pytest.skip("wrk is not installed")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core for the server and one for wrk are needed")
    command = [sys.executable, "-m", "bench.serving", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "requests/s / bare's, 64 connections" in done.stdout
    assert "QUICK: the answers mean nothing" in done.stdout
