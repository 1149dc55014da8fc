"""A candidate's own server process: started beside the champion, asked over HTTP, always ended."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from layer3 import storage
from layer3.errors import ReleaseError
from serving.settings import EXIT_WITH_STDIN

__all__ = ["SERVER", "Candidate", "running"]

#: The command that serves; a release may be given another one.
SERVER: Final = (sys.executable, "-m", "serving")
_HOST: Final = "127.0.0.1"
#: Settings of the machine's own server: a trial on loopback answers whoever asks, as often as it is asked.
_NOT_INHERITED: Final = frozenset(
    {
        "ACCESS_LOG",
        "AIP_HTTP_PORT",
        "API_KEYS_FILE",
        "ID_TOKEN_AUDIENCE",
        "ID_TOKEN_EMAILS",
        "K_SERVICE",
        "RATE_BURST",
        "RATE_LIMIT",
    }
)
_ROOT: Final = Path(__file__).resolve().parents[1]
_ASK_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 10.0
_TAIL: Final = 2000


@dataclass(frozen=True)
class Candidate:
    """A server process under test on loopback ``port``; ``output`` is where its log goes."""

    process: subprocess.Popen[bytes]
    port: int
    output: IO[bytes]

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """One request; status and parsed body. OSError or HTTPException when there is no answer."""
        # http.client and not urllib: a proxy in the environment must not come between.
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=_ASK_SECONDS)
        try:
            content = None if body is None else json.dumps(body, allow_nan=False)
            connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        try:
            return response.status, json.loads(raw)
        except ValueError:
            return response.status, {"detail": raw[:200].decode(errors="replace")}

    @property
    def where(self) -> str:
        return f"port {self.port}"

    def require_alive(self, patience_seconds: float = 0.0) -> None:
        """Raise a ReleaseError with the end of its log if the process has ended, or ends within the patience."""
        if patience_seconds:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_seconds)
        status = self.process.poll()
        if status is not None:
            raise ReleaseError(f"the candidate's server ended with status {status}; {self.log_tail()}")

    def log_tail(self) -> str:
        self.output.seek(0, os.SEEK_END)
        self.output.seek(max(0, self.output.tell() - _TAIL))
        return f"the end of its log:\n{self.output.read().decode(errors='replace').strip() or '(nothing)'}"


@contextlib.contextmanager
def running(model_uri: str, port: int | None = None, command: Sequence[str] = SERVER) -> Iterator[Candidate]:
    """Serve ``model_uri`` in a process of its own on loopback, for as long as the ``with`` block lasts.

    The process ends with the block, whatever ends that; it also ends by itself when this process
    is killed, because its standard input closes. A ReleaseError if ``port`` is taken.
    """
    chosen = _free_port(port)
    with tempfile.TemporaryFile(prefix="himari-candidate-") as output:
        process = subprocess.Popen(
            list(command),
            # `-m serving` finds its package in the working directory: it must be this one's.
            cwd=_ROOT,
            env=_environment(model_uri, chosen),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Candidate(process, chosen, output)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    try:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    finally:  # also when Ctrl-C comes while we wait
        process.kill()
        process.wait()
        if process.stdin:
            process.stdin.close()


def _environment(model_uri: str, port: int) -> Mapping[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
    absolute = model_uri if storage.is_remote(model_uri) else str(Path(model_uri).resolve())
    own = {"HOST": _HOST, "PORT": str(port), "MODEL_URI": absolute, "AUTH": "off", EXIT_WITH_STDIN: "1"}
    return {**inherited, **own}


def _free_port(wanted: int | None) -> int:
    with socket.socket() as probe:
        # As uvicorn binds: a port whose last connections linger in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, wanted or 0))
        except (OSError, OverflowError) as error:
            raise ReleaseError(f"port {wanted} on {_HOST} cannot be used ({error}): choose another") from error
        return int(probe.getsockname()[1])
