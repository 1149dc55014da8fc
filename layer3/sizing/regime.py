"""The market's regime: quick to believe danger, slow to believe calm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layer3.sizing.config import RegimeConfig
from layer3.types import Regime

__all__ = ["RegimeHysteresis", "describe"]


class RegimeHysteresis:
    """The regime that sizes now.

    A regime whose multiplier is not above the present one's takes effect **at once**. A calmer
    one is believed only after ``confirmations`` consecutive bars that were all calmer than the
    present regime; what takes effect then is the most restrictive of those bars, so that a market
    that flickers between two calmer regimes is not held in a crisis for ever. The first
    regime seen takes effect at once.

    ``regime`` is ``None`` before the first bar; ``pending`` counts the calmer bars so far.
    """

    __slots__ = ("_confirmations", "_multipliers", "_next", "pending", "regime")

    def __init__(self, config: RegimeConfig) -> None:
        self._multipliers = {regime: float(getattr(config, regime.value)) for regime in Regime}
        self._confirmations = config.confirmations
        self._next: Regime | None = None
        self.regime: Regime | None = None
        self.pending = 0

    def observe(self, observed: Regime, *, new_bar: bool = True) -> float:
        """Take in the regime of one more bar and return the multiplier that holds for it.

        Without ``new_bar`` it is one more look at a bar that was counted before: danger counts at once as
        ever, but a calmer regime is not counted twice.
        """
        factors = self._multipliers
        current = self.regime
        if current is None or factors[observed] <= factors[current]:
            self.regime = observed
            self.pending = 0
            self._next = None
            return factors[observed]
        following = self._next
        if following is None:
            if not new_bar:  # the bar was counted before, as one of danger
                return factors[current]
            self._next = following = observed
        elif factors[observed] < factors[following]:
            self._next = following = observed
        if not new_bar:
            return factors[current]
        self.pending += 1
        if self.pending >= self._confirmations:
            self.regime = current = following
            self.pending = 0
            self._next = None
        return factors[current]

    def to_json(self) -> dict[str, Any]:
        """The regime that holds, the one that waits and for how many bars, as plain data."""
        regime, following = (None if r is None else r.value for r in (self.regime, self._next))
        return {"regime": regime, "next": following, "pending": self.pending}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take up what :meth:`to_json` gave. Under other multipliers the next bar is judged by those.

        Raises
        ------
        KeyError, TypeError, ValueError : ``data`` is not such a thing
        """
        regime, following = (None if data[key] is None else Regime(data[key]) for key in ("regime", "next"))
        pending = int(data["pending"])
        if pending < 0 or (following is None) != (pending == 0) or (regime is None and following is not None):
            raise ValueError(f"{pending} bars of {following} cannot wait for {regime}")
        self.regime, self._next, self.pending = regime, following, pending


def describe(config: RegimeConfig, observed: Regime, effective: Regime, pending: int) -> str:
    """The multiplier in words, for a decision's reason."""
    if pending == 0:
        return effective.value if observed is effective else f"{effective.value}; the signal says {observed.value}"
    return f"{effective.value} still; {observed.value} is calmer, seen {pending} of {config.confirmations} bars"
