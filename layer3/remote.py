"""Ask the served policy for a multiplier, within a deadline that nothing on the other side can stretch.

A socket's timeout bounds one read, not an answer: a server that sends one byte at a time can hold
a caller for ever. So the exchange runs in a worker thread, the caller waits at most ``timeout_s``
in total, and on expiry the socket is shut down under the worker, which then ends.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import ArrayLike

from layer3 import contract
from layer3.errors import ConfigurationError, ContractError, SourceError

__all__ = ["CONTRACT_HEADER", "RemoteAnswer", "fetch_multiplier"]

#: A caller may send it with the contract it was built for, and finds the server's in every prediction.
CONTRACT_HEADER: Final = "X-Himari-Contract"
_MAX_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class RemoteAnswer:
    """What the server said: multiplier in [0, 2], confidence in [0, 1], and which model it was."""

    multiplier: float
    confidence: float
    model_version: str


def fetch_multiplier(
    endpoint: str,
    state: ArrayLike,
    *,
    timeout_s: float = 0.15,
    expected_contract: str = contract.VERSION,
) -> RemoteAnswer:
    """``POST {endpoint}/predict`` with the 16 numbers of ``state`` and return the checked answer.

    Returns or raises within ``timeout_s`` seconds in total: connecting, sending and reading.

    Raises
    ------
    SourceError : no connection, no complete answer in time, a status other than 200, or a body
        that is not the answer that the API promises; the message says which
    ContractError : the server names another state contract
    ConfigurationError : ``endpoint``, ``state`` or ``timeout_s`` cannot be used
    """
    numbers = np.asarray(state, dtype=np.float64)
    if numbers.shape != (contract.STATE_DIM,) or not np.isfinite(numbers).all():
        raise ConfigurationError(
            f"state must be {contract.STATE_DIM} finite numbers, got shape {numbers.shape}: {state!r}"
        )
    if not 0.0 < timeout_s <= threading.TIMEOUT_MAX:
        raise ConfigurationError(f"timeout_s is {timeout_s!r}; it must be a number of seconds above 0")
    exchange = _Exchange(endpoint, json.dumps({"state": numbers.tolist()}).encode(), timeout_s, expected_contract)
    status, theirs, body = exchange.run()
    if status != 200:
        raise SourceError(f"{endpoint} answered HTTP {status}: {body[:200].decode(errors='replace')}")
    if theirs is not None and theirs != expected_contract:
        raise ContractError(theirs=theirs, ours=expected_contract, where=endpoint)
    return _parse(endpoint, body)


class _Exchange:
    """One request and its answer, in a thread of its own."""

    def __init__(self, endpoint: str, body: bytes, timeout_s: float, version: str) -> None:
        self._deadline = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._endpoint = endpoint
        self._body = body
        self._headers = {"Content-Type": "application/json", "Connection": "close", CONTRACT_HEADER: version}
        try:
            parts = urlsplit(endpoint)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigurationError(f"endpoint {endpoint!r} is not a URL: {error}") from error
        if parts.scheme not in ("http", "https") or not host:
            raise ConfigurationError(f"endpoint {endpoint!r} must look like http://host:port or https://host")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            self._connection = kind(host, port, timeout=timeout_s)
        except http.client.InvalidURL as error:
            raise ConfigurationError(f"endpoint {endpoint!r} is not a URL: {error}") from error
        self._path = parts.path.rstrip("/") + "/predict"
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._expired = False
        self._answer: tuple[int, str | None, bytes] | None = None
        self._failure = ""

    def run(self) -> tuple[int, str | None, bytes]:
        """Status, the server's contract header if it sent one, and the body."""
        threading.Thread(target=self._work, name="himari-remote", daemon=True).start()
        self._done.wait(max(0.0, self._deadline - time.monotonic()))
        with self._lock:
            if self._answer is not None:
                return self._answer
            self._expired = True
            if self._socket is not None:
                # Wakes a worker that waits in a read; the worker closes the socket itself.
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
        if self._failure:
            raise SourceError(f"{self._endpoint} did not answer: {self._failure}")
        raise SourceError(f"{self._endpoint} did not answer in full within {self._timeout_s * 1000:.0f} ms")

    def _work(self) -> None:
        try:
            self._connection.connect()
            with self._lock:
                self._socket = self._connection.sock
                if self._expired:
                    return
            self._connection.request("POST", self._path, self._body, self._headers)
            with self._connection.getresponse() as response:
                body = response.read(_MAX_BYTES + 1)
                if len(body) > _MAX_BYTES:
                    self._failure = f"the answer exceeds {_MAX_BYTES} bytes"
                    return
                with self._lock:
                    if not self._expired:
                        self._answer = (response.status, response.getheader(CONTRACT_HEADER), body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._failure = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        finally:
            with self._lock:
                self._socket = None
            self._connection.close()
            self._done.set()


def _parse(endpoint: str, body: bytes) -> RemoteAnswer:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{endpoint} answered something that is not JSON: {error}") from error
    if not isinstance(answer, dict):
        raise SourceError(f"{endpoint} answered {_brief(answer)}, expected a JSON object")
    version = answer.get("model_version")
    if not isinstance(version, str) or not version:
        raise SourceError(f"{endpoint}: model_version is {_brief(version)}, expected a name")
    return RemoteAnswer(
        multiplier=_number(endpoint, answer, "position_multiplier", contract.MULTIPLIER_LOW, contract.MULTIPLIER_HIGH),
        confidence=_number(endpoint, answer, "confidence", 0.0, 1.0),
        model_version=version,
    )


def _number(endpoint: str, answer: dict[str, Any], name: str, low: float, high: float) -> float:
    value = answer.get(name)
    # NaN and infinity, which Python's JSON reader lets through, fail the comparison.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise SourceError(f"{endpoint}: {name} is {_brief(value)}, expected a number in [{low:g}, {high:g}]")
    return float(value)


def _brief(value: object) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
