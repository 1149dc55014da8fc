"""After a decision: count it, log what is not ordinary, and show it to whoever looks on."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from layer3.live.configuration import Layer3Config
from layer3.live.inputs import Inputs
from layer3.types import PositionSizingDecision

__all__ = ["Observer", "Teller"]

#: Called after each decision, with what it was made from.
Observer = Callable[[PositionSizingDecision, Inputs], None]
_log = logging.getLogger(__name__)


class Teller:
    """For any number of threads; see :class:`layer3.live.phase1.Layer3Phase1` for the attributes."""

    def __init__(self) -> None:
        self.observers: list[Observer] = []
        self.counters: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._source = ""

    def count(self, name: str) -> None:
        """One more of these."""
        with self._lock:
            self.counters[name] += 1

    def tell(self, decision: PositionSizingDecision, inputs: Inputs, config: Layer3Config) -> None:
        """Take in one decision; never raises."""
        turned = False
        with self._lock:
            self.counters["decisions"] += 1
            if decision.refusal is not None:
                self.counters[f"refused.{decision.refusal}"] += 1
            elif decision.multiplier_source != self._source:
                turned, self._source = True, decision.multiplier_source
        if decision.refusal is not None:
            details = {"decision_id": decision.decision_id, "symbol": decision.symbol, "refusal": decision.refusal}
            _log.warning(decision.reason, extra=details)
        elif turned:
            # Who answers instead of whom is told once, not with every decision while a server is away.
            level = logging.WARNING if decision.passed_over and config.policy.enabled else logging.INFO
            _log.log(level, "another source gives the multipliers now", extra=_answered(decision))
        elif config.policy.enabled and config.logging.policy_answers:
            _log.info("the policy's answer", extra=_answered(decision))
        for observer in self.observers:
            try:
                observer(decision, inputs)
            # Whoever looks on must not keep a size from its caller: counted and logged, the decision stands.
            except Exception:  # noqa: BLE001
                self.count("observer_errors")
                _log.exception("an observer failed", extra={"decision_id": decision.decision_id})


def _answered(decision: PositionSizingDecision) -> dict[str, Any]:
    return {
        "decision_id": decision.decision_id,
        "symbol": decision.symbol,
        "multiplier": decision.multiplier,
        "source": decision.multiplier_source,
        "model_version": decision.model_version,
        "passed_over": list(decision.passed_over),
    }
