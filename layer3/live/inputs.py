"""What a caller hands to the engine, and its check: whatever it is, it becomes plain numbers or a sentence.

Nothing of a foreign object is called: not its ``__float__``, not its ``__repr__``. Plain numbers are Python's
and numpy's; ranges of a signal's and the feeds' numbers are the chain's business
(:func:`layer3.sizing.validation.find_problem`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from layer3.errors import DataError
from layer3.types import Action, CascadeIndicators, ClosedTrade, Regime, TacticalSignal

__all__ = [
    "Checked",
    "Inputs",
    "check",
    "is_title",
    "number_or_nan",
    "plain_json",
    "plain_value",
    "position_worth",
    "read_back",
    "shown",
]

#: Dollars; beyond these, and returns beyond that, products and quotients would not stay finite.
_LARGEST: Final = 1e15
_LEAST_PRICE: Final = 1e-15
_LARGEST_RETURN: Final = 1e6
_WIDEST: Final = 2**1_000
_LONGEST_NAME: Final = 200
#: What is deeper or longer is told by its type alone.
_DEEPEST: Final = 4
_LONGEST_LIST: Final = 1_000_000
_SIGNAL_NUMBERS: Final = (
    "confidence", "risk_score", "expected_return", "predicted_volatility", "signal_strength", "sentiment_score",
)  # fmt: skip
_FEEDS: Final = tuple(field.name for field in dataclasses.fields(CascadeIndicators))
#: What a trade's numbers may be called in a mapping, by what they are.
_TRADE_KEYS: Final = {
    "trade_return": ("trade_return", "return", "realized_return"),
    "pnl_usd": ("pnl_usd", "pnl", "realized_pnl"),
    "closed_at_ns": ("closed_at_ns", "timestamp_ns"),
    "trade_id": ("trade_id", "id"),
}

_NOT_FINITE: Final = ("nan", "inf", "-inf")
#: How what JSON cannot say is written, and what stands before a text that would be read back as something else.
_TYPE, _TEXT = "of type ", "text "
_BITS: Final = re.compile(r"a whole number of ([0-9]{1,9}) bits")
_WORDS: Final = frozenset((*_NOT_FINITE, *Action, *Regime))


class Inputs(NamedTuple):
    """What a caller gave, as it came; ``now_ns`` is the engine's clock when it came (-1 where that failed)."""

    now_ns: int
    signal: Any
    cascade: Any
    current_price: Any
    current_position_usd: Any
    entry_price: Any
    recent_trades: Any
    price_timestamp_ns: Any


class Checked(NamedTuple):
    """The same as plain numbers. ``entry_price`` is ``None`` where there is none."""

    signal: TacticalSignal
    cascade: CascadeIndicators
    price: float
    position_usd: float
    entry_price: float | None
    trades: tuple[ClosedTrade, ...]
    price_ns: int | None


def check(inputs: Inputs, most_trades: int, min_feeds: int) -> Checked:
    """Plain numbers of plain types, none of them infinite where the engine itself computes with it.

    Raises
    ------
    DataError : the first thing that cannot be used, with what was expected
    """
    signal = _signal(inputs.signal)
    cascade = _cascade(inputs.cascade, min_feeds)
    price = _number(inputs.current_price, "current_price", _LEAST_PRICE, _LARGEST)
    position = _number(inputs.current_position_usd, "current_position_usd", -_LARGEST, _LARGEST)
    entry = inputs.entry_price
    if entry is not None:
        entry = _plain(entry, "entry_price")
        entry = _number(entry, "entry_price", _LEAST_PRICE, _LARGEST) if entry != 0.0 else None
    stamp = inputs.price_timestamp_ns
    if stamp is not None:
        stamp = _time(stamp, "price_timestamp_ns")
    return Checked(signal, cascade, price, position, entry, _trades(inputs.recent_trades, most_trades), stamp)


def number_or_nan(value: Any) -> float | None:
    """A plain number as a float, ``None`` as it is, and anything else as NaN."""
    try:
        return None if value is None else _plain(value, "")
    except DataError:
        return math.nan


def position_worth(usd: Any, quantity: Any, price: Any) -> Any:
    """The position in dollars, told in dollars or in units; what cannot be used comes out for :func:`check`."""
    if (type(quantity) in (float, int) and quantity == 0) or type(usd) not in (float, int) or usd != 0:
        return usd
    try:
        return _plain(quantity, "current_position_qty") * _plain(price, "current_price")
    except DataError:
        return quantity


def _signal(signal: Any) -> TacticalSignal:
    if type(signal) is not TacticalSignal:
        raise DataError(f"signal is {shown(signal)}, expected a TacticalSignal")
    for name in ("strategy_id", "symbol"):
        text = getattr(signal, name)
        if not is_title(text):
            raise DataError(f"signal.{name} is {shown(text)}, expected a name of at most 100 printable characters")
    for name, kind in (("action", Action), ("regime", Regime)):
        value = getattr(signal, name)
        if type(value) is not kind:
            raise DataError(f"signal.{name} is {shown(value)}, expected one of {', '.join(kind)}")
    time_ns = _time(signal.timestamp_ns, "signal.timestamp_ns")
    changes = _conversions(signal, _SIGNAL_NUMBERS, "signal")
    if time_ns is not signal.timestamp_ns:
        changes["timestamp_ns"] = time_ns
    return dataclasses.replace(signal, **changes) if changes else signal


def is_title(value: Any) -> bool:
    """Whether ``value`` can name a strategy or a symbol: what it cannot, no label and no table must show either."""
    return type(value) is str and 0 < len(value) <= 100 and value.isprintable() and not value.isspace()


def _cascade(cascade: Any, min_feeds: int) -> CascadeIndicators:
    if type(cascade) is not CascadeIndicators:
        raise DataError(f"the cascade indicators are {shown(cascade)}, expected CascadeIndicators")
    changes = _conversions(cascade, _FEEDS, "cascade")
    found = 0
    for name in _FEEDS:
        found += getattr(cascade, name) is not None
    if found < min_feeds:
        raise DataError(f"{found} of {len(_FEEDS)} cascade feeds are there, at least {min_feeds} are needed")
    return dataclasses.replace(cascade, **changes) if changes else cascade


def _conversions(thing: Any, names: tuple[str, ...], where: str) -> dict[str, Any]:
    """The fields among ``names`` that are numbers but no plain floats, as such; a DataError at one that is neither."""
    changes: dict[str, Any] = {}
    for name in names:
        value = getattr(thing, name)
        if type(value) is not float and value is not None:
            changes[name] = _plain(value, f"{where}.{name}")
    return changes


def _plain(value: Any, where: str) -> float:
    """A number of Python or numpy as a float, NaN and infinity too."""
    kind = type(value)
    if kind is float:
        return float(value)
    if kind is int and -_WIDEST < value < _WIDEST:
        return float(value)
    if issubclass(kind, np.floating | np.integer):
        return float(value)
    raise DataError(f"{where} is {shown(value)}, expected a number")


def _number(value: Any, where: str, low: float, high: float) -> float:
    number = _plain(value, where)
    if not low <= number <= high:
        raise DataError(f"{where} is {number!r}, expected a number in [{low:g}, {high:g}]")
    return number


def _time(value: Any, where: str) -> int:
    kind = type(value)
    number = int(value) if kind is int or issubclass(kind, np.integer) else _plain(value, where)
    if not 0 <= number < 2**63:
        raise DataError(f"{where} is {shown(value)}, expected nanoseconds since 1970, UTC")
    return int(number)


def _trades(given: Any, most: int) -> tuple[ClosedTrade, ...]:
    if given is None:
        return ()
    if type(given) is not tuple and type(given) is not list:
        raise DataError(f"recent_trades is {shown(given)}, expected a list of closed trades")
    entries = tuple(given)
    if len(entries) > most:
        raise DataError(f"recent_trades holds {len(entries)} trades, at most {most} are read (market.seen_trades)")
    return tuple([_trade(entry, f"recent_trades[{i}]") for i, entry in enumerate(entries)])


def _trade(entry: Any, where: str) -> ClosedTrade:
    kind = type(entry)
    if kind is ClosedTrade:
        values = {name: getattr(entry, name) for name in _TRADE_KEYS}
    elif kind is dict:
        values = {name: _first(entry, keys) for name, keys in _TRADE_KEYS.items()}
    else:
        values = {"trade_return": _plain(entry, where)}
    earned, pnl = values.get("trade_return"), values.get("pnl_usd")
    if earned is None and pnl is None:
        raise DataError(f"{where} has neither trade_return nor pnl_usd")
    time_ns, name = values.get("closed_at_ns"), values.get("trade_id")
    if name is not None and not (_is_name(name) or (type(name) is int and -_WIDEST < name < _WIDEST)):
        raise DataError(f"{where}.trade_id is {shown(name)}, expected a name of at most {_LONGEST_NAME} characters")
    return ClosedTrade(
        None if earned is None else _number(earned, f"{where}.trade_return", -_LARGEST_RETURN, _LARGEST_RETURN),
        None if pnl is None else _number(pnl, f"{where}.pnl_usd", -_LARGEST, _LARGEST),
        None if time_ns is None else _time(time_ns, f"{where}.closed_at_ns"),
        None if name is None else str(name),
    )


def _is_name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= _LONGEST_NAME


def _first(entry: Mapping[Any, Any], keys: tuple[str, ...]) -> Any:
    return next((entry[key] for key in keys if key in entry), None)


def shown(value: object) -> str:
    """A value in a sentence, short, without calling anything of a foreign type."""
    kind = type(value)
    if kind is int and not -_WIDEST < value < _WIDEST:  # type: ignore[operator]
        return f"a whole number of {value.bit_length()} bits"  # type: ignore[attr-defined]
    if value is None or kind in (bool, int, float, str, Action, Regime):
        text = repr(value[:60] if kind is str else value)  # type: ignore[index]
        return text if len(text) <= 60 else f"{text[:57]}..."
    return f"{_TYPE}{kind.__name__}"


def plain_json(inputs: Inputs) -> dict[str, Any]:
    """The inputs as data that JSON can say, whatever they are; what :func:`check` would refuse keeps its sentence."""
    written = {name: plain_value(value) for name, value in inputs._asdict().items()}
    for name in ("signal", "cascade"):
        if type(getattr(inputs, name)) is dict:  # else it would be read back as one
            written[name] = shown({})
    return written


def plain_value(value: Any, depth: int = 0) -> Any:
    """``value`` as data that JSON can say: NaN and infinities are the texts ``nan``, ``inf`` and ``-inf``, and an
    object of a foreign type is its type's name after ``of type``. A text that looks like one of these, or like an
    action or a regime, has ``text`` before it. :func:`read_back` knows."""
    kind = type(value)
    if kind in (TacticalSignal, CascadeIndicators, ClosedTrade):
        return {field.name: plain_value(getattr(value, field.name), depth + 1) for field in dataclasses.fields(kind)}
    if kind in (tuple, list, dict):
        if depth >= _DEEPEST or len(value) > _LONGEST_LIST:
            return shown(value)
        if kind is dict:
            return {key: plain_value(entry, depth + 1) for key, entry in value.items() if type(key) is str}
        return [plain_value(entry, depth + 1) for entry in value]
    if kind is float or issubclass(kind, np.floating):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if kind in (Action, Regime):
        return value.value
    if kind is str:
        return f"{_TEXT}{value}" if _is_misread(value) else value
    if value is None or kind is bool or (kind is int and -_WIDEST < value < _WIDEST):
        return value
    return int(value) if issubclass(kind, np.integer) else shown(value)


def _is_misread(text: str) -> bool:
    return text in _WORDS or text.startswith((_TYPE, _TEXT)) or _BITS.fullmatch(text) is not None


def read_back(value: Any) -> Any:
    """What :func:`plain_value` wrote, or what was made of that; a foreign object is one of a type of the same name."""
    kind = type(value)
    if kind in (TacticalSignal, CascadeIndicators):
        names = [field.name for field in dataclasses.fields(kind)]
        return kind(**{name: read_back(getattr(value, name)) for name in names})
    if kind is dict:
        return {key: read_back(entry) for key, entry in value.items()}
    if kind is list:
        return [read_back(entry) for entry in value]
    if kind is not str:
        return value
    if value in _NOT_FINITE:
        return float(value)
    if value.startswith(_TEXT):
        return value.removeprefix(_TEXT)
    if value.startswith(_TYPE):
        return type(value.removeprefix(_TYPE), (), {})()
    bits = _BITS.fullmatch(value)
    return value if bits is None else 1 << (int(bits[1]) - 1)
