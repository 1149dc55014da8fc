"""The permutation test: the walk is the backtest's, the paths are the chain's, and its p value means what it says."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import ArrayLike, NDArray

from layer3.agent.bars import Bars, concatenate, prepare
from layer3.agent.environment import EnvironmentConfig
from layer3.agent.policy import Policy, stack
from layer3.backtest import paths as module
from layer3.backtest.engine import run
from layer3.backtest.metrics import periods_per_year, sharpe
from layer3.backtest.paths import MIN_BLOCKS, permutation_test, walk
from layer3.backtest.record import Permutation
from layer3.errors import EvaluationError
from layer3.ledger import Costs
from layer3.market.permutation import permuted, rebuilt
from layer3.market.signals import with_signals
from layer3.market.simulator import MarketSpec, simulate
from layer3.sizing.config import ChainConfig, KellyConfig
from layer3.sizing.history import replay
from tests.agent.worlds import constant_tensors, make_bars, make_member, make_tensors

HOUR = 3_600
CANDLES = ["timestamp", "open", "high", "low", "close", "volume"]
YEAR = periods_per_year(HOUR)
#: A chain that goes on however many of its paper trades lose.
STUBBORN = KellyConfig(min_win_probability=0.0)


class Plain(Policy):
    """A policy whose answers come of no matrix product, so that one state and a batch give the same bits."""

    def act(self, states: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        x = np.asarray(states, dtype=np.float32)
        answer = np.clip(x[..., 15] + x[..., 0] + x[..., 10] + 0.5 * x[..., 14], 0.0, 2.0)
        return answer, np.ones_like(answer)


@pytest.fixture
def plain() -> Plain:
    return Plain(make_tensors(), {})


def decide(policy: Policy) -> Any:
    return {"policy": lambda state, _: float(policy.act(state)[0])}


def judged(candles: pd.DataFrame, window: range, policy: Policy) -> float:
    """The policy's Sharpe ratio on the real path; 0 without one."""
    bars, _ = prepare(candles, "SYNTH-USD", HOUR, ChainConfig(kelly=STUBBORN))
    equity = run(bars, window, decide(policy))["policy"].equity
    return sharpe(equity[1:] / equity[:-1] - 1.0, YEAR) or 0.0


def permutation(candles: pd.DataFrame, window: range, policy: Policy, **settings: Any) -> Permutation:
    asked: dict[str, Any] = {"kind": "bars", "real": 1.0, "seed": 1, "paths": 6} | settings
    chain = asked.pop("chain", ChainConfig(kelly=STUBBORN))
    return permutation_test(candles, "SYNTH-USD", HOUR, chain, window, policy, **asked)


def reader_of_tiers() -> Policy:
    """Knows what the simulator plants: signals of tiers 1 and 2 are worth something, those of 3 and 4 mislead."""
    member = {name: np.zeros_like(tensor) for name, tensor in make_member().items()}
    member["std"] = np.ones_like(member["std"])
    member["w1"][4:8, 0] = [2.0, 2.0, -2.0, -2.0]
    member["w2"][0, 0], member["w3"][0, 0] = 2.0, 4.0
    return Policy(stack([member]), {})


@pytest.mark.parametrize("config", [EnvironmentConfig(), EnvironmentConfig(5_000.0, Costs(0.004, 0.002), 0.3)])
def test_the_walk_over_many_paths_is_the_backtest_of_each(plain: Plain, config: EnvironmentConfig) -> None:
    rng = np.random.default_rng(1)
    idle = np.repeat(rng.random(40) < 0.5, 10)
    worlds = [
        make_bars(400, seed, funding_rate=1e-3 * rng.standard_normal(400), base_fraction=np.where(idle, 0.0, 0.3))
        for seed in (1, 2, 3)
    ]
    got = walk(concatenate(worlds), 3, plain, config)
    assert got.shape == (3, 399)
    for equity, bars in zip(got, worlds, strict=True):
        np.testing.assert_array_equal(equity, run(bars, range(400), decide(plain), config)["policy"].equity)


@pytest.mark.parametrize("members", [1, 3])
def test_a_batch_of_states_differs_by_rounding_only(members: int) -> None:
    policy = Policy(make_tensors(members=members), {})
    worlds = [make_bars(300, seed) for seed in range(5)]
    for equity, bars in zip(walk(concatenate(worlds), 5, policy, EnvironmentConfig()), worlds, strict=True):
        np.testing.assert_allclose(equity, run(bars, range(300), decide(policy))["policy"].equity, rtol=1e-5)


def test_an_answer_that_is_not_finite_is_refused() -> None:
    class Broken(Plain):
        def act(self, states: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            answer, confidence = super().act(states)
            return np.where(np.asarray(states)[..., 0] > 0.01, np.nan, answer), confidence

    with pytest.raises(EvaluationError, match="no finite multiplier at bar 41"):
        walk(make_bars(100, base_fraction=np.full(100, 0.2)), 1, Broken(make_tensors(), {}), EnvironmentConfig())


def in_place(candles: pd.DataFrame, window: range, *, block: int, rng: np.random.Generator) -> pd.DataFrame:
    return rebuilt(candles, window, np.arange(len(window)))


#: Candles with every signal of layer 2, with some, with one other column, with none.
WORLDS = {
    "all signals": None,
    "some signals": ["signal_action", "signal_confidence", "funding_rate"],
    "a feed": ["funding_rate"],
    "none": [],
}


@pytest.fixture(scope="module", params=WORLDS.values(), ids=WORLDS.keys())
def candles(request: pytest.FixtureRequest) -> pd.DataFrame:
    full = simulate(MarketSpec(bars=5_000, seed=5))
    return full if request.param is None else full[[*CANDLES, *request.param]]


@pytest.mark.parametrize(
    ("chain", "window"),
    [(ChainConfig(), range(3_700, 4_600)), (ChainConfig(allow_shorts=False, kelly=STUBBORN), range(1_000, 3_000))],
    ids=["default", "no shorts"],
)
def test_the_real_order_gives_the_real_bars_and_record(
    monkeypatch: pytest.MonkeyPatch, plain: Plain, candles: pd.DataFrame, chain: ChainConfig, window: range
) -> None:
    monkeypatch.setattr(module, "permuted", in_place)
    market = module._Market.of(candles, HOUR, chain, window)
    path = market.path(1, np.random.default_rng(0))
    bars, _ = prepare(candles, "SYNTH-USD", HOUR, chain)
    for field in dataclasses.fields(Bars):
        real = getattr(bars, field.name)[window.start : window.stop]
        np.testing.assert_allclose(getattr(path, field.name), real, rtol=1e-9, atol=1e-11, err_msg=field.name)
    equity = run(bars, window, decide(plain))["policy"].equity
    np.testing.assert_allclose(walk(path, 1, plain, EnvironmentConfig())[0], equity, rtol=1e-9)
    assert np.ptp(equity) > 0.0
    real_sharpe = sharpe(equity[1:] / equity[:-1] - 1.0, YEAR)
    assert permutation(candles, window, plain, chain=chain, paths=2).values == pytest.approx(
        [real_sharpe] * 2, abs=1e-6
    )


@pytest.mark.parametrize("kind", ["bars", "blocks"])
def test_every_path_is_the_product_run_on_permuted_candles(plain: Plain, candles: pd.DataFrame, kind: Any) -> None:
    """The slow way: a whole file of candles per path, the loop over the chain, the backtest."""
    window, chain = range(3_000, 3_800), ChainConfig(kelly=STUBBORN)
    result = permutation(candles, window, plain, kind=kind, paths=3, seed=9)
    assert result.signals == ("kept" if "signal_action" in candles else "recomputed")
    assert (result.kind, result.block_bars) == (kind, 1 if kind == "bars" else 24)
    for k, value in enumerate(result.values):
        rng = np.random.default_rng([9, k])
        path = permuted(candles, window, block=result.block_bars, rng=rng).iloc[: window.stop]
        history = replay(with_signals(path).frame, "SYNTH-USD", HOUR, chain)
        bars, _ = prepare(path, "SYNTH-USD", HOUR, chain)
        np.testing.assert_array_equal(bars.base_fraction, history.base_fraction)
        equity = run(bars, window, decide(plain))["policy"].equity
        assert value == pytest.approx(sharpe(equity[1:] / equity[:-1] - 1.0, YEAR), abs=1e-6)


@pytest.mark.parametrize("members", [0, 1, 2])
def test_the_seed_decides_whatever_is_walked_together(
    monkeypatch: pytest.MonkeyPatch, plain: Plain, members: int
) -> None:
    candles, window = simulate(MarketSpec(bars=2_000, seed=3)), range(1_700, 2_000)
    policy = Policy(make_tensors(members=members, hidden=64), {}) if members else plain
    whole = permutation(candles, window, policy, paths=37)
    assert len(set(whole.values)) == 37
    assert permutation(candles, window, policy, paths=37) == whole
    assert permutation(candles, window, policy, paths=20).values == whole.values[:20]
    assert not set(permutation(candles, window, policy, paths=5, seed=2).values) & set(whole.values)
    monkeypatch.setattr(module, "_MEMORY_BYTES", 1.0)  # as few together as can be
    walked = []
    monkeypatch.setattr(module, "walk", lambda bars, n, *rest: (walked.append(n), walk(bars, n, *rest))[1])
    assert permutation(candles, window, policy, paths=37) == whole
    assert walked == [16, 16, 5]


def test_p_counts_the_real_path_among_them(plain: Plain) -> None:
    candles, window = simulate(MarketSpec(bars=2_000, seed=3)), range(1_400, 2_000)
    values = sorted(permutation(candles, window, plain, paths=9).values)
    assert len(set(values)) == 9
    for real, p in ((1e9, 0.1), (values[8], 0.2), (np.nextafter(values[8], 1e9), 0.1), (values[0], 1.0), (-1e9, 1.0)):
        result = permutation(candles, window, plain, paths=9, real=real)
        assert result.p == pytest.approx(p)
        assert result.real == real
        assert result.p == (1 + sum(v >= real for v in result.values)) / 10


def test_a_ruined_path_has_no_ratio() -> None:
    equity = np.array([[1.0, 2.0, 3.0], [1.0, -0.5, 0.5], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    ratios = list(module._sharpes(equity, HOUR))
    assert ratios[0] == pytest.approx(sharpe(np.array([1.0, 0.5]), YEAR))
    assert ratios[1:] == [None, None, None]


def test_what_cannot_be_tested_says_why(plain: Plain) -> None:
    candles, window = simulate(MarketSpec(bars=2_000, seed=3)), range(1_000, 2_000)
    still = candles.assign(**dict.fromkeys(("open", "high", "low", "close"), 250.0))
    closes = 100.0 * 1.001 ** np.arange(2_000)
    steady = candles.assign(open=closes / 1.0005, low=closes / 1.0005, close=closes, high=closes)
    held = candles.assign(signal_action="hold")
    idle = Policy(constant_tensors(1.0), {})
    cases: list[tuple[str, pd.DataFrame, range, Policy, dict[str, Any]]] = [
        ("bars hold 9 blocks of 1, a permutation test needs 10", candles, range(100, 109), plain, {}),
        ("0 bars hold 0 blocks", candles, range(100, 100), plain, {}),
        ("239 bars hold 9 blocks of 24", candles, range(1_000, 1_239), plain, {"kind": "blocks"}),
        ("the window ends at bar 2,001, there are 2,000", candles, range(1_000, 2_001), plain, {}),
        ("all 1,000 bars of SYNTH-USD are alike", still, window, plain, {}),
        ("all 1,000 bars of SYNTH-USD are alike", steady, window, plain, {}),
        ("no position is held on any of 6 paths of SYNTH-USD", held, window, idle, {}),
        ("Sharpe ratio is nan", candles, window, plain, {"real": float("nan")}),
        ("of 0 paths says nothing", candles, window, plain, {"paths": 0}),
    ]
    for says, frame, bars, policy, settings in cases:
        with pytest.raises(EvaluationError, match=says):
            permutation(frame, bars, policy, **settings)
    assert len(permutation(candles, range(1_000, 1_000 + MIN_BLOCKS * 24), idle, kind="blocks").values) == 6


@pytest.mark.parametrize("kind", ["bars", "blocks"])
@pytest.mark.parametrize("seed", [1, 2])
def test_an_edge_that_is_there_does_not_survive_shuffling(kind: Any, seed: int) -> None:
    policy, window = reader_of_tiers(), range(1_000, 3_000)
    candles = simulate(MarketSpec(edge=1.5, bars=3_000, seed=seed))
    real = judged(candles, window, policy)
    result = permutation(candles, window, policy, kind=kind, real=real, paths=79)
    assert real > 3.0
    assert result.p <= 0.05
    assert abs(np.mean(result.values)) < 2.0


def test_without_an_edge_every_p_is_as_likely() -> None:
    policy, window = reader_of_tiers(), range(1_400, 2_000)
    found = []
    for seed in range(16):
        candles = simulate(MarketSpec(edge=0.0, bars=2_000, seed=seed))
        real = judged(candles, window, policy)
        found.append(permutation(candles, window, policy, real=real, paths=19).p)
    p = np.array(found)
    # Of 16 uniform numbers: the mean within 3 standard errors, and at most 4 at or below 0.05 (odds 1 : 1,000).
    assert 0.28 < p.mean() < 0.72
    assert (p <= 0.05).sum() <= 4
    assert p.min() < 0.3
    assert p.max() > 0.7


@pytest.mark.parametrize("kind", ["bars", "blocks"])
@pytest.mark.parametrize("brings_signals", [True, False])
def test_merely_being_long_in_a_rising_market_is_no_edge(kind: Any, brings_signals: bool) -> None:
    n, found = 1_900, []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        close = 100.0 * np.exp(np.cumsum(0.001 + 0.005 * rng.standard_normal(n)))
        before = np.append(100.0, close[:-1])
        candles = pd.DataFrame(
            {
                "timestamp": pd.date_range("2024-01-01", periods=n, freq="h", tz="UTC", unit="ns"),
                "open": before,
                "high": np.maximum(before, close),
                "low": np.minimum(before, close),
                "close": close,
                "volume": rng.lognormal(3, 1, n),
            }
        )
        if brings_signals:
            candles = candles.assign(signal_action="buy", signal_confidence=0.8)
        policy, window = Policy(constant_tensors(1.5), {}), range(1_300, n)
        real = judged(candles, window, policy)
        result = permutation(candles, window, policy, kind=kind, real=real, paths=19)
        assert real > 2.0 or not brings_signals
        assert np.mean(result.values) > 2.0 or not brings_signals  # what is earned is earned in any order
        found.append(result.p)
    assert np.mean(found) > 0.2
    assert max(found) > 0.3
