"""The probe: against the real server, and against servers that fail in every way that a caller meets."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.servers import free_port
from layer3 import contract
from layer3.errors import ConfigurationError
from serving import probe
from tests.fakes.web import Handler, answering
from tests.serving.proof.server import KEY, Server, serving
from tests.serving.support import make_policy

GOOD = json.dumps({"position_multiplier": 1.0, "confidence": 0.5, "latency_ms": 0.1, "model_version": "m"}).encode()
#: Status, body and seconds of waiting for the n-th request; None hangs up.
Behaviour = Callable[[int], tuple[int, bytes, float] | None]


@contextmanager
def server_that(behaves: Behaviour) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server's URL and the headers of the requests that it got."""
    seen: list[dict[str, str]] = []
    lock = threading.Lock()

    class Behaving(Handler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.content()
            with lock:
                number = len(seen)
                seen.append({"path": self.path, "body": body.decode(), **self.headers})
            answer = behaves(number)
            if answer is None:
                self.close_connection = True
                return
            status, content, seconds = answer
            time.sleep(seconds)
            self.reply(status, content)

    with answering(Behaving) as url:
        yield url, seen


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("real")
    make_policy(folder / "policy")
    with serving(folder / "policy", folder) as server:
        yield server


def run(url: str, *more: str, **environment: str) -> int:
    return probe.main(["--url", url, "--requests", "12", "--concurrent", "3", *more], environment)


@pytest.mark.parametrize("path", ["", "/", "/predict"])
def test_a_real_server(real: Server, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"http://127.0.0.1:{real.port}{path}", API_KEY=KEY) == 0
    said = capsys.readouterr()
    assert "answers with model 20260101-" in said.out
    rows = [line.split("  ")[0] for line in said.out.splitlines() if "connections, " in line and "%" in line]
    assert rows == [
        "kept connections, 1 caller",
        "kept connections, 3 callers",
        "new connections, 1 caller",
        "new connections, 3 callers",
    ]
    assert "of 48 requests were answered within layer 3's 150 ms" in said.out
    assert "#" in said.out
    assert said.err == ""


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "known callers only"),
        ({"API_KEY": "x" * 32}, "the API key in X-API-Key is none of those"),
    ],
)
def test_a_caller_that_may_not_call(
    real: Server, environment: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"http://127.0.0.1:{real.port}", **environment) == 1
    said = capsys.readouterr()
    assert "answered HTTP 401" in said.err
    assert says in said.err
    assert "another key in API_KEY" in said.err
    assert said.out == ""


def test_where_nothing_listens(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"http://127.0.0.1:{free_port()}") == 1
    assert "cannot be reached: the connection was refused: nothing listens there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, b"<html>hello</html>", "is no server of predictions, it answered <html>hello</html>"),
        (200, b"[]", "is no server of predictions"),
        (404, b"", "nothing is served there"),
        (403, b"{}", "does not let it in"),
        (409, b'{"detail": "contract himari-state-9/1"}', "contract himari-state-9/1"),
        (429, b'{"detail": "too fast"}', "too fast; the caller asks more often than its rate allows"),
        (503, b'{"detail": "no model serves: it is being loaded"}', "no model serves"),
        (302, b"", "answered HTTP 302"),
    ],
)
def test_another_answer_is_told(status: int, body: bytes, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with server_that(lambda _: (status, body, 0.0)) as (url, seen):
        assert run(url) == 1
    assert says in capsys.readouterr().err
    assert len(seen) == 1


def test_what_it_sends() -> None:
    with server_that(lambda _: (200, GOOD, 0.0)) as (url, seen):
        assert run(f"{url}/v1/", API_KEY="k" * 32, ID_TOKEN="a.b.c") == 0
    # The first look, then 12 of each kind, and one more of each caller that keeps its connection.
    assert len(seen) == 1 + 4 * 12 + 1 + 3
    for request in seen:
        assert request["path"] == "/v1/predict"
        assert request[contract.HEADER] == contract.VERSION
        assert request["X-API-Key"] == "k" * 32
        assert request["Authorization"] == "Bearer a.b.c"
        state = json.loads(request["body"])["state"]
        assert len(state) == contract.STATE_DIM
        assert all(-1.0 <= number <= 1.0 for number in state)


def test_failures_are_counted_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    def behaves(number: int) -> tuple[int, bytes, float] | None:
        if number and number % 5 == 0:
            return None
        return (429, b"{}", 0.0) if number % 5 == 1 and number > 1 else (200, GOOD, 0.0)

    with server_that(behaves) as (url, _):
        assert run(url) == 1
    out = capsys.readouterr().out
    assert "x the connection broke" in out
    assert "x HTTP 429 Too Many Requests" in out


def test_a_slow_server_misses_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    with server_that(lambda number: (200, GOOD, 0.2 if number > 1 else 0.0)) as (url, _):
        assert probe.main(["--url", url, "--requests", "3", "--concurrent", "3"], {}) == 0
    out = capsys.readouterr().out
    assert "0.00% of 12 requests were answered within layer 3's 150 ms" in out


@pytest.mark.parametrize(
    ("url", "environment", "says"),
    [
        ("ftp://host", {}, "must look like http"),
        ("http://user:secret@host", {}, "carries a user"),
        ("http://example.com", {"API_KEY": "k" * 32}, "API_KEY is a secret, it is sent over https only"),
        ("http://example.com", {"ID_TOKEN": "a.b.c"}, "ID_TOKEN is a secret"),
        ("https://example.com", {"API_KEY": "secret\nX: y"}, "API_KEY holds a space, a line end"),
    ],
)
def test_a_wrong_setting_is_status_2(
    url: str, environment: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(url, **environment) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "secret\n" not in err
    assert "user:secret" not in err


def test_a_secret_goes_over_https() -> None:
    found = probe.target("https://himari.example/predict", {"API_KEY": "k" * 32})
    assert found.tls is not None
    assert found.path == "/predict"
    with pytest.raises(ConfigurationError):
        probe.target("http://himari.example", {"API_KEY": "k" * 32})


@pytest.mark.parametrize("count", ["0", "-1", "1000001", "many"])
def test_a_wrong_count_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        probe.main(["--url", "http://127.0.0.1:1", "--requests", count], {})
    assert f"--requests: {count!r} is not a number from 1 to 1,000,000" in capsys.readouterr().err


def test_the_table_against_figures_by_hand() -> None:
    trial = probe.Trial("kept", [number / 1000.0 for number in range(1, 201)], Counter({"the connection broke": 50}))
    table = probe.report([trial])
    row = next(line for line in table.splitlines() if line.startswith("kept"))
    assert row.split() == ["kept", "200", "50", "1.00", "100.50", "180.10", "198.01", "200.00", "60.0%"]
    assert "failed, kept: 50 x the connection broke" in table
    assert "60.00% of 250 requests" in table


def test_a_trial_without_an_answer_has_a_row_and_no_histogram() -> None:
    trial = probe.Trial("kept", [], Counter({"no answer within 10 s": 3}))
    assert "0.00% of 3 requests" in probe.report([trial])
    assert probe.histogram(trial) == "kept: no answer"


@given(st.lists(st.floats(1e-5, 10.0), min_size=1, max_size=200))
def test_every_answer_is_in_the_histogram_once(seconds: list[float]) -> None:
    lines = probe.histogram(probe.Trial("x", seconds, Counter())).splitlines()[1:]
    counts = [int(line.split("ms")[1].split()[0]) for line in lines]
    assert sum(counts) == len(seconds)
    assert max(line.count("#") for line in lines) == 50
