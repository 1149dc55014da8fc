from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.sizing.config import SentimentConfig
from layer3.sizing.sentiment import describe, multiplier

CONFIG = SentimentConfig()


@pytest.mark.parametrize(
    ("score", "direction", "expected"),
    [
        (1.0, 1, 1.15), (1.0, -1, 0.85), (0.0, 1, 0.85), (0.0, -1, 1.15), (0.8, 1, 1.075), (0.2, -1, 1.075),
        (0.4, 1, 1.0), (0.5, -1, 1.0), (0.6, 1, 1.0), (None, 1, 1.0), (1.0, 0, 1.0),
    ],
)  # fmt: skip
def test_table(score: float | None, direction: int, expected: float) -> None:
    assert multiplier(CONFIG, score, direction) == pytest.approx(expected)


@given(st.floats(0, 1), st.floats(0, 1))
def test_bullish_raises_a_long_and_lowers_a_short(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert multiplier(CONFIG, low, 1) <= multiplier(CONFIG, high, 1)
    assert multiplier(CONFIG, low, -1) >= multiplier(CONFIG, high, -1)
    assert multiplier(CONFIG, a, 1) + multiplier(CONFIG, a, -1) == pytest.approx(2.0)
    assert 0.85 - 1e-12 <= multiplier(CONFIG, a, 1) <= 1.15 + 1e-12


def test_a_band_that_reaches_the_ends_never_tilts() -> None:
    config = SentimentConfig(neutral_low=0.0, neutral_high=1.0)
    assert multiplier(config, 0.0, 1) == multiplier(config, 1.0, 1) == 1.0


@pytest.mark.parametrize(
    ("score", "direction", "says"),
    [
        (None, 1, "no sentiment given"),
        (0.5, 1, "neutral"),
        (0.9, 1, "bullish, with a long"),
        (0.9, -1, "bullish, against a short"),
        (0.1, -1, "bearish, with a short"),
        (0.1, 0, "no side to tilt"),
    ],
)
def test_reasons(score: float | None, direction: int, says: str) -> None:
    assert says in describe(CONFIG, score, direction)
