"""Every figure equals an independent public implementation, and is None where it is not defined."""

from __future__ import annotations

import math

import empyrical
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from layer3.backtest import metrics
from layer3.backtest.record import Track

Floats = NDArray[np.float64]
PERIODS = [365, 8_760, 35_040]


def random_returns(seed: int, n: int, scale: float = 0.01) -> Floats:
    rng = np.random.default_rng(seed)
    return np.clip(scale * rng.standard_t(4, n) + scale * rng.normal(0, 0.1), -0.9, 5.0)


def equity_of(returns: Floats) -> Floats:
    return 100_000.0 * np.concatenate(([1.0], np.cumprod(1.0 + returns)))


def make_track(returns: Floats, **columns: Floats) -> Track:
    n = len(returns)
    fixed = {name: np.zeros(n) for name in ("exposure", "turnover", "cost", "funding")}
    return Track(**({"equity": equity_of(returns), "multiplier": np.ones(n), "trades": np.empty(0), **fixed} | columns))


RETURNS = st.one_of(
    st.builds(random_returns, st.integers(0, 10_000), st.integers(2, 400), st.sampled_from([1e-5, 1e-3, 0.02, 0.2])),
    st.lists(st.floats(-0.3, 0.3), min_size=2, max_size=60).map(np.array),
)


@given(returns=RETURNS, periods=st.sampled_from(PERIODS))
def test_ratios_equal_empyrical(returns: Floats, periods: int) -> None:
    assume(returns.std() > 1e-9)
    assume((returns < 0.0).any() and np.sqrt(np.mean(np.minimum(returns, 0.0) ** 2)) > 1e-9)
    assert metrics.sharpe(returns, periods) == pytest.approx(
        empyrical.sharpe_ratio(returns, annualization=periods), rel=1e-9, abs=1e-12
    )
    assert metrics.sortino(returns, periods) == pytest.approx(
        empyrical.sortino_ratio(returns, annualization=periods), rel=1e-9, abs=1e-12
    )
    assert metrics.volatility(returns, periods) == pytest.approx(
        empyrical.annual_volatility(returns, annualization=periods), rel=1e-9
    )


@given(returns=RETURNS, periods=st.sampled_from(PERIODS))
def test_falls_and_growth_equal_empyrical(returns: Floats, periods: int) -> None:
    equity = equity_of(returns)
    fall = metrics.max_drawdown(equity)
    assert fall == pytest.approx(-empyrical.max_drawdown(returns), rel=1e-9, abs=1e-12)
    assert 0.0 <= fall <= 1.0
    growth = metrics.annual_return(equity, periods)
    if growth is not None and growth < 1e6:
        assert growth == pytest.approx(empyrical.annual_return(returns, annualization=periods), rel=1e-6, abs=1e-12)
        if fall > 1e-6:
            expected = empyrical.calmar_ratio(returns, annualization=periods)
            assert metrics.calmar(equity, periods) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("seconds", "periods"), [(3_600, 8_760), (86_400, 365), (900, 35_040)])
def test_a_summary_equals_empyrical_at_the_candles_own_interval(seed: int, seconds: int, periods: int) -> None:
    returns = random_returns(seed, 500)
    got = metrics.summarise(make_track(returns), seconds)
    expected = {
        "sharpe": empyrical.sharpe_ratio(returns, annualization=periods),
        "sortino": empyrical.sortino_ratio(returns, annualization=periods),
        "volatility": empyrical.annual_volatility(returns, annualization=periods),
        "max_drawdown": -empyrical.max_drawdown(returns),
        "total_return": empyrical.cum_returns_final(returns),
    }
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-9), name
    if got["annual_return"] is not None:
        assert got["annual_return"] == pytest.approx(empyrical.annual_return(returns, annualization=periods), rel=1e-6)
        assert got["calmar"] == pytest.approx(empyrical.calmar_ratio(returns, annualization=periods), rel=1e-6)


@pytest.mark.parametrize(
    ("seconds", "periods"), [(60, 525_600), (900, 35_040), (3_600, 8_760), (14_400, 2_190), (86_400, 365)]
)
def test_a_year_has_365_days_of_the_candles_own_bars(seconds: int, periods: int) -> None:
    assert metrics.periods_per_year(seconds) == periods


def test_a_sharpe_ratio_is_not_annualised_by_252_days_at_any_bar_size() -> None:
    returns = random_returns(1, 400)
    plain = float(returns.mean() / returns.std(ddof=1))
    track = make_track(returns)
    hourly, daily = (metrics.summarise(track, seconds)["sharpe"] for seconds in (3_600, 86_400))
    assert hourly == pytest.approx(plain * math.sqrt(8_760))
    assert daily == pytest.approx(plain * math.sqrt(365))


def test_a_table_by_hand() -> None:
    track = Track(
        equity=np.array([100.0, 110.0, 99.0, 108.9]),
        exposure=np.array([0.5, -0.25, 0.0]),
        multiplier=np.ones(3),
        turnover=np.array([0.5, 0.75, 0.25]),
        cost=np.array([0.1, 0.2, 0.3]),
        funding=np.zeros(3),
        trades=np.array([0.1, -0.1, 0.0, 0.2]),
    )
    got = metrics.summarise(track, 86_400)
    assert got["total_return"] == pytest.approx(0.089)
    assert got["max_drawdown"] == pytest.approx(0.1)
    assert got["turnover"] == pytest.approx(1.5 * 365 / 3)
    assert got["costs_paid"] == pytest.approx(0.6)
    assert got["mean_exposure"] == pytest.approx(0.25)
    assert got["trades"] == 4.0
    assert got["win_rate"] == 0.5  # a trade that ends where it began did not win
    assert got["annual_return"] == pytest.approx(1.089 ** (365 / 3) - 1.0)
    assert got["calmar"] == pytest.approx(got["annual_return"] / 0.1)


def test_the_first_loss_counts_from_the_capital() -> None:
    assert metrics.max_drawdown(np.array([100.0, 80.0, 90.0])) == pytest.approx(0.2)
    assert metrics.max_drawdown(np.array([100.0])) == 0.0


def test_a_flat_track_has_no_ratio_and_no_nan() -> None:
    got = metrics.summarise(make_track(np.zeros(100)), 3_600)
    for name in ("sharpe", "sortino", "calmar", "probabilistic_sharpe", "win_rate"):
        assert got[name] is None, name
    for name in ("total_return", "annual_return", "max_drawdown", "volatility", "turnover", "costs_paid", "trades"):
        assert got[name] == 0.0, name


@pytest.mark.parametrize(
    ("returns", "undefined"),
    [
        (np.full(50, 0.001), {"sharpe", "sortino", "calmar", "probabilistic_sharpe"}),
        (np.array([0.01, 0.02, 0.03]), {"sortino", "calmar"}),
        (np.array([0.01]), {"sharpe", "sortino", "calmar", "volatility", "probabilistic_sharpe"}),
    ],
    ids=["constant gain", "no loss", "one bar"],
)
def test_what_is_not_defined_is_none(returns: Floats, undefined: set[str]) -> None:
    got = metrics.summarise(make_track(returns), 86_400)
    assert {name for name, value in got.items() if value is None} == undefined | {"win_rate"}


def test_equity_that_was_lost_has_no_growth() -> None:
    lost = np.array([100.0, 50.0, -1.0])
    assert metrics.annual_return(lost, 365) is None
    assert metrics.calmar(lost, 365) is None
    assert metrics.max_drawdown(lost) > 1.0


@pytest.mark.parametrize("end", [[-55.0, -280.0], [-55.0, 10.0], [0.0, 0.0]])
def test_ruin_is_never_a_ratio(end: list[float]) -> None:
    """From -55 to -280 is a return of +4: a ruined account once had a Sharpe ratio of 2.8."""
    track = make_track(np.zeros(3), equity=np.array([100.0, 90.0, *end]))
    got = metrics.summarise(track, 3_600)
    for name in ("sharpe", "sortino", "calmar", "probabilistic_sharpe", "volatility", "annual_return", "turnover"):
        assert got[name] is None, name
    assert got["max_drawdown"] is not None
    assert got["max_drawdown"] >= 1.0
    assert got["total_return"] == end[-1] / 100.0 - 1.0


def test_a_lucky_day_is_not_compounded_beyond_numbers() -> None:
    assert metrics.annual_return(np.array([1.0, 10.0]), 8_760) is None
    assert metrics.annual_return(np.array([1.0]), 8_760) is None


@given(returns=RETURNS)
def test_every_figure_is_finite_or_none(returns: Floats) -> None:
    for name, value in metrics.summarise(make_track(returns), 3_600).items():
        assert value is None or math.isfinite(value), name
