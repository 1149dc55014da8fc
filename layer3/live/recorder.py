"""What the engine was told and what it answered, into the decision log: enough to make every decision again."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

from layer3.errors import DataError
from layer3.live.configuration import Layer3Config
from layer3.live.decision_log import DecisionLog
from layer3.live.inputs import Inputs, plain_json, plain_value
from layer3.live.log_file import DECISION
from layer3.live.phase1 import Layer3Phase1
from layer3.types import PositionSizingDecision

__all__ = ["CONFIGURATION", "REJECTED", "RESET", "RESIDUAL", "Recorder", "head"]

#: Kinds of records beside heads and decisions: what changes the decisions after it, and a message that was none.
CONFIGURATION: Final = "configuration"
RESIDUAL: Final = "residual"
RESET: Final = "daily_loss_reset"
REJECTED: Final = "rejected"


def head(engine: Layer3Phase1) -> dict[str, Any]:
    """What a head of the log holds: configuration, its hash, and what the engine knows now."""
    return {**_settings(engine.config), "state": engine.snapshot()}


def _settings(config: Layer3Config) -> dict[str, Any]:
    return {"configuration": config.as_json(), "config_hash": config.digest()}


class Recorder:
    """Writes what happens to ``engine`` into ``log``. Append :meth:`observe` to the engine's observers.

    A changed configuration is written before the first decision under it. What goes past the engine's
    decisions (a residual, a reset of the daily loss) has to be said through the recorder, else a replay cannot
    know of it. ``origin`` (plain data) goes into each record; ``failure`` is the error of the last decision
    that could not be written, which the engine only counts.

    Errors of every method: as :meth:`layer3.live.decision_log.DecisionLog.append`.
    """

    def __init__(self, log: DecisionLog, engine: Layer3Phase1) -> None:
        self.log = log
        self.origin: Mapping[str, Any] = {}
        self.failure: Exception | None = None
        self._engine = engine
        self._turning = threading.Lock()
        self._head: tuple[int, str | None] = (0, None)
        self._written = set[str | None]()

    def observe(self, decision: PositionSizingDecision, inputs: Inputs) -> None:
        """Write one decision with its inputs."""
        try:
            self._write_configuration(decision.config_hash)
            self._append(DECISION, {"inputs": plain_json(inputs), "decision": decision.to_json()})
        except (OSError, DataError) as error:
            self.failure = error
            raise

    def _write_configuration(self, config_hash: str) -> None:
        """Write the configuration of a decision, unless the log holds it since its latest head.

        It need not be that of now: others may have followed it.
        """
        with self._turning:
            if self._head != self.log.latest_head:
                self._head = self.log.latest_head
                self._written = {self._head[1]}
            config = None if config_hash in self._written else self._engine.config_of(config_hash)
            if config is not None:
                self._append(CONFIGURATION, _settings(config))
                self._written.add(config_hash)

    def reject(self, field: str, problem: str) -> None:
        """Write that a message was no signal."""
        self._append(REJECTED, {"field": field, "problem": problem})

    def record_residual(self, symbol: str, predicted: float | None, realised: float | None) -> bool:
        """:meth:`layer3.engine.Layer3Phase1.record_residual`, recorded."""
        learnt = self._engine.record_residual(symbol, predicted, realised)
        told = {"symbol": symbol, "predicted": predicted, "realised": realised}
        self._append(RESIDUAL, {**{name: plain_value(value) for name, value in told.items()}, "learnt": learnt})
        return learnt

    def reset_daily_loss(self) -> None:
        """:meth:`layer3.engine.Layer3Phase1.reset_daily_loss`, recorded."""
        self._engine.reset_daily_loss()
        self._append(RESET, {})

    def _append(self, kind: str, content: Mapping[str, Any]) -> None:
        self.log.append({"kind": kind, "origin": self.origin, **content})
