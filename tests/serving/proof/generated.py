"""Requests that schemathesis makes up from the server's own OpenAPI document."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.serving.proof.server import KEY, Server

_CLI = Path(sys.executable).with_name("schemathesis")
ALL_PHASES = "examples,coverage,fuzzing"


def generated(server: Server, cases: int, folder: Path, phases: str = ALL_PHASES) -> str:
    """At least ``cases`` requests, valid and invalid: no 5xx, and no answer that the document does not promise.

    All of schemathesis' checks: statuses, content types, headers and bodies as documented, wrong data refused, right
    data accepted, unknown methods refused, nothing open without a key.
    """
    described = server.ask("GET", "/openapi.json").body["paths"]
    operations = sum(len(methods) for methods in described.values())
    total, seed = 0, 0
    while total < cases:
        seed += 1
        total += _run(server, folder, phases, seed, per_operation=max(10, (cases - total) // operations))
    server.require_sound()
    return f"{total:,} generated requests, no 5xx, no undocumented answer"


def _run(server: Server, folder: Path, phases: str, seed: int, per_operation: int) -> int:
    """One run of its command line, for its report counts the requests; how many there were."""
    report = folder / f"schemathesis-{seed}.json"
    command = [_CLI, "run", f"http://127.0.0.1:{server.port}/openapi.json", f"--header=X-API-Key: {KEY}"]
    options = [f"--phases={phases}", f"--max-examples={per_operation}", f"--seed={seed}", "--checks=all"]
    done = subprocess.run(
        [*command, *options, "--report=json", f"--report-json-path={report}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"schemathesis with seed {seed} says:\n{done.stdout[-5000:]}{done.stderr[-2000:]}"
    assert done.returncode == 0, said
    count = json.loads(report.read_text())["test_cases"]["generated"]
    assert count > 0, said
    return int(count)
