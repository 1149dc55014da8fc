"""The real ``python -m serving`` in a process of its own, with keys, and what can be done to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load.servers import free_port, memory
from serving.settings import EXIT_WITH_STDIN
from tests.serving.support import Answer, Client

ROOT = Path(__file__).resolve().parents[3]
KEY = "proof-0123456789abcdef0123456789abcdef"
HEADERS = {"X-API-Key": KEY}
#: Of whoever runs the tests; the server gets its own or none.
_SETTINGS = ("ACCESS_LOG_PER_SECOND", "CORS_ORIGINS", "HOST", "K_SERVICE", "MAX_IN_FLIGHT", "RATE_BURST")
_PATIENCE_S = 60.0


@dataclass
class Server:
    """A server on loopback; ``process`` changes when it is started again."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    environment: Mapping[str, str]

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = HEADERS) -> Answer:
        """One request over a connection of its own."""
        return Client(self.port, timeout=20.0).ask(method, path, body, headers)

    def predict(self, state: list[float], headers: Mapping[str, str] = HEADERS) -> Answer:
        body = json.dumps({"state": state}).encode()
        return self.ask("POST", "/predict", body, {"Content-Type": "application/json", **headers})

    def wait(self) -> float:
        """Wait until it is ready; seconds from this call."""
        began = time.perf_counter()
        while True:
            assert self.process.poll() is None, f"the server ended:\n{self.tail()}"
            try:
                if self.ask("GET", "/health", headers={}).status == 200:
                    return time.perf_counter() - began
            except (OSError, http.client.HTTPException):
                pass
            assert time.perf_counter() - began < _PATIENCE_S, f"it did not get ready:\n{self.tail()}"
            time.sleep(0.002)

    def start(self) -> float:
        """Start it again on the same port after :meth:`kill`; seconds until it was ready."""
        self.process = _process(self.environment, self.log)
        return self.wait()

    def kill(self) -> None:
        """As the kernel does when memory is short."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def resident(self) -> float:
        """MiB in memory."""
        return memory(self.process.pid)["Rss"]

    def most_resident(self) -> float:
        """MiB in memory at the worst moment so far."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:]

    def require_sound(self) -> None:
        """It lives, answers, and logged no traceback."""
        assert self.process.poll() is None, f"the server ended:\n{self.tail()}"
        assert self.ask("GET", "/health", headers={}).status == 200
        assert "Traceback" not in self.log.read_text(errors="replace"), self.tail()


@contextmanager
def serving(model_uri: Path, folder: Path, **settings: str) -> Iterator[Server]:
    """A server over ``model_uri`` that is ready, and ends with the block; ``folder`` keeps its keys and its log."""
    keys = folder / "keys.txt"
    keys.write_text(f"proof:{KEY}\n")
    port = int(settings.get("PORT") or free_port())
    inherited = {k: v for k, v in os.environ.items() if k not in _SETTINGS and not k.startswith(("AIP_", "AUTH"))}
    environment = {
        **inherited,
        "MODEL_URI": str(model_uri),
        "API_KEYS_FILE": str(keys),
        "PORT": str(port),
        "RATE_LIMIT": "1000000",
        # Vertex AI's paths, so that what is proved of the others holds for them too.
        "AIP_PREDICT_ROUTE": "/v1/policy:predict",
        "AIP_HEALTH_ROUTE": "/ping",
        # It ends with whoever started it, even when that is killed.
        EXIT_WITH_STDIN: "1",
        **settings,
    }
    log = folder / "server.log"
    server = Server(_process(environment, log), port, log, environment)
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def _process(environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    # Into a file: a pipe that nobody reads would stop the server once it is full.
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "serving"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
        )
