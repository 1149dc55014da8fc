"""The probability of backtest overfitting equals a plain loop, and is 0, about a half and 1 where it must be."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import rankdata

from layer3.backtest.overfitting import MIN_BLOCK_BARS, overfitting, overfitting_if_any
from layer3.errors import EvaluationError

Floats = NDArray[np.float64]


def plain(returns: Floats, blocks: int) -> float:
    """Bailey, Borwein, Lopez de Prado and Zhu 2017, steps 1 to 5, one choice after the other."""
    size = len(returns) // blocks
    parts = np.split(returns[len(returns) - size * blocks :], blocks)
    logits = []
    for chosen in combinations(range(blocks), blocks // 2):
        inside = np.concatenate([parts[i] for i in chosen])
        outside = np.concatenate([parts[i] for i in range(blocks) if i not in chosen])
        ratios = [half.mean(axis=0) / half.std(axis=0, ddof=1) for half in (inside, outside)]
        rank = rankdata(ratios[1])[int(np.argmax(ratios[0]))] / (returns.shape[1] + 1)
        logits.append(math.log(rank / (1.0 - rank)))
    return float(np.mean(np.array(logits) <= 1e-12))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    bars=st.integers(60, 300),
    sets=st.integers(2, 12),
    blocks=st.sampled_from([2, 4, 6, 8]),
    edge=st.sampled_from([0.0, 0.2]),
)
def test_it_equals_a_plain_loop(seed: int, bars: int, sets: int, blocks: int, edge: float) -> None:
    rng = np.random.default_rng(seed)
    returns = 0.01 * (rng.standard_t(4, (bars, sets)) + edge * rng.standard_normal(sets))
    got = overfitting(returns, blocks)
    assert (got.sets, got.blocks) == (sets, blocks)
    assert got.probability == pytest.approx(plain(returns, blocks), abs=1e-12)
    assert overfitting(1e-3 * returns, blocks).probability == pytest.approx(got.probability, abs=1e-12)


def test_noise_is_overfitted_about_half_of_the_time() -> None:
    values = [overfitting(np.random.default_rng(seed).standard_normal((640, 20))).probability for seed in range(40)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.08)


def test_one_set_that_is_really_better_is_not_overfitted() -> None:
    returns = np.random.default_rng(0).standard_normal((1_600, 10))
    returns[:, 3] += 0.3
    assert overfitting(returns).probability < 0.01


def test_sets_that_win_only_once_are_overfitted() -> None:
    """Each set wins in one block and loses a little in all others: whoever was chosen disappoints."""
    rng = np.random.default_rng(1)
    returns = 0.1 * rng.standard_normal((160, 16)) - 0.1
    for block in range(16):
        returns[10 * block : 10 * (block + 1), block] += 3.0
    assert overfitting(returns).probability > 0.99


def test_equals_share_a_rank_and_a_set_that_never_trades_has_ratio_0() -> None:
    rng = np.random.default_rng(2)
    good = 0.2 + rng.standard_normal(320)
    both = overfitting(np.stack([good, good, np.zeros(320)], axis=1))
    assert both.probability < 0.05
    bad = rng.standard_normal(320) - 0.5
    assert overfitting(np.stack([bad, bad - 0.1, np.zeros(320)], axis=1)).probability == 0.0


@pytest.mark.parametrize(
    ("returns", "blocks", "match"),
    [
        (np.zeros(100), 16, "two tried sets"),
        (np.zeros((100, 1)), 16, "two tried sets"),
        (np.ones((200, 3)), 16, "same returns"),
        (np.repeat(np.random.default_rng(0).standard_normal((200, 1)), 4, axis=1), 16, "nothing to choose"),
        (np.random.default_rng(0).standard_normal((16 * MIN_BLOCK_BARS - 1, 3)), 16, "79 bars in 16 blocks"),
        (np.random.default_rng(0).standard_normal((500, 3)), 7, "even number"),
        (np.random.default_rng(0).standard_normal((500, 3)), 0, "even number"),
        (np.random.default_rng(0).standard_normal((500, 3)), 40, "even number"),
    ],
)
def test_what_cannot_be_judged_is_refused(returns: Floats, blocks: int, match: str) -> None:
    with pytest.raises(EvaluationError, match=match):
        overfitting(returns, blocks)


def test_a_return_that_is_no_number_is_refused_by_set_and_bar() -> None:
    returns = np.random.default_rng(0).standard_normal((200, 3))
    returns[41, 2] = np.nan
    with pytest.raises(EvaluationError, match="set 2 at bar 41"):
        overfitting(returns)


def test_where_nothing_was_chosen_there_is_none() -> None:
    returns = np.random.default_rng(3).standard_normal((16 * MIN_BLOCK_BARS, 3))
    assert overfitting_if_any(returns) == overfitting(returns)
    for nothing in (returns[:, :1], returns[:, :0], returns[1:], returns[:, [0, 0]]):
        assert overfitting_if_any(nothing) is None
