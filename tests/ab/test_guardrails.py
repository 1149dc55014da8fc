"""Guardrails, against a loop over the trades one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layer3.ab.assignment import DAY_NS, Design
from layer3.ab.guardrails import find_breach

TRADES = st.lists(st.tuples(st.integers(0, 6 * DAY_NS), st.floats(-0.04, 0.04)), max_size=40)


def slow(trades: list[tuple[int, float]], fall: float, loss: float) -> tuple[str, int] | None:
    equity = peak = 1.0
    days: dict[int, float] = {}
    for at, gained in sorted(trades, key=lambda trade: trade[0]):
        equity *= 1.0 + gained
        peak = max(peak, equity)
        days[at // DAY_NS] = days.get(at // DAY_NS, 0.0) - gained
        if 1.0 - equity / peak > fall:
            return "max_drawdown", at
        if days[at // DAY_NS] > loss:
            return "daily_loss", at
    return None


@example(trades=[(0, -0.0390625), (0, -0.0390625)], fall=0.0717, loss=0.0213)
@given(trades=TRADES, fall=st.sampled_from([0.0311, 0.0717]), loss=st.sampled_from([0.0213, 0.0571]))
def test_the_first_breach_is_that_of_a_loop(trades: list[tuple[int, float]], fall: float, loss: float) -> None:
    design = Design("x", max_drawdown=fall, daily_loss=loss)
    at, returns = np.array([t for t, _ in trades], dtype=np.int64), np.array([r for _, r in trades], dtype=float)
    found, expected = find_breach(at, returns, design), slow(trades, fall, loss)
    assert (found and (found.kind, found.at_ns)) == expected
    if found:
        assert found.value > found.limit
        assert f"{found.value:.2%}" in found.words


@pytest.mark.parametrize(("lost", "broken"), [(0.0199, False), (0.0201, True)])
def test_a_loss_counts_from_midnight(lost: float, broken: bool) -> None:
    at = np.array([DAY_NS - 1, DAY_NS, DAY_NS + 5], dtype=np.int64)
    found = find_breach(at, np.array([-0.019, -lost / 2, -lost / 2]), Design("x"))
    assert (found is not None) == broken


def test_an_account_that_lost_everything_is_a_breach() -> None:
    found = find_breach(np.array([1], dtype=np.int64), np.array([-1.5]), Design("x"))
    assert found is not None
    assert found.value == pytest.approx(1.0)
