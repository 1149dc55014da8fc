"""What the confidence means: the higher it is, the smaller the multiplier's error.

Error is measured twice: against the multiplier of whoever knows the market's rule, and against what
the same training answers when it has seen other bars. The data are synthetic: a regime that the state
shows through noise (tests.agent.worlds.planted), weak enough that policies differ where it is unclear.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from layer3.agent.environment import Account, EnvironmentConfig
from layer3.agent.policy import Policy, stack
from layer3.agent.population import Settings, train
from layer3.agent.ppo import PPOConfig
from tests.agent.worlds import planted

Floats = NDArray[np.float64]
SEEN, HELD_OUT, SEEDS, PARTS = 24_000, 4_000, 3, 2
#: Bars that are drawn together when held-out states are resampled: a regime lasts 50.
BLOCK, DRAWS = 100, 100


@dataclass(frozen=True)
class Judged:
    """Held-out answers of one policy: how sure it was, and two errors of its multiplier, each (n,)."""

    confidence: Floats
    from_best: Floats
    from_resampled: Floats


@pytest.fixture(scope="module")
def judged() -> dict[str, Judged]:
    """Three single policies, and the ensemble of them."""
    bars, oracle = planted(SEEN + HELD_OUT, edge=0.4)
    part = SEEN // PARTS
    others = [
        tuple(piece for piece in (range(k * part), range((k + 1) * part, SEEN)) if len(piece)) for k in range(PARTS)
    ]
    trained = train(
        bars, seeds=range(SEEDS), folds=[range(SEEN), *others], settings=[Settings(PPOConfig(steps=60_000))]
    )
    sets = [[member.tensors for member in trained[k : k + SEEDS]] for k in range(0, len(trained), SEEDS)]
    ensembles = [Policy(stack(tensors), {}) for tensors in sets]
    account, states = Account(bars, 1, EnvironmentConfig()), np.empty((HELD_OUT - 2, 16), dtype=np.float32)
    for row in range(HELD_OUT - 2):
        at = np.array([SEEN + row])
        states[row] = account.observe(at)[0]
        account.trade(at, account.target(at, ensembles[0].act(states[row : row + 1])[0]))
    best = oracle[SEEN : SEEN + len(states)]

    def of(policy: Policy, resampled: list[Policy]) -> Judged:
        multiplier, confidence = (answer.astype(np.float64) for answer in policy.act(states))
        away = np.array([other.act(states)[0] for other in resampled]) - multiplier
        return Judged(confidence, np.abs(multiplier - best), np.sqrt(np.mean(away**2, axis=0)))

    found = {"ensemble": of(ensembles[0], ensembles[1:])}
    for k in range(SEEDS):
        single = [Policy(stack([tensors[j]]), {}) for tensors in sets[1:] for j in range(SEEDS)]
        found[f"seed {k}"] = of(Policy(stack([sets[0][k]]), {}), single)
    return found


def share_in_order(confidence: Floats, error: Floats) -> float:
    """Of resampled sets of states, the share in which the least sure fifth errs three times as much as the surest."""
    rng, n = np.random.default_rng(1), len(confidence)
    starts = rng.integers(0, n - BLOCK, (DRAWS, n // BLOCK))
    in_order = 0
    for begins in starts:
        rows = (begins[:, np.newaxis] + np.arange(BLOCK)).ravel()
        # Ties are broken at random, or a constant would be sorted by time.
        order = np.lexsort((rng.random(len(rows)), confidence[rows]))
        fifths = np.array_split(error[rows][order], 5)
        in_order += fifths[0].mean() > 3.0 * fifths[-1].mean()
    return in_order / DRAWS


def rank_correlation(confidence: Floats, error: Floats) -> float:
    return float(spearmanr(confidence, -error).statistic)


POLICIES = ["ensemble", *(f"seed {k}" for k in range(SEEDS))]


@pytest.mark.parametrize("who", POLICIES)
@pytest.mark.parametrize(("against", "least"), [("from_best", 0.5), ("from_resampled", 0.1)])
def test_higher_confidence_goes_with_a_smaller_error(
    judged: dict[str, Judged], who: str, against: str, least: float
) -> None:
    found = judged[who]
    error: Floats = getattr(found, against)
    assert rank_correlation(found.confidence, error) > least
    assert share_in_order(found.confidence, error) == 1.0
    table = [error[rows].mean() for rows in np.array_split(np.argsort(found.confidence, kind="stable"), 5)]
    assert all(np.diff(table) < 0.02), table
    assert table[0] > 5.0 * table[-1]


@pytest.mark.parametrize("who", POLICIES)
def test_a_confidence_without_meaning_would_be_found_out(judged: dict[str, Judged], who: str) -> None:
    found, rng = judged[who], np.random.default_rng(2)
    for error in (found.from_best, found.from_resampled):
        shuffled = rng.permutation(found.confidence)
        assert abs(rank_correlation(shuffled, error)) < 0.1
        assert share_in_order(shuffled, error) < 0.5
        assert share_in_order(np.full_like(error, 0.95), error) < 0.5
        assert share_in_order(1.0 - found.confidence, error) == 0.0


def test_it_is_not_the_same_for_all(judged: dict[str, Judged]) -> None:
    for found in judged.values():
        low, high = np.quantile(found.confidence, [0.02, 0.98])
        assert high - low > 0.1
