"""The price table ``config/prices.yaml``, read strictly: each figure with its source and the day it was read there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any, Final

from layer3 import settings
from layer3.errors import ConfigurationError

__all__ = ["GPU_STEPS", "Assumptions", "Line", "Price", "Prices", "load_prices", "number"]

#: Steps whose task has a GPU in the compiled pipeline (``tests/pipelines/test_cost.py`` compares).
GPU_STEPS: Final = frozenset({"train", "walk"})


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
            name: number(value, f"assumptions.{name}") for name, value in assumed.items() if name != "step_minutes"
        }
        for name in sorted(GPU_STEPS - set(steps)):
            raise ConfigurationError(f"assumptions.step_minutes.{name} is missing")
        minutes = {str(name): number(value, f"assumptions.step_minutes.{name}") for name, value in steps.items()}
        return Prices(
            prices={name: _price(name, listed[name]) for name in _NAMES},
            usd_to_cad=number(rate["value"], "usd_to_cad.value", positive=True),
            rate_read=_day(rate["read"], "usd_to_cad.read"),
            budget_cad=number(budget["cad"], "budget.cad"),
            budget_months=int(number(budget["months"], "budget.months", positive=True)),
            assumptions=Assumptions(step_minutes=minutes, **numbers),
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _price(name: str, found: object) -> Price:
    where = f"prices.{name}"
    table = _mapping(found, where, ("usd", "per", "source", "read"), ("free", "note"))
    source = table["source"]
    if not isinstance(source, str) or not source.startswith("https://"):
        raise ConfigurationError(f"{where}.source is {source!r}, expected the https:// address where the figure stands")
    return Price(
        name=name,
        usd=number(table["usd"], f"{where}.usd"),
        per=str(table["per"]),
        source=source,
        read=_day(table["read"], f"{where}.read"),
        free=number(table.get("free", 0.0), f"{where}.free"),
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


def number(value: object, where: str, *, positive: bool = False) -> float:
    """``value``, found at ``where``, as a float; a ConfigurationError where it is none, not finite, or too small."""
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
