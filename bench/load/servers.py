"""The servers that are measured, each a process on a core of its own, and what such a process holds."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from layer3 import machine

__all__ = ["Contender", "Running", "contenders", "free_port", "memory", "running", "seconds_to_ready"]

_ROOT = Path(__file__).resolve().parents[2]
_KEY = "bench-0123456789abcdef0123456789abcdef"
_NOT_INHERITED = ("AIP_HTTP_PORT", "AUTH", "HOST", "K_SERVICE", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Contender:
    """A server: ``python -m module`` under ``environment``; ``headers`` go with each request to it."""

    name: str
    module: str
    environment: Mapping[str, str]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A contender's process ``pid``, started at ``started`` (seconds), which listens on loopback ``port``."""

    contender: Contender
    pid: int
    port: int
    started: float
    log: Path


def contenders(folder: Path, policy: Path) -> tuple[Contender, Contender, Contender]:
    """Bare uvicorn, ours with everything on, and the guide's; ``folder`` keeps what they need beside ``policy``."""
    keys = folder / "keys.txt"
    keys.write_text(f"bench:{_KEY}\n")
    keys.chmod(0o600)
    ours = {
        "MODEL_URI": str(policy),
        "API_KEYS_FILE": str(keys),
        "RATE_LIMIT": "1000000",
        "RATE_BURST": "1000000",
    }
    return (
        Contender("bare uvicorn", "bench.load.bare", {}),
        Contender("ours", "serving", ours, {"X-API-Key": _KEY}),
        Contender("the guide's", "bench.load.guides", {"MODEL_URI": str(policy)}),
    )


def free_port() -> int:
    """A port of the loopback interface where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def running(
    contender: Contender, log: Path, cores: Set[int], environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Running]:
    """The contender on ``cores`` until the block ends, not waited for; what it prints goes to ``log``."""
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    own = {**machine.ONE_THREAD, **contender.environment, "PORT": str(port), "HOST": "127.0.0.1"}
    started = time.perf_counter()
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [sys.executable, "-m", contender.module],
            cwd=_ROOT,
            env={**inherited, **own, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        ) as process,
    ):
        try:
            yield Running(contender, process.pid, port, started, log)
        finally:
            process.kill()


def seconds_to_ready(server: Running) -> float:
    """Wait for its first 200 to ``GET /health``; seconds from before its process was made."""
    while not _is_healthy(server.port):
        elapsed = time.perf_counter() - server.started
        if elapsed > _PATIENCE_S or not Path(f"/proc/{server.pid}/cmdline").read_bytes():
            end = server.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{server.contender.name} did not get ready; the end of its log:\n{end}")
        time.sleep(0.0005)
    return time.perf_counter() - server.started


def memory(pid: int) -> dict[str, float]:
    """MiB of the process: ``Rss``, what is in memory of it, and ``Pss``, where shared pages count in proportion."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(kib) / 1024 for name, kib in re.findall(r"^(Rss|Pss): +(\d+) kB$", text, re.MULTILINE)}


def _is_healthy(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False
