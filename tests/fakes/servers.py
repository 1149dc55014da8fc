"""Real servers of this machine, each on a free loopback port; a test that needs one that is absent is skipped."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def free_port() -> int:
    """A port of the loopback interface where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def binary(name: str) -> str:
    """Where the program is; skips the test where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed on this machine")
    return found


@contextmanager
def running(*command: str, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server until the block ends; the block begins when its port takes connections."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            wait_for(lambda: _listens(port) or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.kill()


def redis_server(port: int, folder: Path) -> list[str]:
    """The command of a Redis that keeps what it is told over a restart."""
    fixed = ["--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    return [binary("redis-server"), "--port", str(port), "--dir", str(folder), *fixed]


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Return when ``condition`` holds; fail when it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
