"""Hansen's test equals arch's against each benchmark, and says yes as rarely as it promises."""

from __future__ import annotations

import numpy as np
import pytest
from arch.bootstrap import SPA
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from layer3.backtest.bootstrap import working_length
from layer3.backtest.record import Superiority
from layer3.backtest.superiority import superiority
from layer3.errors import EvaluationError

Floats = NDArray[np.float64]


def tracks(seed: int, n: int, count: int, edge: float) -> tuple[Floats, dict[str, Floats]]:
    rng = np.random.default_rng(seed)
    common = rng.standard_t(5, n)
    others = {f"b{k}": 0.01 * (common + rng.standard_normal(n)) for k in range(count)}
    return 0.01 * (common + rng.standard_normal(n) + edge), others


@pytest.mark.parametrize("edge", [-0.4, -0.05, 0.0, 0.05, 0.1])
@pytest.mark.parametrize("count", [1, 3])
def test_it_is_the_largest_p_value_of_arch(count: int, edge: float) -> None:
    for seed in range(3):
        returns, others = tracks(seed, 500, count, edge)
        length = round(working_length(*(returns - other for other in others.values())))
        theirs = np.zeros(3)
        for other in others.values():
            test = SPA(-other, -returns, block_size=length, reps=1_500, seed=1)
            test.compute()
            theirs = np.maximum(theirs, test.pvalues[["lower", "consistent", "upper"]].to_numpy())
        got = superiority(returns, others, seed=2, resamples=3_000)
        assert got.benchmarks == tuple(others)
        np.testing.assert_allclose([got.lower, got.consistent, got.upper], theirs, atol=0.045)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), n=st.integers(20, 300), count=st.integers(1, 4), edge=st.floats(-1.0, 1.0))
def test_the_three_are_ordered_probabilities(seed: int, n: int, count: int, edge: float) -> None:
    returns, others = tracks(seed, n, count, edge)
    got = superiority(returns, others, seed=seed, resamples=99)
    assert 0.01 <= got.lower <= got.consistent <= got.upper <= 1.0
    assert got == superiority(returns, others, seed=seed, resamples=99)
    scaled = superiority(
        100.0 * returns, {name: 100.0 * other for name, other in others.items()}, seed=seed, resamples=99
    )
    assert scaled.consistent == pytest.approx(got.consistent, abs=0.021)


def test_the_best_benchmark_decides() -> None:
    returns, others = tracks(0, 1_000, 3, 0.3)
    assert superiority(returns, others, seed=0).consistent < 0.01
    others["best"] = returns + 0.0005
    got = superiority(returns, others, seed=0)
    assert got.consistent > 0.5
    assert got.upper == superiority(returns, {"best": others["best"]}, seed=0).upper == 1.0


def test_a_policy_that_does_nothing_of_its_own_is_not_superior() -> None:
    returns, _ = tracks(0, 500, 1, 0.2)
    assert superiority(returns, {"kelly_only": returns.copy()}, seed=0) == Superiority(("kelly_only",), 1.0, 1.0, 1.0)
    assert superiority(np.zeros(100), {"flat": np.zeros(100)}, seed=0).lower == 1.0


def test_without_an_edge_it_says_yes_rarely() -> None:
    rejected = [
        superiority(*tracks(seed, 400, 1, 0.0), seed=seed, resamples=200).consistent <= 0.05 for seed in range(300)
    ]
    assert 0.02 <= np.mean(rejected) <= 0.085
    rejected = [
        superiority(*tracks(seed, 400, 3, 0.0), seed=seed, resamples=200).consistent <= 0.05 for seed in range(150)
    ]
    assert np.mean(rejected) <= 0.05


def test_what_cannot_be_compared_is_refused() -> None:
    returns, others = tracks(0, 100, 2, 0.0)
    with pytest.raises(EvaluationError, match="0 benchmarks"):
        superiority(returns, {}, seed=0)
    with pytest.raises(EvaluationError, match="19 bars"):
        superiority(returns[:19], {"b0": others["b0"][:19]}, seed=0)
    with pytest.raises(EvaluationError, match="b1 has 99 returns, the policy 100"):
        superiority(returns, others | {"b1": others["b1"][:99]}, seed=0)
    others["b1"][5] = np.nan
    with pytest.raises(EvaluationError, match="returns of b1: nan at bar 5"):
        superiority(returns, others, seed=0)
    with pytest.raises(EvaluationError, match="policy's returns: inf at bar 0"):
        superiority(np.full(100, np.inf), others, seed=0)
