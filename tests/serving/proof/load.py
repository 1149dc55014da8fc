"""The server for a long time, and while its champion changes every second."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import numpy as np

from bench.load.client import Outcome, closed_loop
from bench.load.requests import bodies, request, states
from layer3.agent.policy import Policy
from layer3.champion import Champion, read
from serving.channels import publish
from serving.models import store_policy
from tests.serving.proof.server import HEADERS, Server
from tests.serving.support import make_policy

_GET = "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {key}\r\n\r\n"
#: Answers to one state may differ from the policy's own by the last digits, on whichever processor it is.
_SAME = 1e-6


def soak(server: Server, requests: int, growth_mib: float) -> str:
    """So many requests as fast as they are answered: no error, and no more than so much memory more after warm-up."""
    mixed = [request("/predict", body, HEADERS) for body in bodies(256)]
    mixed[100] = request("/predict:batch", json.dumps({"states": states(32).tolist()}).encode(), HEADERS)
    mixed[200] = _GET.format(path="/metrics", key=HEADERS["X-API-Key"]).encode()
    _soak(server, mixed, max(2_000, requests // 10))
    before = server.resident()
    outcome = _soak(server, mixed, requests)
    after = server.resident()
    assert after - before < growth_mib, f"{requests:,} requests took {before:.1f} MiB to {after:.1f} MiB"
    server.require_sound()
    return (
        f"{requests:,} requests at {outcome.rate:,.0f}/s over 64 connections, 0 failed; memory {before:.1f} MiB after "
        f"warm-up, {after:.1f} MiB at the end"
    )


def _soak(server: Server, mixed: list[bytes], requests: int) -> Outcome:
    outcome = closed_loop(server.port, mixed, connections=64, until=lambda sent: sent >= requests)
    assert outcome.failed == 0, f"{outcome.failed} of {requests:,} requests failed: {dict(outcome.statuses)}"
    return outcome


class Store:
    """A store with two policies; :meth:`swap` makes the other one its champion."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "store"
        self.policies = [self._add(folder / str(seed), seed) for seed in (1, 2)]
        self._next = cycle(self.policies)
        self.swap()

    @property
    def channel(self) -> Path:
        return self.root / "channels" / "production.json"

    def swap(self) -> None:
        policy = next(self._next)
        digest, contract = policy.manifest["policy_sha256"], policy.manifest["contract"]
        champion = Champion(policy.model_id, digest, contract, "2026-02-01T00:00:00+00:00", "run-1")
        publish(str(self.root), champion, expected=read(str(self.root)))

    def _add(self, folder: Path, seed: int) -> Policy:
        make_policy(folder, seed)
        return store_policy(folder, str(self.root)).policy


class Right:
    """Whether an answer is the named model's own; counts how often the model changed."""

    def __init__(self, store: Store) -> None:
        self.state = states(1)[0]
        self.changes = 0
        self._last = ""
        self._right = {policy.model_id: float(policy.act(self.state)[0]) for policy in store.policies}

    def __call__(self, body: bytes) -> bool:
        answer = json.loads(body)
        version = answer["model_version"]
        self.changes += bool(self._last) and version != self._last
        self._last = version
        return abs(answer["position_multiplier"] - self._right.get(version, np.nan)) <= _SAME


def swaps(server: Server, store: Store, seconds: float, period: float, most: float | None) -> str:
    """The champion changes every ``period`` seconds under load: no request fails, each answer is the named model's.

    ``most`` is how many times the quiet p99 the p99 may be meanwhile; None: it may be anything.
    """
    right = Right(store)
    prepared = [request("/predict", json.dumps({"state": right.state.tolist()}).encode(), HEADERS)]

    def load(duration: float) -> Outcome:
        end = time.perf_counter() + duration
        return closed_loop(
            server.port, prepared, connections=8, until=lambda _: time.perf_counter() >= end, check=right
        )

    load(min(2.0, seconds / 4))
    parts: dict[bool, list[Outcome]] = {False: [], True: []}
    for _ in range(4):
        parts[False].append(load(seconds / 4))
        with _swapping(store, period):
            parts[True].append(load(seconds / 4))
    failed = sum(one.failed for each in parts.values() for one in each)
    assert failed == 0, f"{failed} requests failed: {[(dict(o.statuses), o.wrong[:2]) for o in parts[True]]}"
    assert right.changes > 0, "no other champion was ever seen"
    quiet, swapping = (
        float(np.percentile(np.concatenate([one.latencies for one in parts[key]]), 99)) * 1e3 for key in (False, True)
    )
    figures = f"p99 {swapping:.2f} ms, quiet {quiet:.2f} ms ({swapping / quiet:.2f} times)"
    assert most is None or swapping <= most * quiet, f"while the champion changes: {figures}"
    server.require_sound()
    requests = sum(len(one.latencies) for one in parts[True])
    return (
        f"{requests:,} requests in {seconds:g} s of a swap every {period:g} s, 0 failed, {right.changes} changes seen; "
        f"{figures}"
    )


@contextmanager
def _swapping(store: Store, period: float) -> Iterator[None]:
    over = threading.Event()

    def swap() -> None:
        while not over.wait(period):
            store.swap()

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
