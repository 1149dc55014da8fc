"""The stationary bootstrap equals its definition done in loops and arch's; its intervals hold what they promise."""

from __future__ import annotations

import math
import tracemalloc

import empyrical
import numpy as np
import pytest
from arch.bootstrap import StationaryBootstrap, optimal_block_length
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import norm

from layer3.backtest.bootstrap import (
    block_length,
    draw_blocks,
    drawdown_interval,
    equity_band,
    resampled_means,
    sharpe_difference_interval,
    sharpe_interval,
    working_length,
)
from layer3.backtest.record import Interval
from layer3.backtest.significance import influence, long_run_variance
from layer3.errors import EvaluationError

Floats = NDArray[np.float64]


def sample(seed: int, n: int, slope: float = 0.0, drift: float = 0.0) -> Floats:
    noise = np.random.default_rng(seed).standard_t(5, n + 100)
    return 0.005 * (drift + np.asarray(lfilter([1.0], [1.0, -slope], noise))[100:])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def resampled(series: Floats, length: float, resamples: int, seed: int) -> list[Floats]:
    """The resampled records, bar by bar, of the blocks that this generator draws."""
    n, out = len(series), []
    for starts, lengths in draw_blocks(rng(seed), n, length, resamples, resamples):
        for begin, long in zip(starts, lengths, strict=True):
            out.append(series[[(s + k) % n for s, m in zip(begin, long, strict=True) for k in range(m)]])
    return out


@pytest.mark.parametrize("slope", [0.0, 0.2, 0.6, 0.95, -0.4])
@pytest.mark.parametrize("n", [500, 4_000])
def test_the_block_length_equals_that_of_arch(n: int, slope: float) -> None:
    for seed in range(10):
        values = sample(seed, n, slope)
        theirs = float(optimal_block_length(values)["stationary"].iloc[0])
        assert block_length(values) == pytest.approx(max(theirs, 1.0), rel=1e-9)


def test_clusters_of_large_moves_ask_for_long_blocks() -> None:
    waves = np.exp(np.sin(np.arange(4_000) / 60.0))
    values = waves * np.random.default_rng(0).standard_normal(4_000)
    assert block_length(values) < 10.0 < 50.0 < block_length(values**2)
    assert working_length(values, values**2) == block_length(values**2)


@given(seed=st.integers(0, 1_000), n=st.integers(2, 400))
def test_blocks_are_never_so_long_that_a_record_has_few(seed: int, n: int) -> None:
    length = working_length(np.cumsum(sample(seed, n)))
    assert 1.0 <= length <= max(n / 10.0, 1.0)


@given(seed=st.integers(0, 1_000), n=st.integers(1, 500), length=st.floats(1.0, 60.0), chunk=st.integers(1, 30))
def test_blocks_make_whole_records(seed: int, n: int, length: float, chunk: int) -> None:
    drawn = list(draw_blocks(rng(seed), n, length, 25, chunk))
    assert sum(len(starts) for starts, _ in drawn) == 25
    for starts, lengths in drawn:
        assert len(starts) <= chunk
        assert (lengths.sum(axis=1) == n).all()
        assert lengths.min() >= 0
        assert starts.min() >= 0
        assert starts.max() < n


def test_blocks_are_geometric_and_start_anywhere() -> None:
    ((starts, lengths),) = draw_blocks(rng(), 5_000, 12.0, 200, 200)
    whole = lengths[:, :300]
    assert whole.mean() == pytest.approx(12.0, rel=0.02)
    assert whole.std() == pytest.approx(math.sqrt(12.0 * 11.0), rel=0.03)
    assert starts.mean() == pytest.approx(2_499.5, rel=0.02)


@given(seed=st.integers(0, 1_000), n=st.integers(5, 80), length=st.floats(1.0, 10.0))
@settings(max_examples=30)
def test_means_of_resamples_equal_a_loop(seed: int, n: int, length: float) -> None:
    columns = np.stack([sample(seed, n), sample(seed + 1, n)], axis=1)
    slow = np.array([record.mean(axis=0) for record in resampled(columns, length, 7, seed)])
    np.testing.assert_allclose(resampled_means(columns, rng(seed), 7, length), slow, atol=1e-15)


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_means_of_resamples_spread_like_those_of_arch(slope: float) -> None:
    values = sample(3, 600, slope)
    ours = resampled_means(values[:, None], rng(), 4_000, 8.0)[:, 0]
    theirs = StationaryBootstrap(8, values, seed=1).apply(np.mean, 4_000)[:, 0]
    assert ours.mean() == pytest.approx(theirs.mean(), abs=4.0 * ours.std() / math.sqrt(2_000))
    assert ours.std() == pytest.approx(theirs.std(), rel=0.05)
    quantiles = [0.05, 0.25, 0.75, 0.95]
    np.testing.assert_allclose(np.quantile(ours, quantiles), np.quantile(theirs, quantiles), atol=0.12 * ours.std())


def ratio_of(returns: Floats) -> float:
    return float(returns.mean() / returns.std(ddof=1))


def plain_interval(series: list[Floats], resamples: int, seed: int, level: float) -> tuple[float, float, float]:
    """The studentised bootstrap of a ratio, or of the first less the second, one resample after the other."""
    n, signs = len(series[0]), (1.0, -1.0)
    values = np.zeros(n)
    for sign, returns in zip(signs, series, strict=False):
        values += sign * influence(returns)
    estimate = sum(sign * ratio_of(returns) for sign, returns in zip(signs, series, strict=False))
    floor = 1.0 if len(series) == 1 else 0.0
    error = math.sqrt(max(long_run_variance(values), floor) / (n - 1))
    length, distances = working_length(values), []
    bars = resampled(np.arange(n), length, resamples, seed)
    ((_, lengths),) = draw_blocks(rng(seed), n, length, resamples, resamples)
    for index, long in zip(bars, lengths, strict=True):
        ratio, parts = 0.0, np.zeros(n)
        for sign, returns in zip(signs, series, strict=False):
            record = returns[index]
            z, own = (record - record.mean()) / record.std(), record.mean() / record.std()
            ratio += sign * ratio_of(record)
            parts += sign * (z - 0.5 * own * (z**2 - 1.0))
        blocks = np.add.reduceat(parts, np.cumsum(long[long > 0]) - long[long > 0])
        distances.append(abs(ratio - estimate) / math.sqrt(np.sum(blocks**2) / (n * (n - 1))))
    reach = max(float(np.quantile(distances, level)), float(norm.ppf(0.5 + 0.5 * level))) * error
    return estimate, estimate - reach, estimate + reach


@pytest.mark.parametrize("slope", [0.0, 0.6])
@pytest.mark.parametrize("level", [0.6, 0.9])
def test_intervals_equal_a_loop(slope: float, level: float) -> None:
    one, other = sample(1, 150, slope, 0.1), sample(1, 150, slope, 0.1) + sample(2, 150)
    got = sharpe_interval(one, rng(5), resamples=60, level=level)
    assert (got.estimate, got.low, got.high) == pytest.approx(plain_interval([one], 60, 5, level), rel=1e-9)
    got = sharpe_difference_interval(one, other, rng(6), resamples=60, level=level)
    assert (got.estimate, got.low, got.high) == pytest.approx(plain_interval([one, other], 60, 6, level), rel=1e-9)
    assert got.level == level


@given(seed=st.integers(0, 1_000))
@settings(max_examples=10)
def test_drawdowns_of_resamples_equal_a_loop(seed: int) -> None:
    returns = sample(seed, 120, 0.3)
    steps = np.log1p(returns)
    records = resampled(returns, working_length(steps, steps**2), 40, seed)
    falls = [-float(empyrical.max_drawdown(record)) for record in records]
    got = drawdown_interval(returns, rng(seed), resamples=40)
    assert got.estimate == pytest.approx(-float(empyrical.max_drawdown(returns)), rel=1e-9)
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(falls, [0.05, 0.95])), rel=1e-9)


def holds(interval: Interval, value: float) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= value <= interval.high


@pytest.mark.parametrize(("slope", "drift"), [(0.0, 0.1), (0.4, 0.0)])
def test_ninety_percent_intervals_hold_the_ratio_about_so_often(slope: float, drift: float) -> None:
    truth = ratio_of(sample(99, 1_000_000, slope, drift))
    inside = [
        holds(sharpe_interval(sample(seed, 600, slope, drift), rng(seed), resamples=300), truth) for seed in range(250)
    ]
    assert 0.84 <= np.mean(inside) <= 0.96


def test_ninety_percent_intervals_hold_the_difference_about_so_often() -> None:
    inside, above = [], []
    for seed in range(250):
        common = sample(seed, 600)
        one, other = common + sample(1_000 + seed, 600), 0.3 * (common + sample(2_000 + seed, 600))
        interval = sharpe_difference_interval(one, other, rng(seed), resamples=300)
        inside.append(holds(interval, 0.0))
        above.append(interval.low is not None and interval.low > 0.0)
    assert 0.84 <= np.mean(inside) <= 0.96
    assert np.mean(above) <= 0.08


def test_ninety_percent_intervals_hold_the_next_record_s_drawdown_about_so_often() -> None:
    inside = []
    for seed in range(200):
        interval = drawdown_interval(sample(seed, 600), rng(seed), resamples=200)
        coming = sample(5_000 + seed, 600)
        inside.append(holds(interval, -float(empyrical.max_drawdown(coming))))
    assert 0.75 <= np.mean(inside) <= 0.97


@given(seed=st.integers(0, 1_000), n=st.integers(60, 400), factor=st.sampled_from([1e-2, 3.0]))
@settings(max_examples=25)
def test_an_interval_holds_its_estimate_and_does_not_depend_on_the_scale(seed: int, n: int, factor: float) -> None:
    returns = sample(seed, n, 0.2, 0.05)
    got = sharpe_interval(returns, rng(seed), resamples=200)
    assert got.estimate is not None
    assert holds(got, got.estimate)
    scaled = sharpe_interval(factor * returns, rng(seed), resamples=200)
    assert (got.estimate, got.low, got.high) == pytest.approx((scaled.estimate, scaled.low, scaled.high), rel=1e-9)


def test_a_seed_gives_the_same_interval_and_another_a_similar_one() -> None:
    returns, other = sample(0, 2_000, 0.1, 0.05), sample(1, 2_000)
    for function in (
        lambda seed: sharpe_interval(returns, rng(seed)),
        lambda seed: drawdown_interval(returns, rng(seed)),
        lambda seed: sharpe_difference_interval(returns, other, rng(seed)),
    ):
        one, same, another = function(3), function(3), function(4)
        assert one == same
        assert one != another
        assert (one.low, one.high) == pytest.approx((another.low, another.high), abs=0.15 * (one.high - one.low))


def test_pairing_sees_what_two_intervals_cannot() -> None:
    common = sample(0, 2_000)
    better = common + 0.0004
    interval = sharpe_difference_interval(better, common, rng())
    assert interval.low is not None
    assert interval.low > 0.0
    one, other = sharpe_interval(better, rng()), sharpe_interval(common, rng())
    assert one.low is not None
    assert other.high is not None
    assert one.low < other.high


@pytest.mark.parametrize("factor", [1.0, 0.37, 2.5])
def test_the_same_record_at_another_size_differs_by_exactly_nothing(factor: float) -> None:
    returns = sample(0, 500, drift=0.1)
    assert sharpe_difference_interval(factor * returns, returns, rng()) == Interval(0.0, 0.0, 0.0)


def test_against_cash_the_difference_is_the_ratio() -> None:
    returns = sample(0, 500, drift=0.1)
    assert sharpe_difference_interval(returns, np.zeros(500), rng(1)) == sharpe_interval(returns, rng(1))


@pytest.mark.parametrize(
    ("returns", "others"),
    [(np.zeros(100), sample(0, 100)), (sample(0, 100), np.full(100, 1e-4)), (np.zeros(100), np.zeros(100))],
    ids=["a flat policy", "a constant gain", "both flat"],
)
def test_a_difference_to_what_has_no_ratio_is_none(returns: Floats, others: Floats) -> None:
    assert sharpe_difference_interval(returns, others, rng()) == Interval(None, None, None)


@pytest.mark.parametrize("returns", [np.empty(0), np.array([0.1, 0.2]), np.zeros(500), np.full(500, 0.001)])
def test_what_has_no_ratio_has_no_interval(returns: Floats) -> None:
    assert sharpe_interval(returns, rng()) == Interval(None, None, None)


def test_a_short_record_has_an_estimate_only() -> None:
    returns = sample(0, 19, drift=0.1)
    assert sharpe_interval(returns, rng()) == Interval(ratio_of(returns), None, None)
    fall = drawdown_interval(returns, rng())
    assert fall.estimate is not None
    assert (fall.low, fall.high) == (None, None)
    assert drawdown_interval(np.empty(0), rng()) == Interval(None, None, None)


def test_a_market_that_never_moves_never_falls() -> None:
    assert drawdown_interval(np.zeros(100), rng()) == Interval(0.0, 0.0, 0.0)


@pytest.mark.parametrize("held", [1, 2])
@pytest.mark.parametrize("base", [0.0, 0.001])
def test_a_lucky_bar_or_two_prove_nothing(held: int, base: float) -> None:
    """Resamples of a record that gained once hold the gain several times or not at all, never a loss."""
    for seed in range(5):
        common = base * sample(seed, 300) / 0.005
        lucky = common.copy()
        lucky[rng(seed).choice(300, held, replace=False)] += 0.02
        for got in (sharpe_interval(lucky, rng()), sharpe_difference_interval(lucky, 0.7 * common, rng())):
            assert got.low is not None
            assert got.high is not None
            assert -3.0 < got.low < got.high < 3.0
        difference = sharpe_difference_interval(lucky, 0.7 * common, rng())
        assert difference.low is not None
        assert difference.low <= 0.0


def test_what_cannot_be_resampled_is_refused() -> None:
    returns = sample(0, 100)
    returns[40] = -1.0
    with pytest.raises(EvaluationError, match="bar 40 is -1"):
        drawdown_interval(returns, rng())
    returns[30] = np.nan
    for call in (
        lambda: sharpe_interval(returns, rng()),
        lambda: drawdown_interval(returns, rng()),
        lambda: sharpe_difference_interval(returns, np.zeros(100), rng()),
        lambda: sharpe_difference_interval(np.zeros(100), returns, rng()),
    ):
        with pytest.raises(EvaluationError, match="at bar 30"):
            call()
    with pytest.raises(EvaluationError, match="100 returns against 99"):
        sharpe_difference_interval(sample(0, 100), sample(0, 99), rng())


HOUR = 3_600 * 10**9


def equity_of(returns: Floats) -> Floats:
    return 1e5 * np.concatenate(([1.0], np.cumprod(1.0 + returns)))


def test_the_band_is_of_day_ends_and_widens() -> None:
    returns, start = sample(0, 24 * 30, drift=0.02), 19_800 * 24 * HOUR + 5 * HOUR
    days, low, high = equity_band(start + HOUR * np.arange(len(returns)), equity_of(returns), seed=1)
    assert days == tuple(float(day) for day in range(19_800, 19_831))
    assert (np.array(low) < np.array(high)).all()
    width = np.log(high) - np.log(low)
    assert width[-1] > 3.0 * width[0]
    again = equity_band(start + HOUR * np.arange(len(returns)), 7.0 * equity_of(returns), seed=1)
    np.testing.assert_allclose(again[1:], (low, high))


def test_the_band_equals_a_loop() -> None:
    returns = sample(2, 90, 0.3)
    steps = np.log1p(returns)
    _, low, high = equity_band(HOUR * np.arange(90), equity_of(returns), seed=4, resamples=50)
    paths = [np.cumprod(1.0 + record) for record in resampled(returns, working_length(steps, steps**2), 50, 4)]
    ends = np.log(np.stack(paths)[:, [23, 47, 71, 89]])
    np.testing.assert_allclose((low, high), np.exp(np.quantile(ends, [0.05, 0.95], axis=0)), rtol=1e-9)


@pytest.mark.parametrize("count", [400, 401, 1_500])
def test_a_long_band_is_thinned_and_ends_with_the_last_day(count: int) -> None:
    stamps = 24 * HOUR * np.arange(count)
    days, low, high = equity_band(stamps, equity_of(sample(0, count)), seed=0, resamples=20)
    assert len(days) == len(low) == len(high) <= 400
    assert days[-1] == count - 1
    assert len(set(np.diff(days))) == 1


@pytest.mark.parametrize("end", [0.0, -5.0])
def test_a_band_around_a_lost_account_is_refused(end: float) -> None:
    equity = equity_of(sample(0, 50))
    equity[-1] = end
    with pytest.raises(EvaluationError, match="never lost"):
        equity_band(HOUR * np.arange(50), equity, seed=0)
    with pytest.raises(EvaluationError, match="at least 20 bars"):
        equity_band(HOUR * np.arange(3), np.ones(4), seed=0)
    with pytest.raises(EvaluationError, match="around -1 bars"):
        equity_band(np.empty(0, dtype=np.int64), np.empty(0), seed=0)


def test_two_years_of_hours_need_little_memory() -> None:
    returns = sample(0, 17_520)
    tracemalloc.start()
    drawdown_interval(returns, rng(), resamples=200)
    sharpe_interval(returns, rng())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
