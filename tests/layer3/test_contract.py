"""The state contract: all 16 numbers by a table, and their bounds whatever comes in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3 import contract
from layer3.types import Action

NEUTRAL: dict[str, Any] = {
    "confidence": 0.0,
    "side": 0,
    "tier": 1,
    "exposure": 0.0,
    "unrealised_pnl": 0.0,
    "return_1h": 0.0,
    "return_4h": 0.0,
    "volatility": 0.0,
    "win_rate": 0.0,
    "cascade_risk": 0.0,
}
BOUNDS = [(0.0, 1.0)] * 9 + [(-1.0, 1.0)] * 4 + [(0.0, 1.0)] * 3
NUMBERS = st.floats(allow_nan=False, allow_infinity=True)
ARGUMENTS = st.fixed_dictionaries(
    {name: NUMBERS for name in NEUTRAL if name not in {"side", "tier"}}
    | {"side": st.sampled_from([-1, 0, 1]), "tier": st.sampled_from([1, 2, 3, 4])}
)


def build(**changes: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    return contract.build_state(**(NEUTRAL | changes))


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("confidence", 0.85, {0: 0.85}),
        ("confidence", 1.2, {0: 1.0}),
        ("confidence", -0.1, {0: 0.0}),
        ("side", -1, {1: 1, 2: 0, 3: 0}),
        ("side", 0, {1: 0, 2: 1, 3: 0}),
        ("side", 1, {1: 0, 2: 0, 3: 1}),
        ("tier", 1, {4: 1, 5: 0, 6: 0, 7: 0}),
        ("tier", 2, {4: 0, 5: 1, 6: 0, 7: 0}),
        ("tier", 3, {4: 0, 5: 0, 6: 1, 7: 0}),
        ("tier", 4, {4: 0, 5: 0, 6: 0, 7: 1}),
        ("exposure", 0.25, {8: 0.5, 9: 1}),
        ("exposure", -0.125, {8: 0.25, 9: -1}),
        ("exposure", 0.0, {8: 0, 9: 0}),
        ("exposure", 0.5, {8: 1, 9: 1}),
        ("exposure", -0.7, {8: 1, 9: -1}),
        ("unrealised_pnl", 0.1, {10: 0.2}),
        ("unrealised_pnl", -0.25, {10: -0.5}),
        ("unrealised_pnl", 0.9, {10: 1}),
        ("unrealised_pnl", -0.9, {10: -1}),
        ("return_1h", 0.01, {11: 0.1}),
        ("return_1h", -0.05, {11: -0.5}),
        ("return_1h", 0.2, {11: 1}),
        ("return_1h", -0.2, {11: -1}),
        ("return_4h", 0.01, {12: 0.05}),
        ("return_4h", -0.1, {12: -0.5}),
        ("return_4h", 0.3, {12: 1}),
        ("return_4h", -0.3, {12: -1}),
        ("volatility", 0.03, {13: 0.3}),
        ("volatility", 0.25, {13: 1}),
        ("win_rate", 0.7, {14: 0.7}),
        ("cascade_risk", 0.45, {15: 0.45}),
        ("cascade_risk", 1.3, {15: 1}),
    ],
)
def test_each_number_of_the_state(argument: str, value: float, expected: dict[int, float]) -> None:
    state = build(**{argument: value})
    for index, number in expected.items():
        assert state[index] == np.float32(number), contract.FEATURES[index]
    others = [index for index in range(16) if index not in expected]
    np.testing.assert_array_equal(state[others], build()[others])


def test_a_whole_state_in_order() -> None:
    state = contract.build_state(
        confidence=0.85,
        side=Action.STRONG_BUY.side,
        tier=contract.tier_of(0.35),
        exposure=-0.1,
        unrealised_pnl=0.05,
        return_1h=-0.02,
        return_4h=0.04,
        volatility=0.045,
        win_rate=0.6,
        cascade_risk=0.3,
    )
    expected = [0.85, 0, 0, 1, 0, 1, 0, 0, 0.2, -1, 0.1, -0.2, 0.2, 0.45, 0.6, 0.3]
    np.testing.assert_allclose(state, np.array(expected, dtype=np.float32), rtol=1e-6)
    assert state.dtype == np.float32
    assert state.shape == (16,) == (contract.STATE_DIM,)
    assert contract.VERSION == "himari-state-16/1"


@given(ARGUMENTS)
def test_every_number_stays_within_its_bounds(arguments: dict[str, float]) -> None:
    state = contract.build_state(**arguments)
    for index, (low, high) in enumerate(BOUNDS):
        assert low <= state[index] <= high, contract.FEATURES[index]
    assert state[1:4].sum() == 1.0
    assert state[4:8].sum() == 1.0
    assert state[9] in (-1.0, 0.0, 1.0)


@given(st.lists(ARGUMENTS, min_size=1, max_size=6))
def test_many_at_once_are_the_same_as_one_by_one(rows: list[dict[str, float]]) -> None:
    together = contract.build_state(**{name: np.array([row[name] for row in rows]) for name in NEUTRAL})
    np.testing.assert_array_equal(together, np.stack([contract.build_state(**row) for row in rows]))


def test_arguments_broadcast() -> None:
    state = build(side=np.array([[-1], [1]]), exposure=np.array([0.0, 0.1, -0.2]))
    assert state.shape == (2, 3, 16)
    np.testing.assert_array_equal(state[1, 2], build(side=1, exposure=-0.2))


def test_nan_comes_out_as_nan() -> None:
    for index, name in ((0, "confidence"), (8, "exposure"), (11, "return_1h"), (13, "volatility")):
        assert np.isnan(build(**{name: np.nan})[index])


@pytest.mark.parametrize(
    ("risk", "tier"),
    [
        (0.0, 1),
        (0.2, 1),
        (np.nextafter(0.2, 1), 2),
        (0.4, 2),
        (np.nextafter(0.4, 1), 3),
        (0.6, 3),
        (np.nextafter(0.6, 1), 4),
        (1.0, 4),
    ],
)
def test_tiers_at_their_edges(risk: float, tier: int) -> None:
    assert contract.tier_of(risk) == tier
    assert contract.tier_of([risk, 0.0]).tolist() == [tier, 1]


@pytest.mark.parametrize(
    ("action", "index"),
    [("strong_sell", 1), ("sell", 1), ("hold", 2), ("buy", 3), ("strong_buy", 3)],
)
def test_strong_actions_map_to_their_side(action: str, index: int) -> None:
    assert build(side=Action(action).side)[1:4].argmax() + 1 == index
