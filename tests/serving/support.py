"""Small random policies, servers on loopback, and a plain HTTP client."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from layer3 import contract
from layer3.agent.policy import Policy, stack
from layer3.agent.policy_file import save_policy
from serving.candidate import _free_port as free_port_or_refuse
from serving.door import Door
from serving.server import open_door, server_of
from serving.settings import Settings, settings

ROOT = Path(__file__).resolve().parents[2]
JSON = {"Content-Type": "application/json"}
NEUTRAL = [0.0] * contract.STATE_DIM


def free_port() -> int:
    return free_port_or_refuse(None)


def make_policy(folder: Path, seed: int = 1, members: int = 1, **details: Any) -> Policy:
    """A random policy that answers differently to different states."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (0.3 * random.normal(size=shape)).astype(np.float32)

    tensors = [
        {
            "mean": normal(16),
            "std": random.uniform(0.5, 1.5, 16).astype(np.float32),
            "w1": normal(16, 128),
            "b1": normal(128),
            "w2": normal(128, 128),
            "b2": normal(128),
            "w3": 0.3 * normal(128, 2),
            # Distributions narrow enough that a single member is confident of something.
            "b3": np.array([0.0, -1.0], dtype=np.float32),
        }
        for _ in range(members)
    ]
    states = random.uniform(-1.0, 1.0, (64, contract.STATE_DIM)).astype(np.float32)
    details = {"data": {"end": "2026-01-01T00:00:00+00:00"}, "seed": seed, **details}
    return save_policy(folder, stack(tensors), details, states)


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def tamper_weights(folder: Path) -> None:
    path = folder / "policy.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x01
    path.write_bytes(content)


def snapshot(store: Path, *names: str) -> dict[str, bytes]:
    """Every file below the folders ``names`` of ``store``, lock files apart."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for name in names
        for path in sorted((store / name).rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


@dataclass(frozen=True)
class Client:
    """One connection for each request, straight to loopback."""

    port: int
    timeout: float = 60.0

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        try:
            connection.request(method, path, body, dict(headers or {}), **options)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def predict(self, state: Any) -> Answer:
        return self.ask("POST", "/predict", json.dumps({"state": state}), JSON)

    def health(self) -> Answer:
        return self.ask("GET", "/health")

    def wait_for_health(self, *statuses: str, process: subprocess.Popen[bytes] | None = None) -> Answer:
        deadline = time.monotonic() + 120
        while True:
            try:
                answer = self.health()
            except OSError:
                answer = None
            if answer is not None and answer.body["status"] in statuses:
                return answer
            assert process is None or process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, f"never {statuses}; last: {answer}"
            time.sleep(0.02)


def exchange(port: int, *pieces: bytes, answers: int = 1, timeout: float = 60.0) -> bytes:
    """What comes back on one connection for the bytes of ``pieces``: ``answers`` whole ones, or all until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return read_answers(connection, answers)


def read_answers(connection: socket.socket, answers: int) -> bytes:
    """The next ``answers`` whole answers, or less where the other side closes before."""
    received = b""
    while count_answers(received) < answers:
        part = connection.recv(65536)
        if not part:
            break
        received += part
    return received


def count_answers(received: bytes) -> int:
    """How many whole answers ``received`` holds."""
    count = 0
    while b"\r\n\r\n" in received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        size = int(length[1]) if length else 0
        if len(rest) < size:
            break
        count, received = count + 1, rest[size:]
    return count


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request as bytes; underscores in the names of ``headers`` stand for dashes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def settings_for(model_uri: str | Path = "", **environment: str) -> Settings:
    """Settings of a server that asks nobody who they are, unless ``environment`` says how."""
    open_to_all = {} if environment.keys() & {"API_KEYS_FILE", "ID_TOKEN_AUDIENCE"} else {"AUTH": "off"}
    return settings({"MODEL_URI": str(model_uri), **open_to_all, **environment})


@contextmanager
def serve(model_uri: str | Path = "", *, door: Door | None = None, **environment: str) -> Iterator[Client]:
    """A server of ``model_uri`` as ``python -m serving`` makes it, in a thread of this process."""
    chosen = replace(settings_for(model_uri, **environment), port=0)
    server = server_of(door or open_door(chosen), chosen)
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "uvicorn did not start"
            time.sleep(0.005)
        yield Client(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


@dataclass(frozen=True)
class Process:
    process: subprocess.Popen[bytes]
    client: Client

    def end(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Signal it; exit status and everything it wrote."""
        self.process.send_signal(how)
        output, _ = self.process.communicate(timeout=120)
        return self.process.returncode, output.decode()


@contextmanager
def serving_process(*python_options: str, **environment: str) -> Iterator[Process]:
    """The real ``python -m serving`` on a free loopback port, in a process of its own."""
    port = environment.setdefault("PORT", str(free_port()))
    if not environment.keys() & {"API_KEYS_FILE", "ID_TOKEN_AUDIENCE"}:
        environment.setdefault("AUTH", "off")  # AUTH="" leaves it to the server, which then refuses to start
    inherited = {k: v for k, v in os.environ.items() if k not in ("MODEL_URI", "HOST", "K_SERVICE", "AUTH")}
    with subprocess.Popen(
        [sys.executable, *python_options, "-m", "serving"],
        cwd=ROOT,
        env={**inherited, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield Process(process, Client(int(port)) if port.isdecimal() else Client(0))
        finally:
            process.kill()
