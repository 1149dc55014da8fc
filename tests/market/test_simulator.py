"""The simulator: deterministic, a martingale without edge, and with one exactly the edge that was planted."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from layer3.agent.bars import Bars, prepare
from layer3.backtest.engine import run
from layer3.backtest.metrics import summarise
from layer3.errors import ConfigurationError
from layer3.market import candles, simulator
from layer3.market.simulator import IC, MarketSpec, _autoregressive, load_synthetic, parse, quality, simulate

MANY = 150_000


@pytest.fixture(scope="module")
def fair() -> pd.DataFrame:
    return simulate(MarketSpec(edge=0.0, bars=MANY, seed=11))


@pytest.fixture(scope="module")
def edged() -> pd.DataFrame:
    return simulate(MarketSpec(edge=1.0, bars=MANY, seed=11))


def next_returns(frame: pd.DataFrame) -> NDArray[np.float64]:
    """What a decision at each close but the last two earns: open to open."""
    opens = frame["open"].to_numpy()
    return opens[2:] / opens[1:-1] - 1.0


def turbulent(frame: pd.DataFrame) -> NDArray[np.bool_]:
    return frame["regime"].isin(["high_volatility", "crisis"]).to_numpy()


def worth(frame: pd.DataFrame) -> NDArray[np.float64]:
    """quality x side, from the frame's own columns."""
    action = frame["signal_action"]
    side = action.str.endswith("buy").astype(int).to_numpy() - action.str.endswith("sell").astype(int).to_numpy()
    return _quality(frame) * side


def _quality(frame: pd.DataFrame) -> NDArray[np.float64]:
    return quality(frame["signal_risk_score"].to_numpy(), frame["signal_confidence"].to_numpy(), turbulent(frame))


def sized(frame: pd.DataFrame) -> Bars:
    return prepare(candles.check(frame, "simulated")[0], "SYNTH-USD", 3_600)[0]


def digest(spec: MarketSpec) -> str:
    frame = simulate(spec)
    content = b"".join(np.ascontiguousarray(frame[name].astype(str).to_numpy(str)).tobytes() for name in frame)
    return hashlib.sha256(content).hexdigest()


def test_the_same_spec_gives_the_same_bytes_and_another_does_not() -> None:
    specs = [MarketSpec(bars=2_000), MarketSpec(bars=2_000, seed=2), MarketSpec(bars=2_000, edge=0.5)]
    first = [digest(spec) for spec in specs]
    assert [digest(spec) for spec in specs] == first
    assert len(set(first)) == 3


def test_the_edge_changes_the_prices_and_nothing_that_was_drawn() -> None:
    with_edge, without = (simulate(MarketSpec(edge=edge, bars=3_000)) for edge in (1.0, 0.0))
    for name in ("signal_action", "signal_confidence", "signal_risk_score", "regime", "funding_rate"):
        assert with_edge[name].tolist() == without[name].tolist()
    assert not np.allclose(with_edge["close"], without["close"])


@pytest.mark.parametrize("edge", [0.0, 1.0, 10.0])
def test_every_market_passes_the_checks_of_real_candles(edge: float) -> None:
    frame = simulate(MarketSpec(edge=edge, bars=5_000, seed=4))
    checked, report = candles.check(frame, "simulated")
    assert (len(checked), report.filled_rows, report.interval_seconds) == (5_000, 0, 3_600)
    assert report.rows_without_signal == 0
    assert not report.ignored_columns


def test_without_edge_nothing_known_says_anything_of_the_next_return(fair: pd.DataFrame) -> None:
    ahead = next_returns(fair)
    known = fair.iloc[: len(ahead)]
    before = fair["close"].pct_change().fillna(0.0).to_numpy()[: len(ahead)]
    predictors = {
        "worth": worth(fair)[: len(ahead)],
        "confidence": known["signal_confidence"].to_numpy(),
        "risk": known["signal_risk_score"].to_numpy(),
        "turbulent": turbulent(fair)[: len(ahead)].astype(float),
        "sentiment": known["sentiment_score"].to_numpy(),
        "last return": before,
        "funding": known["funding_rate"].to_numpy(),
        "volume": np.log(known["volume"].to_numpy()),
    }
    # White's standard errors: the noise is louder where the market is turbulent.
    for name, values in predictors.items():
        centred = (values - values.mean()) / values.std()
        z = np.sum(centred * ahead) / np.sqrt(np.sum(centred**2 * ahead**2))
        assert abs(z) < 4.0, f"{name} foretells the next return: z = {z:.1f}"
    assert abs(ahead.mean()) < 4.0 * ahead.std() / np.sqrt(len(ahead))


@pytest.mark.parametrize("hours", [2, 8, 24])
def test_without_edge_the_variance_grows_with_time(fair: pd.DataFrame, hours: int) -> None:
    returns = np.diff(np.log(fair["close"].to_numpy()))
    returns = returns[: len(returns) // hours * hours]
    ratio = returns.reshape(-1, hours).sum(axis=1).var() / (hours * returns.var())
    # Lo and MacKinlay's standard error, doubled for the clustering of volatility.
    error = 2.0 * np.sqrt(2.0 * (2 * hours - 1) * (hours - 1) / (3.0 * hours * len(returns)))
    assert abs(ratio - 1.0) < 4.0 * error


def test_the_price_is_the_martingale_and_not_its_logarithm(monkeypatch: pytest.MonkeyPatch) -> None:
    # At hourly volatilities the difference drowns in noise: eight times as loud, it shows.
    monkeypatch.setattr(simulator, "_SIGMA", 8.0 * simulator._SIGMA)
    prices = simulate(MarketSpec(edge=0.0, bars=MANY, seed=11))["close"].to_numpy()
    for changes, centred in ((prices[1:] / prices[:-1] - 1.0, True), (np.diff(np.log(prices)), False)):
        z = changes.mean() / changes.std() * np.sqrt(len(changes))
        assert (abs(z) < 4.0) == centred


def test_the_edge_is_in_the_bar_after_the_signal_and_nowhere_else(fair: pd.DataFrame, edged: pd.DataFrame) -> None:
    # Both markets draw the same shocks: what differs is the drift, sigma times quality times side.
    drift = np.diff(np.log(edged["close"].to_numpy())) - np.diff(np.log(fair["close"].to_numpy()))
    before = worth(edged)[:-1]
    drift[np.abs(drift) < 1e-12] = 0.0
    np.testing.assert_array_equal(np.sign(drift), np.sign(before))
    sigma = drift[before != 0.0] / (IC * before[before != 0.0])
    assert 0.001 < sigma.min() < sigma.max() < 0.04


@pytest.mark.parametrize("edge", [0.5, 1.0, 3.0])
def test_the_planted_correlation_is_there_within_its_standard_error(edge: float) -> None:
    frame = simulate(MarketSpec(edge=edge, bars=60_000, seed=7))
    x, ahead = worth(frame)[:-2], next_returns(frame)
    # Standardise by regime, which switches the volatility, so that the noise is alike.
    regime = frame["regime"].to_numpy()[1:-1]
    scaled = ahead / pd.Series(ahead).groupby(regime).transform("std").to_numpy()
    fit = stats.linregress(x, scaled)
    assert abs(fit.slope - edge * IC) < 4.0 * fit.stderr + 0.05 * edge * IC
    assert fit.slope > 5.0 * fit.stderr


def test_a_good_signal_earns_and_a_misleading_one_loses(edged: pd.DataFrame) -> None:
    ahead, side = next_returns(edged), np.sign(worth(edged) * _quality(edged))[:-2]
    held, known = _quality(edged)[:-2], side != 0
    for chosen, sign in ((known & (held > 0.5), 1.0), (known & (held < -0.3), -1.0)):
        gains = (side * ahead)[chosen]
        assert sign * gains.mean() > 4.0 * gains.std() / np.sqrt(len(gains))


def test_quality_depends_on_tier_confidence_and_turbulence_only() -> None:
    calm, rough = np.array([False]), np.array([True])
    table = [(0.1, 1.0), (0.2, 1.0), (0.3, 0.8), (0.5, -0.3), (0.6, -0.3), (0.9, -0.7)]
    for risk, value in table:
        assert quality(np.array([risk]), np.array([1.0]), calm) == pytest.approx(value)
        assert quality(np.array([risk]), np.array([0.0]), calm) == pytest.approx(value / 2)
        assert quality(np.array([risk]), np.array([1.0]), rough) == pytest.approx(value - 0.7)


def test_the_state_shows_the_turbulence_that_the_rule_reads() -> None:
    frame = simulate(MarketSpec(bars=12_000, seed=3))
    bars, rough = sized(frame), turbulent(frame)
    shown = stats.rankdata(bars.volatility) + stats.rankdata(bars.cascade_risk)
    found = stats.mannwhitneyu(shown[rough], shown[~rough]).statistic / (rough.sum() * (~rough).sum())
    assert found > 0.9


def test_with_edge_the_oracle_beats_any_constant_after_costs() -> None:
    frame = simulate(MarketSpec(edge=1.0, bars=12_000, seed=1))
    bars, value = sized(frame), _quality(frame)
    strategies = {f"constant {m}": (lambda *_, m=m: m) for m in (0.5, 1.0, 1.5, 2.0)}
    tracks = run(bars, range(len(bars)), {"oracle": lambda _, t: 2.0 if value[t] > 0.3 else 0.0, **strategies})
    sharpes = {name: summarise(track, 3_600)["sharpe"] for name, track in tracks.items()}
    oracle = sharpes.pop("oracle")
    assert oracle is not None
    assert oracle > 2.0
    assert all(other is not None and oracle > other + 1.0 for other in sharpes.values())


def test_without_edge_the_oracle_earns_nothing_after_costs() -> None:
    frame = simulate(MarketSpec(edge=0.0, bars=12_000, seed=1))
    bars, value = sized(frame), _quality(frame)
    tracks = run(bars, range(len(bars)), {"oracle": lambda _, t: 2.0 if value[t] > 0.3 else 0.0})
    assert tracks["oracle"].equity[-1] < tracks["oracle"].equity[0]


def test_returns_have_fat_tails_and_clustered_volatility(fair: pd.DataFrame) -> None:
    returns = np.diff(np.log(fair["close"].to_numpy()))
    assert stats.kurtosis(returns) > 3.0
    size = np.abs(returns)
    for lag in (1, 24):
        assert np.corrcoef(size[:-lag], size[lag:])[0, 1] > 0.05
    assert abs(np.corrcoef(returns[:-1], returns[1:])[0, 1]) < 0.02


def test_regimes_switch_the_volatility(fair: pd.DataFrame) -> None:
    spread = fair["close"].pct_change().groupby(fair["regime"].to_numpy()).std()
    assert spread["crisis"] > 1.4 * spread["high_volatility"] > 1.4 * 1.4 * spread["trending_up"]
    assert spread["ranging"] < spread["trending_down"]
    assert fair["regime"].value_counts(normalize=True).min() > 0.002


def test_with_edge_trends_drift(edged: pd.DataFrame) -> None:
    ahead = next_returns(edged)
    drift = pd.Series(ahead).groupby(edged["regime"].to_numpy()[:-2]).mean()
    assert drift["trending_up"] > 0.0 > drift["trending_down"]


def test_numbers_stay_in_the_ranges_that_layer_3_accepts(edged: pd.DataFrame) -> None:
    for name in ("signal_confidence", "signal_risk_score", "onchain_whale_pressure", "sentiment_score"):
        assert edged[name].between(0.0, 1.0).all(), name
    assert (edged[["predicted_volatility", "volume", "volume_ratio"]] > 0.0).all(axis=None)
    assert (edged["expected_return"] >= 0.0).all()
    assert set(edged["signal_action"]) == {"strong_buy", "buy", "hold", "sell", "strong_sell"}
    assert len(set(edged["regime"])) == 5


@pytest.mark.parametrize(("phi", "sd"), [(0.0, 1.0), (0.9, 0.25), (0.98, 0.15)])
def test_the_autoregression_is_stationary_with_its_own_spread(phi: float, sd: float) -> None:
    rng = np.random.default_rng(1)
    paths = np.stack([_autoregressive(rng, 60, phi, sd) for _ in range(4_000)])
    spread = paths.std(axis=0)
    assert np.all(np.abs(spread / sd - 1.0) < 0.06)
    assert np.all(np.abs(paths.mean(axis=0)) < 5.0 * sd / np.sqrt(4_000))
    now, after = paths[:, 10], paths[:, 11]
    assert np.corrcoef(now, after)[0, 1] == pytest.approx(phi, abs=0.06)


def test_the_autoregression_is_the_plain_recursion() -> None:
    made = _autoregressive(np.random.default_rng(3), 200, 0.95, 0.1)
    rng = np.random.default_rng(3)
    noise = rng.standard_normal(200) * 0.1 * np.sqrt(1 - 0.95**2)
    expected = [rng.standard_normal() * 0.1]
    for shock in noise[1:]:
        expected.append(0.95 * expected[-1] + shock)
    np.testing.assert_allclose(made, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("default", MarketSpec()),
        ("no-edge", MarketSpec(edge=0.0, seed=2)),
        ("edge=0.5", MarketSpec(edge=0.5)),
        ("edge=0.5,bars=20000,seed=3", MarketSpec(0.5, 20_000, 3)),
        ("no-edge,seed=9", MarketSpec(edge=0.0, seed=9)),
        (" default , seed=4 ", MarketSpec(seed=4)),
        ("seed=0", MarketSpec(seed=0)),
    ],
)
def test_names_that_are_understood(name: str, expected: MarketSpec) -> None:
    assert parse(name) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is not known"),
        ("bull", "is not known: use default, no-edge"),
        ("default,", "no setting ''"),
        ("egde=1", "no setting 'egde'"),
        ("edge", "is not known"),
        ("edge=", "edge='' is not a number"),
        ("edge=much", "edge='much' is not a number"),
        ("edge=nan", r"edge is nan, expected a number in \[0, 10\]"),
        ("edge=inf", "edge is inf"),
        ("edge=-1", "edge is -1"),
        ("bars=100", "bars is 100, expected 2,000"),
        ("bars=4000.5", "bars='4000.5' is not a number of the right kind"),
        ("bars=9999999", "bars is 9999999"),
        ("seed=-1", "seed is -1"),
        ("seed=4294967296", "seed is 4294967296"),
        ("edge=1,no-edge", "no setting 'no-edge'"),
    ],
)
def test_names_that_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse(name)


def test_synthetic_data_must_be_called_synthetic() -> None:
    assert len(load_synthetic("synthetic:edge=1,bars=2000", "SYNTH-USD")) == 2_000
    with pytest.raises(ConfigurationError, match="'BTC-USDT' names a real market"):
        load_synthetic("synthetic:default", "BTC-USDT")
