"""An engine with a clock to turn, a policy to script, and a plain signal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layer3.ab.assignment import Assigner
from layer3.breaker import CircuitBreaker
from layer3.live.configuration import Layer3Config, load_config
from layer3.live.phase1 import Layer3Phase1
from layer3.remote import RemoteAnswer
from layer3.types import Action, CascadeIndicators, PositionSizingDecision, Regime, TacticalSignal

DAY = 86_400 * 10**9
#: Noon, UTC.
NOON = 20_454 * DAY + DAY // 2
CALM = CascadeIndicators(0.0001, 0.0, 1.0, 0.3, 0.0)
OFF: Mapping[str, Any] = {"policy": {"enabled": False}}
CLOUD: Mapping[str, Any] = {"deployment_mode": "cloud", "policy": {"endpoint": "http://127.0.0.1:9"}}


def signal_of(**changes: Any) -> TacticalSignal:
    plain: dict[str, Any] = {
        "strategy_id": "momentum",
        "symbol": "BTC-USD",
        "action": Action.BUY,
        "confidence": 0.7,
        "risk_score": 0.2,
        "regime": Regime.RANGING,
        "timestamp_ns": NOON,
        "expected_return": 0.06,
        "predicted_volatility": 0.03,
    }
    return TacticalSignal(**(plain | changes))


class Scripted:
    """A client of no server: ``script`` is what it answers, an error to raise, or something to do first."""

    def __init__(self, script: float | Exception | Callable[[], float]) -> None:
        self.script = script
        self.asked: list[tuple[NDArray[np.float32], str | None]] = []
        self.closed = 0

    def ask(self, state: NDArray[np.float32], request_id: str | None = None) -> RemoteAnswer:
        self.asked.append((state, request_id))
        script = self.script
        if isinstance(script, Exception):
            raise script
        value = script() if callable(script) else script
        return RemoteAnswer(value, 0.8, "model-1")

    async def aask(self, state: NDArray[np.float32], request_id: str | None = None) -> RemoteAnswer:
        await asyncio.sleep(0)
        return self.ask(state, request_id)

    def close(self) -> None:
        self.closed += 1


class Desk:
    """``desk.engine`` under ``overrides``; ``desk.now`` is its clock."""

    def __init__(
        self,
        overrides: Mapping[str, Any] = OFF,
        client: Scripted | None = None,
        now: int = NOON,
        state: Mapping[str, Any] | None = None,
        assigner: Assigner | None = None,
    ) -> None:
        self.now = now
        self.client = client

        def connect(config: Layer3Config, breaker: CircuitBreaker) -> Scripted:
            assert self.client is not None
            return self.client

        config = load_config(None, overrides)
        self.engine = Layer3Phase1(
            config, clock=lambda: self.now, connect=connect, seed=0, state=state, assigner=assigner
        )

    def size(self, signal: Any = None, cascade: Any = CALM, price: Any = 100.0, **more: Any) -> PositionSizingDecision:
        if signal is None:
            signal = signal_of(timestamp_ns=self.now)
        return self.engine.calculate_position(signal, cascade, price, **more)

    def size_at(self, now: int, price: float = 100.0, **changes: Any) -> PositionSizingDecision:
        self.now = now
        return self.size(signal_of(timestamp_ns=now, **changes), CALM, price)
