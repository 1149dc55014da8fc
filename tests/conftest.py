"""What holds for every test: no connection leaves this machine, and CI draws the same examples each time."""

import ipaddress
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.fakes.gcs import FakeGcs

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")

# Who was started in the background of a shell ignores Ctrl-C, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


# What a terminal is said to be like here changes what the commands print.
for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(name, None)


class LeavesThisMachineError(AssertionError):
    """A test tried to reach something that is not on the loopback interface."""


def _check(address: Any) -> None:
    if not isinstance(address, tuple):
        return
    host = str(address[0])
    try:
        local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        raise LeavesThisMachineError(f"a test tried to connect to {address}")


@pytest.fixture(autouse=True, scope="session")
def only_loopback() -> Iterator[None]:
    """Refuse every outgoing connection of this process but those to the loopback interface."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded(self: socket.socket, address: Any) -> None:
        _check(address)
        connect(self, address)

    def guarded_ex(self: socket.socket, address: Any) -> int:
        _check(address)
        return connect_ex(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded)
    patch.setattr(socket.socket, "connect_ex", guarded_ex)
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def what_fails_ends_its_children() -> Iterator[None]:
    """``with Popen(…)`` waits for its process even after a failed assertion: forever, if that was about its end."""
    leave = subprocess.Popen.__exit__

    def killed(self: subprocess.Popen[Any], *raised: Any) -> None:
        if raised[0] is not None:
            self.kill()
        leave(self, *raised)

    patch = pytest.MonkeyPatch()
    patch.setattr(subprocess.Popen, "__exit__", killed)
    yield
    patch.undo()


@pytest.fixture(params=["local", "gs"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of an empty store, on this machine and in a bucket."""
    if request.param == "local":
        yield str(tmp_path / "store")
        return
    with FakeGcs("bucket") as fake:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
        yield "gs://bucket/deep"
