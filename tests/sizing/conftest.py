"""Signals for the sizing tests."""

from __future__ import annotations

import pytest

from layer3.types import Action, Regime, TacticalSignal


@pytest.fixture
def signal() -> TacticalSignal:
    """A plain BUY on one horizon: 6 % expected over 30 days at 3 % a day."""
    return TacticalSignal(
        strategy_id="test",
        symbol="BTC-USDT",
        action=Action.BUY,
        confidence=0.7,
        risk_score=0.2,
        regime=Regime.RANGING,
        timestamp_ns=1_700_000_000_000_000_000,
        expected_return=0.06,
        predicted_volatility=0.03,
    )
