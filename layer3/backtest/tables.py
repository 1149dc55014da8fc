"""The words and numbers of a report: names and units of metrics, the monthly table, the context."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from layer3.backtest.record import (
    BUY_AND_HOLD,
    CHAMPION,
    FLAT,
    KELLY_ONLY,
    POLICY,
    Criterion,
    Difference,
    Evidence,
    Interval,
)

__all__ = [
    "METRICS",
    "MISSING",
    "STRATEGIES",
    "Kind",
    "Period",
    "Quantity",
    "context_rows",
    "criterion_rows",
    "difference_words",
    "format_number",
    "interval_text",
    "metric_groups",
    "missing_sections",
    "monthly_returns",
    "name_of",
    "plain",
    "quantity",
    "told",
    "why_missing",
]

Kind = Literal["percent", "ratio", "probability", "multiple", "money", "count", "number"]
MISSING: Final = "n/a"

STRATEGIES: Final[Mapping[str, str]] = {
    POLICY: "Policy",
    KELLY_ONLY: "Kelly only",
    CHAMPION: "Champion",
    BUY_AND_HOLD: "Buy and hold",
    FLAT: "Flat",
}


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a number is called, what it is measured in, and the group of the table that it stands in."""

    label: str
    kind: Kind
    unit: str = ""
    group: str = "Other"


METRICS: Final[Mapping[str, Quantity]] = {
    "total_return": Quantity("Total return", "percent", "whole period", "Return"),
    "annual_return": Quantity("Annual return", "percent", "per year, compounded", "Return"),
    "max_drawdown": Quantity("Maximum drawdown", "percent", "from the highest equity before", "Risk"),
    "volatility": Quantity("Volatility", "percent", "per year", "Risk"),
    "mean_exposure": Quantity("Mean exposure", "percent", "absolute, of equity", "Risk"),
    "sharpe": Quantity("Sharpe ratio", "ratio", "annualised", "Return for the risk taken"),
    "sortino": Quantity("Sortino ratio", "ratio", "annualised", "Return for the risk taken"),
    "calmar": Quantity("Calmar ratio", "ratio", "annual return over maximum drawdown", "Return for the risk taken"),
    "probabilistic_sharpe": Quantity(
        "Probabilistic Sharpe ratio", "probability", "probability that Sharpe is above 0", "Return for the risk taken"
    ),
    "multiplier_mean": Quantity("Mean multiplier", "ratio", "where the chain holds something", "Trading"),
    "multiplier_sd": Quantity("Spread of the multiplier", "ratio", "standard deviation", "Trading"),
    "trades": Quantity("Closed trades", "count", "round trips", "Trading"),
    "win_rate": Quantity("Win rate", "percent", "of closed trades", "Trading"),
    "turnover": Quantity("Turnover", "multiple", "equity per year", "Trading"),
    "costs_paid": Quantity("Costs paid", "money", "commission and slippage, in currency", "Trading"),
}
_CRITERIA: Final[Mapping[str, Quantity]] = {
    "deflated_sharpe": Quantity("Deflated Sharpe ratio", "probability"),
    "track_record": Quantity("Months of track record", "ratio"),
    "permutation_p": Quantity("Permutation p value", "probability"),
    "versus_kelly": Quantity("Against Kelly only", "ratio"),
    "kelly_margin": Quantity("Against Kelly only, at worst", "ratio"),
    "less_risk": Quantity("Less risk than Kelly only", "percent"),
    "versus_champion": Quantity("Against the champion", "ratio"),
    "champion_margin": Quantity("Against the champion, at worst", "ratio"),
    "not_degenerate": Quantity("Spread of the multiplier", "ratio"),
    "degeneracy_findings": Quantity("Findings of degeneracy", "count"),
    "no_leak": Quantity("Leaks of the future", "count"),
    "walk_forward": Quantity("Walk-forward, probabilistic Sharpe", "probability"),
}
_CONTEXT: Final[Mapping[str, str]] = {
    "symbol": "Market",
    "source": "Data",
    "period": "Held-out test",
    "training_period": "Training",
    "interval_seconds": "Bar interval",
    "signals": "Tactical signals",
    "data_sha256": "Data sha256",
    "code_version": "Code version",
    "model_id": "Model",
    "policy_sha256": "Policy sha256",
    "seed": "Seed",
    "contract": "State contract",
    "costs": "Costs",
    "capital": "Capital at the start",
}


def quantity(key: str) -> Quantity:
    """What is known about a metric or criterion called ``key``; a readable default for any other."""
    slug = "_".join(key.lower().split())
    known = METRICS.get(slug) or _CRITERIA.get(slug)
    return known or Quantity(key.replace("_", " ").strip().capitalize() or "(unnamed)", "number")


def name_of(track: str) -> str:
    """A track's name for a reader."""
    return STRATEGIES.get(track) or track.replace("_", " ").capitalize()


def format_number(value: float | None, kind: Kind, *, signed: bool = False, digits: int | None = None) -> str:
    """Write a number for a reader; ``None`` and what is not finite become "n/a".

    ``digits`` overrides the decimals of ``kind``. The minus is a real minus, and zero has no sign.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if kind == "probability" and digits is None and 0.9995 <= value < 1.0:
        return "> 0.999"  # no estimate from a finite record is a certainty
    scaled = value * 100.0 if kind == "percent" else value
    if kind == "number" and digits is None:
        text = f"{scaled:+.4g}" if signed else f"{scaled:.4g}"
    else:
        default = {"percent": 1, "ratio": 2, "probability": 3, "multiple": 1, "money": 0, "count": 0, "number": 4}
        places = default[kind] if digits is None else digits
        text = f"{scaled:{'+' if signed else ''},.{places}f}"
    if not any(c in "123456789" for c in text):
        text = text.lstrip("+-")
    return text.replace("-", "−") + {"percent": "%", "multiple": "×"}.get(kind, "")


def interval_text(interval: Interval, kind: Kind, *, signed: bool = False) -> str:
    """Both ends of an interval: "0.37 to 2.44"; "n/a" where it has none."""
    if interval.low is None or interval.high is None:
        return MISSING
    return " to ".join(format_number(end, kind, signed=signed) for end in (interval.low, interval.high))


def difference_words(difference: Difference) -> str:
    """What the interval says of the policy, to be followed by the name of the other: "better than"."""
    low, high = difference.sharpe.low, difference.sharpe.high
    if low is None or high is None:
        return "not compared with"
    if low > 0.0:
        return "better than"
    return "worse than" if high < 0.0 else "not told apart from"


def told(evidence: Evidence, section: str) -> tuple[str, ...]:
    """What the evidence says is missing of ``section``."""
    return (evidence.problems[section],) if section in evidence.problems else ()


def missing_sections(evidence: Evidence) -> list[tuple[str, str]]:
    """What could not be computed and why: sections that share a sentence are one entry, in the order they stand in."""
    names: dict[str, list[str]] = {}
    for section, sentence in evidence.problems.items():
        names.setdefault(sentence, []).append(section.replace("_", " "))
    return [(", ".join(sections).capitalize(), sentence) for sentence, sections in names.items()]


def why_missing(evidence: Evidence, section: str) -> tuple[str, ...]:
    """What stands in the place of a section that is not there."""
    return told(evidence, section) or ("This evaluation holds nothing on it.",)


def criterion_rows(criteria: Iterable[Criterion]) -> list[dict[str, Any]]:
    """Each criterion ready for a table: ``label``, ``value``, ``comparison``, ``limit``, ``passed``, ``sentence``.

    Value and limit get the decimals that tell them apart: 0.9499 against 0.95 never reads "0.95 fails 0.95".
    """
    rows = []
    for criterion in criteria:
        about = quantity(criterion.name)
        value, limit = (format_number(v, about.kind) for v in (criterion.value, criterion.limit))
        digits = 1
        while value == limit and criterion.value != criterion.limit and digits < 12:
            digits += 1
            value, limit = (format_number(v, about.kind, digits=digits) for v in (criterion.value, criterion.limit))
        rows.append(
            {
                "label": about.label,
                "value": value,
                "comparison": {">=": "≥", "<=": "≤"}[criterion.comparison],
                "limit": limit,
                "passed": criterion.passed,
                "sentence": criterion.sentence,
            }
        )
    return rows


def metric_groups(
    metrics: Mapping[str, Mapping[str, float | None]], tracks: Sequence[str]
) -> list[tuple[str, list[tuple[Quantity, list[str]]]]]:
    """All metrics as groups of rows, one text per track; keys this module does not know come last."""
    present = dict.fromkeys(key for track in tracks for key in metrics.get(track, {}))
    keys = [key for key in METRICS if key in present] + [key for key in present if key not in METRICS]
    groups: dict[str, list[tuple[Quantity, list[str]]]] = {}
    for key in keys:
        about = quantity(key)
        texts = [format_number(metrics.get(track, {}).get(key), about.kind) for track in tracks]
        groups.setdefault(about.group, []).append((about, texts))
    return list(groups.items())


@dataclass(frozen=True, slots=True)
class Period:
    """Return over the part of a calendar month or year (UTC) that the record covers; ``None`` cannot be computed."""

    key: str
    value: float | None
    partial: bool


def monthly_returns(
    timestamps: NDArray[np.int64], equity: NDArray[np.float64], interval_ns: int
) -> tuple[list[Period], list[Period]]:
    """Compound returns per calendar month ("2024-03") and per calendar year ("2024"), UTC.

    Decision t is taken in the bar that opens at ``timestamps[t]`` (n,) and earns its return over the
    bar after it, from ``equity[t]`` to ``equity[t + 1]`` (n + 1,); the return belongs to the month in
    which that next bar opens. The returns of all months compound to the return of the whole track.
    """
    earned = (timestamps + interval_ns).astype("datetime64[ns]")
    return _periods(earned, equity, interval_ns, "M"), _periods(earned, equity, interval_ns, "Y")


def _periods(
    earned: NDArray[np.datetime64], equity: NDArray[np.float64], interval_ns: int, unit: Literal["M", "Y"]
) -> list[Period]:
    labels, starts = np.unique(earned.astype(f"datetime64[{unit}]"), return_index=True)
    stops = [*starts[1:], len(earned)]
    periods = []
    for label, start, stop in zip(labels, starts, stops, strict=True):
        opening = float(equity[start])
        value = float(equity[stop]) / opening - 1.0 if opening > 0.0 else None
        begins, ends = (edge.astype("datetime64[ns]").astype(np.int64) for edge in (label, label + 1))
        first, last = (int(earned[i].astype(np.int64)) for i in (start, stop - 1))
        periods.append(Period(str(label), value, first - begins >= interval_ns or ends - last > interval_ns))
    return periods


def context_rows(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was judged, as (name, text): the known entries in reading order, "n/a" where missing, then any others."""
    rows = [(label, _context_text(key, context.get(key))) for key, label in _CONTEXT.items()]
    others = [key for key in context if key not in _CONTEXT and key != "synthetic"]
    return rows + [(quantity(key).label, plain(context[key])) for key in others]


def _context_text(key: str, value: Any) -> str:
    if key in ("period", "training_period") and isinstance(value, Mapping):
        return " to ".join(_moment(value.get(side)) for side in ("start", "end"))
    if key == "interval_seconds" and isinstance(value, int | float) and math.isfinite(value):
        for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")):
            if value >= size and value % size == 0:
                count = int(value // size)
                return f"{count} {unit}" + ("s" if count > 1 else "")
    if key == "costs" and isinstance(value, Mapping):
        return ", ".join(
            f"{name} {rate * 1e4:g} bps" if isinstance(rate, int | float) else f"{name} {plain(rate)}"
            for name, rate in value.items()
        )
    if key == "capital" and isinstance(value, int | float):
        return format_number(value, "money")
    return plain(value)


def _moment(value: Any) -> str:
    text = plain(value)
    return text.replace("T", " ").removesuffix("+00:00").removesuffix("Z").removesuffix(":00") + " UTC" * ("T" in text)


def plain(value: Any) -> str:
    """A value of a context as text: mappings and lists in one line, "n/a" for nothing."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, float):
        return format_number(value, "number", digits=None) if abs(value) < 1e4 else f"{value:,.2f}"
    if isinstance(value, Mapping):
        inner = {key: f"({plain(item)})" if isinstance(item, Mapping) else plain(item) for key, item in value.items()}
        return ", ".join(f"{key} {text}" for key, text in inner.items()) or MISSING
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or MISSING
    return str(value)
