from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from layer3.sizing import kelly
from layer3.sizing.config import KellyConfig
from layer3.sizing.kelly import KellyPosterior, estimate

CONFIG = KellyConfig()


def fraction(**changes: float | None) -> float:
    values: dict[str, float | None] = {
        "win_probability": 0.5,
        "confidence": 0.7,
        "risk_score": 0.0,
        "expected_return": 0.06,
        "daily_volatility": 0.04,
    }
    return estimate(CONFIG, **(values | changes)).fraction  # type: ignore[arg-type]


def documented_rows() -> list[tuple[float, float | None, list[float]]]:
    lines = (kelly.__doc__ or "").splitlines()
    bars = [i for i, line in enumerate(lines) if line.strip().startswith("====")]
    rows = []
    for line in lines[bars[1] + 1 : bars[2]]:
        words = line.replace("not given", "none").split()
        rows.append((float(words[0]), None if words[1] == "none" else float(words[1]), [float(w) for w in words[2:]]))
    return rows


@pytest.mark.parametrize(("confidence", "expected", "fractions"), documented_rows())
def test_table_of_the_docstring(confidence: float, expected: float | None, fractions: list[float]) -> None:
    got = [
        fraction(confidence=confidence, expected_return=expected, daily_volatility=v)
        for v in (0.02, 0.03, 0.04, 0.06, 0.08)
    ]
    assert got == pytest.approx(fractions, abs=5e-4)


def test_the_docstring_has_a_table_that_varies() -> None:
    fractions = [f for *_, row in documented_rows() for f in row]
    assert len(fractions) >= 50
    assert len(set(fractions)) > 30


def test_worked_example_by_hand() -> None:
    # 4 % a day is 21.9 % over 30 days, variance 0.048 (+ 0.000081 of the prior); p .5, edge .03.
    result = estimate(CONFIG, 0.5, 0.5, 0.0, (0.03 - 0.015) / 0.35, 0.04)
    assert result.edge == pytest.approx(0.03)
    assert result.variance == pytest.approx(0.04**2 * 30 + (0.3 * 0.03) ** 2)
    assert math.sqrt(0.04**2 * 30) == pytest.approx(0.219, abs=5e-4)
    assert result.fraction == pytest.approx(0.078, abs=5e-4)


def test_old_bug_kelly_always_on_its_cap() -> None:
    grid = itertools.product((0.5, 0.6, 0.7, 0.8, 0.9), (None, 0.02, 0.04, 0.06, 0.08), (0.02, 0.03, 0.04, 0.05, 0.06))
    sizes = np.array([fraction(confidence=c, expected_return=r, daily_volatility=v) for c, r, v in grid])
    assert (sizes >= CONFIG.max_fraction).mean() < 0.05
    assert (sizes > 0).mean() > 0.75
    assert sizes[sizes > 0].std() > 0.05


def test_old_bug_expected_return_of_zero_became_the_prior_mean() -> None:
    assert fraction(expected_return=0.0) == 0.0
    assert fraction(expected_return=None) > 0.0
    assert estimate(CONFIG, 0.5, 0.7, 0.0, 0.0, 0.04).edge == pytest.approx(0.3 * 0.05)
    assert estimate(CONFIG, 0.5, 0.7, 0.0, None, 0.04).edge == pytest.approx(0.7 * 0.7 * 0.05 + 0.3 * 0.05)


def test_not_knowing_the_return_costs_size() -> None:
    unknown = estimate(CONFIG, 0.5, 0.7, 0.0, None, 0.04)
    known = estimate(CONFIG, 0.5, 0.7, 0.0, CONFIG.prior_mean_return, 0.04)
    assert unknown.edge == pytest.approx(known.edge)
    assert unknown.variance > known.variance
    assert unknown.fraction < known.fraction


def test_missing_volatility_takes_the_default_and_says_so() -> None:
    result = estimate(CONFIG, 0.5, 0.7, 0.0, 0.06, None)
    assert result.fraction == fraction(daily_volatility=CONFIG.default_daily_volatility)
    assert "no volatility given, default 0.04" in kelly.describe(CONFIG, result)


def test_volatility_of_zero_is_floored_and_not_taken_as_missing() -> None:
    assert fraction(daily_volatility=0.0) == fraction(daily_volatility=CONFIG.min_daily_volatility) == 0.5


@pytest.mark.parametrize(
    ("probability", "expected", "says"),
    [(0.4499, 0.10, "win probability 0.450 is below 0.45"), (0.5, 0.0, "edge 0.0150 is below 0.02")],
)
def test_zero_below_the_floors(probability: float, expected: float, says: str) -> None:
    result = estimate(CONFIG, probability, 0.7, 0.0, expected, 0.04)
    assert result.fraction == 0.0
    assert says in kelly.describe(CONFIG, result)


def test_floors_themselves_are_enough() -> None:
    assert fraction(win_probability=0.45) > 0.0
    assert estimate(KellyConfig(min_edge=0.015), 0.5, 0.0, 0.0, 0.0, 0.04).fraction > 0.0


def test_risk_score_counts_even_on_the_cap() -> None:
    assert fraction(risk_score=1.0) == pytest.approx(fraction() * 0.5)
    assert fraction(daily_volatility=0.0, risk_score=0.4) == pytest.approx(0.5 * 0.8)


@given(st.lists(st.one_of(st.floats(-0.5, 0.5), st.sampled_from([math.nan, math.inf, None])), max_size=60))
def test_posterior_is_scipys(returns: list[float | None]) -> None:
    posterior = KellyPosterior(CONFIG)
    usable = [r for r in returns if r is not None and math.isfinite(r)]
    assert [posterior.record(r) for r in returns].count(True) == len(usable)
    wins = sum(r > 0 for r in usable)
    assert posterior.mean == pytest.approx(stats.beta(10 + wins, 10 + len(usable) - wins).mean())
    assert posterior.rejected == len(returns) - len(usable)


@given(
    st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1),
    st.one_of(st.none(), st.floats(0, 10)), st.one_of(st.none(), st.floats(0, 5)),
)  # fmt: skip
def test_in_range_and_monotone_in_confidence(
    p: float, c1: float, c2: float, risk: float, expected: float | None, volatility: float | None
) -> None:
    low, high = (estimate(CONFIG, p, c, risk, expected, volatility).fraction for c in sorted((c1, c2)))
    assert 0.0 <= low <= high + 1e-12
    assert high <= 0.5
