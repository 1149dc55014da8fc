"""What one process does with one task, and the file that remembers what is done.

One JSON line per finished market. A run that is cut off goes on from there: a last line that was torn is
not taken for one, and lines of another version of the code, of the limits or of this benchmark are left alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pandas as pd

from bench.calibration.candidates import CHAIN, TRAINING, candidates
from bench.calibration.judging import EFFORT, GATE, outcomes
from bench.calibration.plan import Task
from bench.calibration.truth import true_ratios
from layer3.version import source_sha256

__all__ = ["Line", "Remembered", "code_version", "do", "remaining"]

_KEY: Final = ("code", "aim", "design", "level", "years", "training_years", "training_seed", "number")
#: What a finished market leaves behind, plain JSON.
Line = dict[str, Any]


def code_version(path: Path | None = None) -> str:
    """Changes with everything that a result depends on: sources, this benchmark, settings, and the candles file."""
    digest = hashlib.sha256(source_sha256().encode())
    for own in sorted(Path(__file__).parent.glob("*.py")):
        if own.name not in ("summary.py", "picture.py", "plan.py"):
            digest.update(own.read_bytes())
    digest.update(repr((GATE, EFFORT, CHAIN, TRAINING)).encode())
    digest.update(path.read_bytes() if path is not None else b"")
    return digest.hexdigest()[:12]


def do(task: Task, version: str, path: pd.DataFrame | None, tell: Callable[[Line], None]) -> None:
    """Train the task's candidates, then tell of each market that is left as it is finished.

    All of them are trained even where few are left, so that a run that was cut off comes to the same numbers.
    """
    started = time.perf_counter()
    made = candidates(
        task.design,
        task.numbers,
        training_years=task.training_years,
        record_years=max(task.years),
        code_version=version,
        path=path,
    )
    for number, candidate in zip(task.numbers, made, strict=True):
        if number not in task.left:
            continue
        if task.aim == "truth":
            answer: Any = {name: asdict(truth) for name, truth in true_ratios(candidate).items()}
        else:
            answer = [asdict(outcome) for outcome in outcomes(candidate, task.years, number)]
        seconds, started = time.perf_counter() - started, time.perf_counter()
        tell({**_key(task, number, version), "answer": answer, "seconds": round(seconds, 2)})


def _key(task: Task, number: int, version: str) -> Line:
    return {
        "code": version,
        "aim": task.aim,
        "design": str(task.design),
        "level": task.level,
        "years": list(task.years),
        "training_years": task.training_years,
        "training_seed": task.numbers[0],
        "number": number,
    }


def _same(line: Line) -> str:
    return json.dumps([line[name] for name in _KEY])


def remaining(todo: Iterable[Task], lines: Sequence[Line], version: str) -> list[Task]:
    """The tasks that are not done, each with the markets that are left of it."""
    done = {_same(line) for line in lines}
    left = []
    for task in todo:
        numbers = tuple(number for number in task.numbers if _same(_key(task, number, version)) not in done)
        if numbers:
            left.append(dataclasses.replace(task, left=numbers))
    return left


class Remembered:
    """The lines of a file at ``path``, and more of them."""

    def __init__(self, path: Path, version: str) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            # What a cut left behind: the next line must not be glued to it.
            os.truncate(path, len(whole))
        self.lines: list[Line] = [line for line in map(json.loads, whole.splitlines()) if line["code"] == version]

    def append(self, line: Line) -> None:
        """Keep it, on the disk before anything else is done."""
        self.lines.append(line)
        with self._path.open("ab") as file:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
