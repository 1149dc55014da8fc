"""Killed without a warning, and started again."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from bench.load.servers import Contender, running, seconds_to_ready
from tests.serving.proof.refusals import STATE
from tests.serving.proof.server import Server

_BARE = Contender("bare uvicorn", "bench.load.bare", {})


def killed(server: Server, times: int, folder: Path, most: float | None) -> str:
    """After kill -9 it starts again on the same port, and says the same bytes to the same state.

    ``most`` is how many times longer than an empty uvicorn's its start may take; None: it may take any time.
    """
    before = server.predict(STATE).body
    ours, bare = [], []
    for _ in range(times):
        server.kill()
        ours.append(server.start())
        after = server.predict(STATE).body
        for name in ("position_multiplier", "confidence", "model_version"):
            assert after[name] == before[name], f"{name} was {before[name]}, is {after[name]} after a restart"
        bare.append(_bare(server, folder))
    server.require_sound()
    seconds, floor = statistics.median(ours), statistics.median(bare)
    assert most is None or seconds <= most * floor, f"ready after {seconds:.3f} s, bare uvicorn after {floor:.3f} s"
    return f"ready {seconds:.3f} s after a new start, bare uvicorn {floor:.3f} s ({seconds / floor:.2f} times)"


def _bare(server: Server, folder: Path) -> float:
    # On the cores that our own server may use, and with the same byte code.
    cores = os.sched_getaffinity(server.process.pid)
    names = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    byte_code = {name: server.environment[name] for name in names if name in server.environment}
    with running(_BARE, folder / "bare.log", cores, byte_code) as bare:
        return seconds_to_ready(bare)
