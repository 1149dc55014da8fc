"""Round trips of ``PolicyClient`` beside a bare keep-alive ``http.client`` to the same server, in the same run.

Two servers, each in a process of its own on loopback: a socket that answers every request with the same
bytes, which is the floor of this machine, and ``python -m serving`` with a policy.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.hot_path import random_policy
from bench.page import Requirement, at_most, table, title
from layer3 import contract
from layer3.breaker import BreakerConfig, CircuitBreaker
from layer3.errors import SourceError
from layer3.remote import PolicyClient

STATE = np.zeros(contract.STATE_DIM, np.float32)
BODY = json.dumps({"state": STATE.tolist()})
HEADERS = {"Content-Type": "application/json", contract.HEADER: contract.VERSION}
BUDGET_S = 0.15
#: Calls of one measurement and how often it is repeated, the two clients in turn.
CALLS, REPEATS = 2_000, 5
ANSWER = json.dumps({"position_multiplier": 1.0, "confidence": 0.5, "latency_ms": 0.1, "model_version": "m"}).encode()
RAW = (
    f"HTTP/1.1 200 OK\r\ncontent-length: {len(ANSWER)}\r\ncontent-type: application/json\r\n"
    f"{contract.HEADER}: {contract.VERSION}\r\n\r\n"
).encode() + ANSWER
#: What a header that never ends begins with.
ENDLESS = b"HTTP/1.1 200 OK\r\nX: "
Call = Callable[[], object]


def raw_server(drip: bool) -> None:
    """Answer each request (which arrives in one or two pieces) with the same bytes; prints its port.

    With ``drip`` one byte of them each 4 ms, and so on for ever.
    """

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.buffer = transport, b""

        def data_received(self, data: bytes) -> None:
            self.buffer += data
            if self.buffer.endswith(b"]}"):
                self.buffer = b""
                self.drop(0) if drip else self.transport.write(RAW)

        def drop(self, place: int) -> None:
            if not self.transport.is_closing():
                self.transport.write(ENDLESS[place : place + 1] or b"x")
                asyncio.get_running_loop().call_later(0.004, self.drop, place + 1)

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", 0, backlog=256)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(main())


@contextmanager
def raw(how: str = "raw") -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-m", "bench.remote", how], stdout=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@contextmanager
def served() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        random_policy(np.random.default_rng(0), Path(folder), 4)
        environment = os.environ | {"MODEL_URI": folder, "PORT": str(port), "HOST": "127.0.0.1", "AUTH": "off"}
        # What it logs would stand between the figures.
        environment |= {"ACCESS_LOG_PER_SECOND": "0"}
        process = subprocess.Popen([sys.executable, "-m", "serving"], env=environment, stderr=subprocess.DEVNULL)
        try:
            wait_until_ready(port)
            yield port
        finally:
            process.kill()
            process.wait()


def wait_until_ready(port: int) -> None:
    for _ in range(200):
        try:
            with PolicyClient(f"http://127.0.0.1:{port}", timeout_s=1.0) as client:
                client.ask(STATE)
                return
        except SourceError:
            time.sleep(0.1)
    raise TimeoutError("the server did not get ready")


def bare(port: int) -> Call:
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def call() -> None:
        connection.request("POST", "/predict", BODY, HEADERS)
        json.loads(connection.getresponse().read())

    return call


def latencies(make: Callable[[], Call], threads: int, calls: int) -> np.ndarray:
    """Seconds of each call, (threads * calls,)."""
    found = np.empty((threads, calls))
    start = threading.Barrier(threads)

    def work(row: int) -> None:
        call = make()
        for _ in range(10):
            call()
        start.wait()
        for column in range(calls):
            began = time.perf_counter()
            call()
            found[row, column] = time.perf_counter() - began

    workers = [threading.Thread(target=work, args=(row,)) for row in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found.ravel()


async def async_latencies(client: PolicyClient, calls: int) -> np.ndarray:
    found = np.empty(calls)
    for index in range(-10, calls):
        began = time.perf_counter()
        await client.aask(STATE)
        found[index] = time.perf_counter() - began
    return found


def percentiles(repeats: list[np.ndarray]) -> tuple[float, float]:
    """Median over the repeats of each one's p50 and p99, in microseconds."""
    p50, p99 = np.median([np.percentile(one, (50, 99)) for one in repeats], axis=0) * 1e6
    return float(p50), float(p99)


def report(name: str, figures: tuple[float, float], floor: tuple[float, float]) -> None:
    (p50, p99), (floor50, floor99) = figures, floor
    print(
        f"  {name:24s} p50 {p50:8.0f} µs ({p50 / floor50:4.2f}x)   p99 {p99:8.0f} µs ({p99 / floor99:4.2f}x)",
        flush=True,
    )


def measure(name: str, port: int) -> list[Requirement]:
    asked = []
    breaker = CircuitBreaker(BreakerConfig(), rng=np.random.default_rng())
    with PolicyClient(f"http://127.0.0.1:{port}", timeout_s=BUDGET_S, breaker=breaker) as client:
        for threads in (1, 64):
            floors, ours, loops = [], [], []
            calls = CALLS if threads == 1 else CALLS // 32
            for _ in range(REPEATS):
                floors.append(latencies(lambda: bare(port), threads, calls))
                ours.append(latencies(lambda: lambda: client.ask(STATE), threads, calls))
                if threads == 1:
                    loops.append(asyncio.run(async_latencies(client, calls)))
            floor, mine = percentiles(floors), percentiles(ours)
            print(f"{name}, {threads} thread{'s' * (threads > 1)}")
            report("bare http.client", floor, floor)
            report("PolicyClient.ask", mine, floor)
            if loops:
                report("PolicyClient.aask", percentiles(loops), floor)
                asked.append(at_most(f"{name}: median over the bare one's", mine[0] / floor[0], 1.5))
                asked.append(at_most(f"{name}: p99 over the bare one's", mine[1] / floor[1], 1.5))
            else:
                asked.append(at_most(f"{name}: p99 of 64 threads, ms", mine[1] / 1e3, BUDGET_S * 1e3, "{:.1f}"))
    return asked


def main() -> None:
    with raw() as port:
        asked = measure("a raw socket server", port)
    with served() as port:
        asked += measure("python -m serving", port)
    title("What was asked of PolicyClient.ask")
    table(("", "is", "asked", "met"), [(r.name, r.value, r.asked, "yes" if r.met else "NO") for r in asked])


if __name__ == "__main__":
    raw_server(sys.argv[1] == "drip") if sys.argv[1:] else main()
