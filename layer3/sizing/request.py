"""One sizing request as JSON: strictly read, so that a misspelt field is an error and not a default."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from layer3 import contract
from layer3.errors import DataError
from layer3.sizing.validation import find_problem
from layer3.types import Action, CascadeIndicators, Regime, TacticalSignal

__all__ = ["EXAMPLE", "Market", "SizingRequest", "parse_request", "read_request"]

_T = TypeVar("_T")

#: The built-in request, in the file's own format.
EXAMPLE: Final[Mapping[str, Any]] = {
    "signal": {
        "strategy_id": "momentum-1h",
        "symbol": "BTC-USDT",
        "action": "buy",
        "confidence": 0.85,
        "risk_score": 0.25,
        "regime": "trending_up",
        "timestamp_ns": 1_767_258_000_000_000_000,
        "expected_return": 0.05,
        "predicted_volatility": 0.03,
        "sentiment_score": 0.68,
    },
    "cascade": {
        "funding_rate": 0.0004,
        "oi_change_pct": -0.02,
        "volume_ratio": 1.4,
        "onchain_whale_pressure": 0.35,
        "exchange_netflow_zscore": 0.6,
    },
    "market": {
        "return_1h": 0.004,
        "return_4h": 0.011,
        "volatility": 0.028,
        "exposure": 0.0,
        "unrealised_pnl": 0.0,
        "win_rate": 0.6,
    },
    "portfolio_value": 100_000.0,
}


@dataclass(frozen=True, slots=True)
class Market:
    """What the policy's state needs beside the signal.

    Returns of the close and the open position's gain as fractions; ``volatility`` the sd of the
    daily return (``None``: the signal's, or the chain's default); ``exposure`` the position held
    now as a signed fraction of equity; ``win_rate`` of the last closed trades, in [0, 1].
    """

    return_1h: float = 0.0
    return_4h: float = 0.0
    volatility: float | None = None
    exposure: float = 0.0
    unrealised_pnl: float = 0.0
    win_rate: float = contract.NEUTRAL_WIN_RATE


@dataclass(frozen=True, slots=True)
class SizingRequest:
    """A signal, its indicators, the market and the portfolio's value in dollars."""

    signal: TacticalSignal
    cascade: CascadeIndicators
    market: Market
    portfolio_value: float


_MARKET_RANGES: Final = {
    "return_1h": (-1.0, 10.0),
    "return_4h": (-1.0, 10.0),
    "volatility": (0.0, 5.0),
    "exposure": (-1.0, 1.0),
    "unrealised_pnl": (-1.0, 10.0),
    "win_rate": (0.0, 1.0),
}
_SECTIONS: Final = ("signal", "cascade", "market", "portfolio_value")


def read_request(path: Path) -> SizingRequest:
    """Read and check a JSON file; raises :class:`DataError` that names the field and what was expected."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file in UTF-8: {error.reason} at byte {error.start}") from error
    try:
        document = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    try:
        return parse_request(document)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def parse_request(document: object) -> SizingRequest:
    """Check a decoded request of the shape of :data:`EXAMPLE`.

    ``signal`` and ``portfolio_value`` are required, as are the fields of a signal that have no
    default; ``cascade``, ``market`` and the rest may be left out or null.

    Raises
    ------
    DataError : an unknown or missing field, a wrong type, or a value out of its range
    """
    sections = _mapping(document, "the document")
    _known(sections, _SECTIONS, "")
    missing = [name for name in ("signal", "portfolio_value") if name not in sections]
    if missing:
        raise DataError(f"{missing[0]} is missing")
    signal = _fields(TacticalSignal, sections["signal"], "signal")
    cascade = _fields(CascadeIndicators, sections.get("cascade"), "cascade")
    market = _fields(Market, sections.get("market"), "market")
    problem = find_problem(signal) or find_problem(cascade)
    if problem is not None:
        raise DataError(problem)
    for name, (low, high) in _MARKET_RANGES.items():
        value = getattr(market, name)
        if value is not None and not low <= value <= high:
            raise DataError(f"market.{name} is {value!r}, expected a number in [{low:g}, {high:g}]")
    value = _number(sections["portfolio_value"], "portfolio_value")
    if not 0.0 < value <= 1e15:
        raise DataError(f"portfolio_value is {value!r}, expected dollars above 0, at most 1e15")
    return SizingRequest(signal, cascade, market, value)


def _fields(kind: type[_T], values: object, where: str) -> _T:
    """A dataclass from a mapping: every field known, every value of the field's type."""
    found = _mapping({} if values is None else values, where)
    specs = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    _known(found, tuple(specs), where)
    ready: dict[str, Any] = {}
    for name, spec in specs.items():
        path, value = f"{where}.{name}", found.get(name)
        if value is None:
            if spec.default is dataclasses.MISSING:
                raise DataError(f"{path} is missing, expected {_WANTED.get(name, 'a number')}")
            continue
        ready[name] = _READERS.get(name, _number)(value, path)
    return kind(**ready)


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where} is {value!r}, expected an object of fields")
    return value


def _known(found: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in found:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(names)}"
            raise DataError(f"unknown field {f'{where}.{name}' if where else name!r}; {hint}")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 100:
        shown = repr(value)
        shown = shown if len(shown) <= 110 else f"{shown[:107]}..."
        raise DataError(f"{where} is {shown}, expected a name of at most 100 printable characters")
    return value


def _whole(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where} is {value!r}, expected a whole number of nanoseconds, UTC")
    return value


def _one_of(kind: type[StrEnum]) -> Callable[[object, str], StrEnum]:
    def read(value: object, where: str) -> StrEnum:
        if not isinstance(value, str) or value not in list(kind):
            raise DataError(f"{where} is {value!r}, expected one of {', '.join(kind)}")
        return kind(value)

    return read


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where} is {value!r}, expected a number")
    try:
        return float(value)
    except OverflowError as error:
        raise DataError(f"{where} is too large, expected a finite number") from error


def _no_constant(name: str) -> NoReturn:
    raise DataError(f"the number {name} is not allowed, every number must be finite")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"field {twice!r} is given twice")
    return result


_READERS: Final[Mapping[str, Callable[[object, str], object]]] = {
    "strategy_id": _text,
    "symbol": _text,
    "action": _one_of(Action),
    "regime": _one_of(Regime),
    "timestamp_ns": _whole,
}
_WANTED: Final = {
    "strategy_id": "a name",
    "symbol": "a name",
    "action": f"one of {', '.join(Action)}",
    "regime": f"one of {', '.join(Regime)}",
    "timestamp_ns": "a whole number of nanoseconds, UTC",
}
