"""The arguments of one decision as JSON, as they come in a stream and as they stand in the decision log.

::

    {"signal": {"strategy_id": "momentum-1h", "symbol": "BTC-USDT", "action": "buy", "confidence": 0.8,
                "risk_score": 0.2, "regime": "trending_up", "timestamp_ns": 1767258000000000000},
     "cascade": {"funding_rate": 0.0004}, "current_price": 87000.0, "price_timestamp_ns": 1767258000000000000,
     "current_position_usd": 0.0, "entry_price": null, "recent_trades": [{"trade_return": 0.01, "trade_id": "t1"}]}

``signal`` and ``current_price`` are required. Here the shape is checked: what the fields are called and which
must be there. Whether a value can be used the engine says, so that one word stands for it everywhere.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from layer3.errors import DataError
from layer3.types import Action, CascadeIndicators, Regime, TacticalSignal

__all__ = ["ARGUMENTS", "MessageError", "arguments", "decoded", "named"]

#: Keyword arguments of the engine's ``calculate_position``.
ARGUMENTS: Final = (
    "signal",
    "cascade",
    "current_price",
    "current_position_usd",
    "entry_price",
    "recent_trades",
    "price_timestamp_ns",
)
_REQUIRED: Final = ("signal", "current_price")
_ENUMERATED: Final[Mapping[str, type[StrEnum]]] = {"action": Action, "regime": Regime}


class MessageError(DataError):
    """A message that has not the shape above; ``field`` is the dotted name of what is wrong, "" for the whole."""

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        super().__init__(f"{field}: {problem}" if field else problem)


def decoded(text: bytes) -> Mapping[str, Any]:
    """The object of one JSON document.

    Raises
    ------
    MessageError : not JSON, no object, or a field in it that is given twice
    """
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise MessageError("", f"not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise MessageError("", f"not JSON: {error}") from error
    if not isinstance(document, Mapping):
        raise MessageError("", f"it is {_short(document)}, expected an object of fields")
    return document


def arguments(found: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's arguments from a decoded document; what is left out is left out, for the engine's defaults.

    Raises
    ------
    MessageError : not of the shape above
    """
    _known(found, ARGUMENTS, "")
    for name in _REQUIRED:
        if name not in found:
            raise MessageError(name, "it is missing")
    ready = dict(found)
    ready["signal"] = _built(TacticalSignal, found["signal"], "signal")
    ready["cascade"] = _built(CascadeIndicators, found.get("cascade", {}), "cascade")
    ready["recent_trades"] = found.get("recent_trades")
    return ready


def named(found: Mapping[str, Any], kind: str, name: str, numbers: tuple[str, ...], *, missing: bool) -> list[Any]:
    """The values of ``{kind: {name: text, number: …}}`` in this order; with ``missing`` a number may be null.

    Raises
    ------
    MessageError : not of this shape
    """
    given = found[kind]
    if set(found) != {kind} or not isinstance(given, Mapping) or set(given) != {name, *numbers}:
        raise MessageError(kind, f"expected an object of {', '.join((name, *numbers))}, and nothing beside it")
    if not isinstance(given[name], str):
        raise MessageError(f"{kind}.{name}", f"it is {given[name]!r}, expected a name")
    for number in numbers:
        value = given[number]
        if not (value is None and missing) and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise MessageError(f"{kind}.{number}", f"it is {value!r}, expected a number{' or null' if missing else ''}")
    return [given[name], *(given[number] for number in numbers)]


def _built(kind: type[Any], value: object, where: str) -> Any:
    if not isinstance(value, Mapping):
        return value  # the engine refuses it
    fields = dataclasses.fields(kind)
    _known(value, tuple(field.name for field in fields), where)
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in value:
            raise MessageError(f"{where}.{field.name}", "it is missing")
    return kind(**{name: _field(name, entry) for name, entry in value.items()})


def _field(name: str, value: object) -> object:
    """``value`` as the engine expects it; one that does not fit is left for the engine to refuse."""
    kind = _ENUMERATED.get(name)
    return value if kind is None or not isinstance(value, str) or value not in list(kind) else kind(value)


def _known(found: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in found:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(names)}"
            raise MessageError(f"{where}.{name}" if where else name, f"no such field; {hint}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise MessageError(next(name for name in names if names.count(name) > 1), "it is given twice")
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
