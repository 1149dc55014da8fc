"""How a run's end is told: file and log line always, the webhook loudly or not at all."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from layer3.errors import ConfigurationError, SourceError
from layer3.notification import check_webhook, send

BAD_ADDRESSES = [
    "ftp://example.org/x",
    "file:///etc/passwd",
    "hooks.example.org/x",
    "http://",
    "https:///path",
    "http://host:port/",
    "http://host:99999/",
    "http://[::1/",
    "http://host/with space",
    "http://host/line\nbreak",
]


@contextlib.contextmanager
def listening(status: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A real webhook on loopback that answers ``status``; yields its address and what it was told."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.append({"type": self.headers["Content-Type"], "path": self.path, **json.loads(body)})
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/hook", told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def noted(store: Path) -> dict[str, Any]:
    return dict(json.loads((store / "runs" / "r1" / "notification.json").read_text()))


def test_success_is_a_file_and_one_log_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    send("r1", "SUCCEEDED", None, store=str(tmp_path), webhook="")
    assert noted(tmp_path) == {"run_id": "r1", "state": "SUCCEEDED", "error": None}
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "severity": "INFO",
        "message": "Run r1 ended: SUCCEEDED",
        "run_id": "r1",
        "state": "SUCCEEDED",
        "error": None,
    }


def test_failure_is_an_error_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listening(200) as (webhook, told):
        send("r1", "FAILED", "train: boom", store=str(tmp_path), webhook=webhook)
    assert told == [{"type": "application/json", "path": "/hook", "text": "HIMARI run r1: FAILED (train: boom)"}]
    assert noted(tmp_path)["error"] == "train: boom"
    assert json.loads(capsys.readouterr().out)["severity"] == "ERROR"


@pytest.mark.parametrize("status", [404, 500])
def test_a_webhook_that_refuses_is_loud_but_loses_nothing(tmp_path: Path, status: int) -> None:
    with listening(status) as (webhook, told), pytest.raises(SourceError, match=rf"127.0.0.1 .*{status}.*SUCCEEDED"):
        send("r1", "SUCCEEDED", None, store=str(tmp_path), webhook=webhook)
    assert len(told) == 1
    assert noted(tmp_path)["state"] == "SUCCEEDED"


def test_a_dead_webhook_is_loud_but_loses_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: a connection is refused
        with pytest.raises(SourceError, match="did not take the message"):
            send("r1", "FAILED", "x", store=str(tmp_path), webhook=f"http://127.0.0.1:{taken.getsockname()[1]}/")
    assert noted(tmp_path)["state"] == "FAILED"


def test_something_that_speaks_no_http_is_a_source_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def babble() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"SSH-2.0-babble\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        with pytest.raises(SourceError, match="did not take the message"):
            send("r1", "FAILED", None, store=str(tmp_path), webhook=f"http://127.0.0.1:{server.getsockname()[1]}/")
        thread.join()
    assert noted(tmp_path)["state"] == "FAILED"


@pytest.mark.parametrize("webhook", BAD_ADDRESSES)
def test_what_is_no_address_is_refused_and_the_file_is_there(tmp_path: Path, webhook: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an http"):
        check_webhook(webhook)
    with pytest.raises(ConfigurationError, match="is not an http"):
        send("r1", "FAILED", None, store=str(tmp_path), webhook=webhook)
    assert noted(tmp_path)["state"] == "FAILED"


@pytest.mark.parametrize("webhook", ["", "http://host/x", "https://hooks.example.org:8443/a/b?c=d"])
def test_good_addresses(webhook: str) -> None:
    assert check_webhook(webhook) is None  # type: ignore[func-returns-value]
