"""What the cloud costs: a training run, a month of serving, and what remains of the budget.

``python -m pipelines.cost`` (``make cost``) prints it. Prices stand in ``config/prices.yaml``, each with its source
and the day on which it was read. How long the steps of a run take is measured: the median of the newest runs in the
store; until there is one, the file's assumption, and the estimate says which it was.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from layer3 import storage
from layer3.errors import HimariError
from pipelines.defaults import MEMBERS
from pipelines.manifest import parse_manifest
from pipelines.prices import GPU_STEPS, Line, Prices, load_prices, number

__all__ = ["DEFAULTS", "Estimate", "Work", "month_estimate", "render", "run_estimate"]

#: What `make run-pipeline` asks of the training where nothing is said (tests/pipelines/test_cost.py compares).
DEFAULTS: Final = {"train_steps": 500_000, "members": MEMBERS, "folds": 18, "fold_seeds": 5, "fold_groups": 6}
#: A past run tells how long training takes if it trained at least one such part, and at most so many times as much:
#: what takes the same time whatever is trained counts for little then.
_ALIKE: Final = 4.0
#: Runs whose durations the estimate is the median of.
_RUNS: Final = 5
#: Newest names below runs/ that are looked at: a run id begins with its time.
_LOOKED_AT: Final = 50
_DAYS: Final = 365.25 / 12
_GIB: Final = 2.0**30


@dataclass(frozen=True)
class Estimate:
    """Lines and their sum; ``basis`` says where the durations come from."""

    lines: tuple[Line, ...]
    usd_to_cad: float
    basis: str

    @property
    def usd(self) -> float:
        return math.fsum(line.usd for line in self.lines)

    @property
    def cad(self) -> float:
        return self.usd * self.usd_to_cad


@dataclass(frozen=True)
class Work:
    """How much a run trains: environment steps of all policies of each step with a GPU, and machines of its loop."""

    steps: Mapping[str, float]
    machines: int

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> Work:
        """Of a run with these parameters; where one is missing the pipeline's default."""
        said = DEFAULTS | {name: value for name, value in asked.items() if name in DEFAULTS}
        policies = {"train": said["members"], "walk": said["folds"] * said["fold_seeds"]}
        return cls(
            steps={step: float(said["train_steps"] * count) for step, count in policies.items()},
            machines=int(max(1, min(said["folds"], said["fold_groups"]))),
        )

    def share(self, step: str, other: Work) -> float:
        """How many times as much as ``other`` it trains in ``step``; 1 for a step that trains nothing."""
        if step not in GPU_STEPS:
            return 1.0
        mine, others = self.steps[step], other.steps[step]
        return mine / others if others else float(mine > 0) * math.inf


def run_estimate(prices: Prices, store: str, asked: Mapping[str, Any] = DEFAULTS) -> Estimate:
    """What one training run on Vertex costs that is given the parameters ``asked``.

    How long its steps work is measured by the newest runs below ``store``/runs. A step that trains goes by runs that
    asked about as much of it, and otherwise by the table's assumption for the pipeline's defaults, both in proportion.
    """
    assumed, work = prices.assumptions, Work.of(asked)
    measured = _durations(store)
    steps: dict[str, tuple[float, float]] = {}
    guessed = []
    # A verdict goes one way or the other; the dearer way is assumed.
    for step in sorted({name for run in measured for name in run.minutes} | set(assumed.step_minutes) - {"reject"}):
        took = [found for run in measured if (found := run.took(step, work)) is not None]
        if took:
            steps[step] = (statistics.median(tasks for tasks, _ in took), statistics.median(m for _, m in took))
        else:
            guessed.append(step)
            tasks = work.machines if step == "walk" else 1
            steps[step] = (tasks, assumed.step_minutes[step] * work.share(step, Work.of(DEFAULTS)))
    gpu = sum(tasks * assumed.gpu_start_minutes + spent for step, (tasks, spent) in steps.items() if step in GPU_STEPS)
    cpu = sum(tasks * assumed.start_minutes + spent for step, (tasks, spent) in steps.items() if step not in GPU_STEPS)
    return Estimate(
        (
            prices.line("vertex_pipeline_run", "pipeline run", 1.0),
            prices.line("vertex_n1_standard_4", "n1-standard-4 with the GPU", gpu / 60.0),
            prices.line("vertex_tesla_t4", "NVIDIA T4", gpu / 60.0),
            prices.line("vertex_e2_standard_4", "e2-standard-4, the other steps", cpu / 60.0),
            prices.line("storage_thousand_writes", "objects written", assumed.writes_per_run / 1000.0),
        ),
        prices.usd_to_cad,
        _basis(store, len(measured), guessed),
    )


def _basis(store: str, runs: int, guessed: Sequence[str]) -> str:
    if not runs:
        return f"assumed: there is no successful run in {store} yet"
    words = f"work of the steps: median of {runs} past run{'s' if runs > 1 else ''}"
    if guessed:
        words += f", but {' and '.join(guessed)}: assumed, none of them trained about as much"
    return f"{words}; starting a task: assumed"


def month_estimate(prices: Prices, *, requests_per_day: float, runs_per_month: float) -> Estimate:
    """What a month of everything but the training runs' machines costs."""
    assumed = prices.assumptions
    requests = requests_per_day * _DAYS
    seconds = requests * assumed.seconds_per_request
    return Estimate(
        (
            prices.line("run_vcpu_second", "serving: CPU", seconds),
            prices.line("run_gib_second", "serving: memory", seconds),
            prices.line("run_million_requests", "serving: requests", requests / 1e6),
            prices.line("egress_gib", "answers to the internet", requests * assumed.bytes_per_answer / _GIB),
            prices.line(
                "storage_gib_month",
                "bucket",
                assumed.stored_gib + assumed.stored_gib_per_run * runs_per_month,
            ),
            prices.line("registry_gib_month", "images", assumed.image_gib),
            prices.line("build_minute", "image builds", assumed.build_minutes * runs_per_month),
            prices.line("logging_gib", "logs", requests * assumed.log_bytes_per_request / _GIB),
            prices.line("monitoring_mib", "metrics", assumed.metrics_mib),
            prices.line("secret_version_month", "secrets", assumed.secret_versions),
        ),
        prices.usd_to_cad,
        "assumed use; a request's time is a ceiling",
    )


@dataclass(frozen=True)
class _Past:
    """Tasks and minutes by step of a past run, a step in a loop having several tasks; and what it was asked to do."""

    minutes: Mapping[str, tuple[int, float]]
    work: Work

    def took(self, step: str, work: Work) -> tuple[int, float] | None:
        """Tasks and minutes that ``step`` would take for ``work``; None if this run trained far more or far less."""
        tasks, minutes = self.minutes.get(step, (0, 0.0))
        share = work.share(step, self.work)
        return (tasks, minutes * share) if share == 0.0 or 1 / _ALIKE <= share <= _ALIKE else None


def _durations(store: str) -> list[_Past]:
    """The newest successful runs."""
    found: list[tuple[str, _Past]] = []
    runs = storage.join(store, "runs")
    for name in sorted(storage.list_names(runs), reverse=True)[:_LOOKED_AT]:
        try:
            manifest = parse_manifest(storage.read_bytes(storage.join(runs, name, "manifest.json")))
            work = Work.of(manifest["parameters"])
        except (OSError, ValueError, TypeError, HimariError):
            continue  # the index page of the runs names what cannot be read; an estimate goes by the others
        steps: dict[str, tuple[int, float]] = {}
        for step in manifest["steps"]:
            if step["status"] == "SUCCEEDED" and step["seconds"] and step["component"]:
                component = step["component"].removeprefix("comp-")
                tasks, minutes = steps.get(component, (0, 0.0))
                steps[component] = (tasks + 1, minutes + step["seconds"] / 60.0)
        if manifest["status"] == "SUCCEEDED" and "train" in steps:
            found.append((manifest["started"], _Past(steps, work)))
    found.sort(reverse=True, key=lambda pair: pair[0])
    return [past for _, past in found[:_RUNS]]


def render(prices: Prices, run: Estimate, month: Estimate, runs_per_month: float) -> str:
    """The report: two tables in USD and CAD, the sum over the budget's months, and what remains."""
    text: list[str] = []
    for title, estimate in (("One training run", run), ("A month of the rest", month)):
        text.append(f"{title} ({estimate.basis})")
        text += [
            _row(line.what, _quantity(line.quantity, line.unit), line.usd, prices.usd_to_cad) for line in estimate.lines
        ]
        text += [_row("sum", "", estimate.usd, prices.usd_to_cad), ""]
    months, total = prices.budget_months, _total_cad(prices, run, month, runs_per_month)
    remains = prices.budget_cad - total
    text.append(
        f"{months} months with {runs_per_month * months:.0f} training runs: {total:.2f} of {prices.budget_cad:.2f} CAD"
    )
    if remains >= 0:
        more = f", or {math.floor(remains / run.cad):,} more runs" if run.cad else ""
        text.append(f"remains {remains:.2f} CAD{more}")
    else:
        text.append(f"over the budget by {-remains:.2f} CAD: fewer runs, fewer requests, or a larger budget")
    unread = [price.name for price in prices.prices.values() if price.read is None]
    unread += [] if prices.rate_read else ["usd_to_cad"]
    if unread:
        text.append(f"not yet read on their pages, look them up: {', '.join(unread)}")
    return "\n".join(text)


def _row(what: str, quantity: str, usd: float, usd_to_cad: float) -> str:
    return f"  {what:<30}{quantity:>26}{usd:>10.2f} USD{usd * usd_to_cad:>10.2f} CAD"


def _quantity(quantity: float, unit: str) -> str:
    return f"{quantity:,.0f} {unit}" if quantity >= 100 else f"{quantity:.3g} {unit}"


def _total_cad(prices: Prices, run: Estimate, month: Estimate, runs_per_month: float) -> float:
    return prices.budget_months * (run.cad * runs_per_month + month.cad)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 within the budget, 1 above it, 2 when a setting is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.cost", description="What training, serving and storage cost, and what remains."
    )
    parser.add_argument("--prices", type=Path, default=Path("config/prices.yaml"), metavar="FILE")
    parser.add_argument("--store", default=".", help="folder or gs://… of runs/: how long past runs took")
    parser.add_argument("--requests-per-day", type=float, default=10_000.0, metavar="N", help="default %(default)g")
    parser.add_argument(
        "--runs-per-month", type=float, default=4.33, metavar="N", help="default %(default)g, one a week"
    )
    chosen = parser.parse_args(arguments)
    try:
        prices = load_prices(chosen.prices)
        month = month_estimate(
            prices,
            requests_per_day=number(chosen.requests_per_day, "--requests-per-day"),
            runs_per_month=number(chosen.runs_per_month, "--runs-per-month"),
        )
        run = run_estimate(prices, chosen.store)
    except (HimariError, OSError) as error:
        print(f"cost: {error}", file=sys.stderr)
        return 2
    print(render(prices, run, month, chosen.runs_per_month))
    return 1 if _total_cad(prices, run, month, chosen.runs_per_month) > prices.budget_cad else 0


if __name__ == "__main__":
    sys.exit(main())
