"""How often the gate errs: the whole evaluation and gate on simulated markets whose truth is known.

Finished markets are kept in build/calibration/results.jsonl; run again after a cut, it goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from bench.calibration.picture import draw, write_section
from bench.calibration.plan import FULL, Plan, Task, tasks
from bench.calibration.summary import cells, levels, report
from bench.calibration.work import Line, Remembered, code_version, do, remaining
from layer3 import machine
from layer3.errors import HimariError
from layer3.experiments.workers import workers
from layer3.market import sources

RESULTS = Path("build/calibration/results.jsonl")
DOCUMENT, PICTURE = Path("docs/gate.md"), Path("docs/gate_power.svg")
COMMAND = "make calibrate"


def main(arguments: Sequence[str] | None = None, plan: Plan = FULL) -> int:
    """Do what is left, then print tables, draw the picture and write the document's section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="", help="a file of candles whose permutations are markets too")
    parser.add_argument("--symbol", default="", help="what the file holds, such as BTC-USD")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"where finished markets are kept ({RESULTS})")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help=f"whose section is written ({DOCUMENT})")
    parser.add_argument("--picture", type=Path, default=PICTURE, help=f"where it is drawn ({PICTURE})")
    given = parser.parse_args(arguments)
    try:
        path = _candles(given.data, given.symbol)
    except HimariError as error:
        print(error, file=sys.stderr)
        return 2
    version = code_version(Path(given.data) if given.data else None)
    everything = tasks(plan)
    found = Remembered(given.results, version)
    print(f"Code {version}; finished markets are kept in {given.results}.", file=sys.stderr, flush=True)
    _finish(remaining(everything, found.lines, version), everything, found, path, version, given.jobs)

    wanted = {(str(task.design), task.aim, number) for task in everything for number in task.numbers}
    lines = [line for line in found.lines if (line["design"], line["aim"], line["number"]) in wanted]
    lines.sort(key=lambda line: (line["aim"], line["design"], line["number"]))
    source = (
        f"{given.symbol}, {len(path):,} candles of a file" if path is not None else "simulated, as no file was given"
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        asked = report(lines, plan, sum(line["seconds"] for line in lines), source)
    print(printed.getvalue())
    truth = levels(lines)
    draw(cells(lines, truth), truth, given.picture)
    write_section(given.document, COMMAND + (f" DATA={given.data}" if given.data else ""), printed.getvalue())
    return 0 if all(requirement.met for requirement in asked) else 1


def _candles(data: str, symbol: str) -> pd.DataFrame | None:
    """The file's candles, checked; ``None`` without one."""
    if not data:
        return None
    frame, _ = sources.load(data, symbol, version=sources.version_of(data), min_rows=2)
    return frame


def _finish(
    todo: list[Task], everything: list[Task], found: Remembered, path: pd.DataFrame | None, version: str, jobs: int
) -> None:
    """Let ``jobs`` processes do ``todo``, and keep what they tell."""
    if not todo:
        return
    # Read when numpy and torch are loaded; each process is to use one core.
    os.environ |= machine.ONE_THREAD
    progress = _Progress(todo, sum(len(task.numbers) for task in everything))
    queue = list(todo)
    with workers(jobs, partial(_do, version=version, path=path)) as crew:
        while queue or len(crew.idle) < jobs:
            for worker in crew.idle:
                if queue:
                    crew.give(worker, queue.pop(0))
            event = crew.listen()
            if event.kind == "refusal":
                raise RuntimeError(f"a market could not be judged: {event.value}")
            if event.kind == "progress":
                line, share = event.value
                found.append(line)
                progress.tell(line, share)


def _do(task: Task, tell: object, *, version: str, path: pd.DataFrame | None) -> None:
    """In a worker: each finished market with its share of the work."""
    share = task.weight / len(task.left)
    do(task, version, path, lambda line: tell((line, share)))  # type: ignore[operator]


class _Progress:
    """One line on stderr that says how much is done and how long the rest will take."""

    def __init__(self, todo: Sequence[Task], markets: int) -> None:
        self._started, self._total, self._done = time.monotonic(), sum(task.weight for task in todo), 0.0
        self._markets, self._finished = markets, markets - sum(len(task.left) for task in todo)

    def tell(self, line: Line, share: float) -> None:
        self._done += share
        self._finished += 1
        left = (time.monotonic() - self._started) * (self._total / self._done - 1.0)
        market = f"{line['design']} {line['number']}"
        told = f"{self._finished:,} of {self._markets:,} markets, about {left / 60:.0f} min left: {market}"
        end = "" if sys.stderr.isatty() else "\n"
        print(f"\r{told:<100.100}" if not end else told, end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
