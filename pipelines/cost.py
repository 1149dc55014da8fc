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
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any, Final

from layer3 import settings, storage
from layer3.errors import ConfigurationError, HimariError
from pipelines.manifest import parse_manifest

__all__ = ["Estimate", "Line", "Price", "Prices", "load_prices", "month_estimate", "run_estimate"]

#: Steps whose task has a GPU in the compiled pipeline (``tests/pipelines/test_cost.py`` compares).
GPU_STEPS: Final = frozenset({"train", "walk"})
#: Runs whose durations the estimate is the median of.
_RUNS: Final = 5
#: Newest names below runs/ that are looked at: a run id begins with its time.
_LOOKED_AT: Final = 50
_DAYS: Final = 365.25 / 12
_GIB: Final = 2.0**30


@dataclass(frozen=True)
class Price:
    """``usd`` for one ``per``, after ``free`` of them in a month.

    ``read`` is the day on which somebody saw the figure at ``source``, None if nobody did.
    """

    name: str
    usd: float
    per: str
    source: str
    read: date | None
    free: float = 0.0
    note: str = ""

    def of(self, quantity: float) -> float:
        """USD for ``quantity`` in a month."""
        return self.usd * max(quantity - self.free, 0.0)


@dataclass(frozen=True)
class Assumptions:
    """What is assumed until it is measured, or is a matter of use; minutes, GiB, MiB, bytes as the names say."""

    start_minutes: float
    gpu_start_minutes: float
    build_minutes: float
    seconds_per_request: float
    bytes_per_answer: float
    log_bytes_per_request: float
    stored_gib: float
    stored_gib_per_run: float
    writes_per_run: float
    image_gib: float
    metrics_mib: float
    secret_versions: float
    step_minutes: Mapping[str, float]


_NAMES: Final = (
    "vertex_pipeline_run",
    "vertex_n1_standard_4",
    "vertex_tesla_t4",
    "vertex_e2_standard_4",
    "run_vcpu_second",
    "run_gib_second",
    "run_million_requests",
    "storage_gib_month",
    "storage_thousand_writes",
    "registry_gib_month",
    "build_minute",
    "logging_gib",
    "monitoring_mib",
    "egress_gib",
    "secret_version_month",
)


@dataclass(frozen=True)
class Prices:
    """A price table: ``prices`` by name, how many CAD a USD is, and the budget in CAD over ``budget_months``."""

    prices: Mapping[str, Price]
    usd_to_cad: float
    rate_read: date | None
    budget_cad: float
    budget_months: int
    assumptions: Assumptions

    def line(self, name: str, what: str, quantity: float) -> Line:
        price = self.prices[name]
        return Line(what, quantity, price.per, price.of(quantity))


@dataclass(frozen=True)
class Line:
    """One thing that is paid for: ``quantity`` of ``unit`` for ``usd``, the free part already taken off."""

    what: str
    quantity: float
    unit: str
    usd: float


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


def load_prices(path: Path) -> Prices:
    """Read a price table.

    Raises
    ------
    ConfigurationError : the file is missing, not YAML, lacks a price, holds one that nobody knows, or a figure that
        is no price; the message names file, key and value
    """
    document = settings.document(settings.read(path, "the price table"), str(path))
    try:
        table = _mapping(document, "", ("usd_to_cad", "budget", "prices", "assumptions"))
        rate = _mapping(table["usd_to_cad"], "usd_to_cad", ("value", "source", "read"), ("note",))
        budget = _mapping(table["budget"], "budget", ("cad", "months"))
        listed = _mapping(table["prices"], "prices", _NAMES)
        assumed = _mapping(table["assumptions"], "assumptions", tuple(field.name for field in fields(Assumptions)))
        steps = assumed["step_minutes"]
        if not isinstance(steps, Mapping) or not steps:
            raise ConfigurationError(f"assumptions.step_minutes is {steps!r}, expected minutes by the name of a step")
        numbers = {
            name: _number(value, f"assumptions.{name}") for name, value in assumed.items() if name != "step_minutes"
        }
        minutes = {str(name): _number(value, f"assumptions.step_minutes.{name}") for name, value in steps.items()}
        return Prices(
            prices={name: _price(name, listed[name]) for name in _NAMES},
            usd_to_cad=_number(rate["value"], "usd_to_cad.value", positive=True),
            rate_read=_day(rate["read"], "usd_to_cad.read"),
            budget_cad=_number(budget["cad"], "budget.cad"),
            budget_months=int(_number(budget["months"], "budget.months", positive=True)),
            assumptions=Assumptions(step_minutes=minutes, **numbers),
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def run_estimate(prices: Prices, store: str) -> Estimate:
    """What one training run on Vertex costs, by the durations of the newest runs below ``store``/runs."""
    assumed = prices.assumptions
    measured = _durations(store)
    if measured:
        steps = {
            step: (
                statistics.median(run.get(step, (0, 0.0))[0] for run in measured),
                statistics.median(run.get(step, (0, 0.0))[1] for run in measured),
            )
            for step in {name for run in measured for name in run}
        }
        basis = f"work of the steps: median of {len(measured)} past runs; starting a task: assumed"
    else:
        # A verdict goes one way or the other; the dearer way is assumed.
        steps = {step: (1.0, minutes) for step, minutes in assumed.step_minutes.items() if step != "reject"}
        basis = f"assumed: there is no successful run in {store} yet"
    gpu = sum(tasks * assumed.gpu_start_minutes + work for step, (tasks, work) in steps.items() if step in GPU_STEPS)
    cpu = sum(tasks * assumed.start_minutes + work for step, (tasks, work) in steps.items() if step not in GPU_STEPS)
    return Estimate(
        (
            prices.line("vertex_pipeline_run", "pipeline run", 1.0),
            prices.line("vertex_n1_standard_4", "n1-standard-4 with the GPU", gpu / 60.0),
            prices.line("vertex_tesla_t4", "NVIDIA T4", gpu / 60.0),
            prices.line("vertex_e2_standard_4", "e2-standard-4, the other steps", cpu / 60.0),
            prices.line("storage_thousand_writes", "objects written", assumed.writes_per_run / 1000.0),
        ),
        prices.usd_to_cad,
        basis,
    )


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


def _durations(store: str) -> list[dict[str, tuple[int, float]]]:
    """Tasks and minutes by step of each of the newest successful runs; a step in a loop has several tasks."""
    found: list[tuple[str, dict[str, tuple[int, float]]]] = []
    runs = storage.join(store, "runs")
    for name in sorted(storage.list_names(runs), reverse=True)[:_LOOKED_AT]:
        try:
            manifest = parse_manifest(storage.read_bytes(storage.join(runs, name, "manifest.json")))
        except (OSError, ValueError, HimariError):
            continue  # the index page of the runs names what cannot be read; an estimate goes by the others
        steps: dict[str, tuple[int, float]] = {}
        for step in manifest["steps"]:
            if step["status"] == "SUCCEEDED" and step["seconds"] and step["component"]:
                component = step["component"].removeprefix("comp-")
                tasks, minutes = steps.get(component, (0, 0.0))
                steps[component] = (tasks + 1, minutes + step["seconds"] / 60.0)
        if manifest["status"] == "SUCCEEDED" and "train" in steps:
            found.append((manifest["started"], steps))
    found.sort(reverse=True, key=lambda pair: pair[0])
    return [steps for _, steps in found[:_RUNS]]


def _price(name: str, found: object) -> Price:
    where = f"prices.{name}"
    table = _mapping(found, where, ("usd", "per", "source", "read"), ("free", "note"))
    source = table["source"]
    if not isinstance(source, str) or not source.startswith("https://"):
        raise ConfigurationError(f"{where}.source is {source!r}, expected the https:// address where the figure stands")
    return Price(
        name=name,
        usd=_number(table["usd"], f"{where}.usd"),
        per=str(table["per"]),
        source=source,
        read=_day(table["read"], f"{where}.read"),
        free=_number(table.get("free", 0.0), f"{where}.free"),
        note=str(table.get("note", "")),
    )


def _mapping(found: object, where: str, names: Sequence[str], optional: Sequence[str] = ()) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise ConfigurationError(f"{where or 'the table'} is {found!r}, expected {', '.join(names)}")
    prefix = f"{where}." if where else ""
    for key in found:
        if key not in names and key not in optional:
            raise ConfigurationError(settings.unknown(f"{prefix}{key}", str(key), (*names, *optional)))
    for name in names:
        if name not in found:
            raise ConfigurationError(f"{prefix}{name} is missing")
    return found


def _number(value: object, where: str, *, positive: bool = False) -> float:
    least = "above 0" if positive else "of at least 0"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ConfigurationError(f"{where} is {value!r}, expected a number {least}")
    if positive and value == 0:
        raise ConfigurationError(f"{where} is {value!r}, expected a number {least}")
    return float(value)


def _day(value: object, where: str) -> date | None:
    if value is None or (isinstance(value, date) and not hasattr(value, "hour")):
        return value
    raise ConfigurationError(f"{where} is {value!r}, expected a day (2026-09-08), or null where nobody has read it yet")


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
            requests_per_day=_number(chosen.requests_per_day, "--requests-per-day"),
            runs_per_month=_number(chosen.runs_per_month, "--runs-per-month"),
        )
        run = run_estimate(prices, chosen.store)
    except (HimariError, OSError) as error:
        print(f"cost: {error}", file=sys.stderr)
        return 2
    print(render(prices, run, month, chosen.runs_per_month))
    return 1 if _total_cad(prices, run, month, chosen.runs_per_month) > prices.budget_cad else 0


if __name__ == "__main__":
    sys.exit(main())
