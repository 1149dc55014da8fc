"""Which values of a signal and its indicators can be sized at all."""

from __future__ import annotations

import sys
from numbers import Real
from typing import Final

from layer3.types import Action, CascadeIndicators, Regime, TacticalSignal

__all__ = ["CASCADE_RULES", "SIGNAL_RULES", "Rule", "find_problem"]

_MAX: Final = sys.float_info.max

#: Field, lowest, highest, whether ``None`` is allowed.
Rule = tuple[str, float, float, bool]

SIGNAL_RULES: Final[tuple[Rule, ...]] = (
    ("confidence", 0.0, 1.0, False),
    ("risk_score", 0.0, 1.0, False),
    # A return beyond +1000 % a month, or a volatility above 500 % a day, is a percentage given as a fraction.
    ("expected_return", -1.0, 10.0, True),
    ("predicted_volatility", 0.0, 5.0, True),
    ("signal_strength", -_MAX, _MAX, True),
    ("sentiment_score", 0.0, 1.0, True),
    ("timestamp_ns", 0.0, 2.0**63, False),
)
CASCADE_RULES: Final[tuple[Rule, ...]] = (
    ("funding_rate", -_MAX, _MAX, True),
    ("oi_change_pct", -1.0, _MAX, True),
    ("volume_ratio", 0.0, _MAX, True),
    ("onchain_whale_pressure", 0.0, 1.0, True),
    ("exchange_netflow_zscore", -_MAX, _MAX, True),
    ("liquidation_volume_24h", 0.0, _MAX, True),
)


def find_problem(thing: TacticalSignal | CascadeIndicators) -> str | None:
    """The first field that cannot be used, with its value and what was expected; ``None`` if all can."""
    if isinstance(thing, TacticalSignal):
        if thing.action.__class__ is not Action:
            return f"signal.action is {thing.action!r}, expected one of {', '.join(Action)}"
        if thing.regime.__class__ is not Regime:
            return f"signal.regime is {thing.regime!r}, expected one of {', '.join(Regime)}"
        name, rules = "signal", SIGNAL_RULES
    else:
        name, rules = "cascade", CASCADE_RULES
    for field, low, high, optional in rules:
        value = getattr(thing, field)
        if value is None:
            if optional:
                continue
        elif (value.__class__ is float or _is_number(value)) and low <= value <= high:  # NaN compares false
            continue
        return f"{name}.{field} is {value!r}, expected {_expected(low, high, optional)}"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _expected(low: float, high: float, optional: bool) -> str:
    if low == -_MAX:
        text = "a finite number"
    elif high == _MAX:
        text = f"a finite number from {low:g}"
    else:
        text = f"a number in [{low:g}, {high:g}]"
    return text + (" or nothing" if optional else "")
