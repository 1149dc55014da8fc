from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.sizing.cascade import EXIT, NORMAL, REDUCE_50, REDUCE_75, action, components, describe, risk
from layer3.sizing.config import CascadeConfig
from layer3.types import CascadeIndicators

CONFIG = CascadeConfig()
CALM = CascadeIndicators(0.0001, 0.0, 1.0, 0.3, 0.0)
TRIGGERS = {
    "funding_rate": (0.003, 0.01, 0.20),
    "oi_change_pct": (-0.10, -0.30, 0.25),
    "volume_ratio": (5.0, 10.0, 0.15),
    "onchain_whale_pressure": (0.7, 1.0, 0.25),
    "exchange_netflow_zscore": (2.0, 4.0, 0.15),
}


def test_calm_is_no_risk() -> None:
    assert risk(CONFIG, CALM) == 0.0
    assert describe(CONFIG, CALM) == "risk 0.00: NORMAL"


@pytest.mark.parametrize(("field", "trigger", "extreme", "weight"), [(k, *v) for k, v in TRIGGERS.items()])
def test_half_the_weight_at_the_trigger_and_all_of_it_at_the_extreme(
    field: str, trigger: float, extreme: float, weight: float
) -> None:
    assert risk(CONFIG, dataclasses.replace(CALM, **{field: trigger})) == pytest.approx(weight / 2)
    assert risk(CONFIG, dataclasses.replace(CALM, **{field: extreme})) == pytest.approx(weight)


def test_everything_at_its_extreme_is_the_whole_scale() -> None:
    assert risk(CONFIG, CascadeIndicators(0.01, -0.3, 10.0, 1.0, 4.0)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("field", "far"),
    [
        ("funding_rate", 0.02), ("funding_rate", -0.02), ("oi_change_pct", -0.6),
        ("volume_ratio", 20.0), ("exchange_netflow_zscore", 8.0), ("liquidation_volume_24h", 6e9),
    ],
)  # fmt: skip
def test_old_bug_exit_out_of_reach_one_component_far_beyond_its_scale(field: str, far: float) -> None:
    assert action(CONFIG, risk(CONFIG, dataclasses.replace(CALM, **{field: far}))) == (EXIT, 0.0)


def test_the_thresholds_of_the_docstring_reach_exit() -> None:
    for field, inside, beyond in (
        ("funding_rate", 0.0174, 0.0176),
        ("oi_change_pct", -0.51, -0.53),
        ("volume_ratio", 17.5, 17.7),
        ("exchange_netflow_zscore", 7.0, 7.1),
    ):
        assert risk(CONFIG, dataclasses.replace(CALM, **{field: inside})) < 0.8
        assert risk(CONFIG, dataclasses.replace(CALM, **{field: beyond})) > 0.8


def test_old_bug_exit_out_of_reach_without_the_on_chain_feeds() -> None:
    stressed = CascadeIndicators(funding_rate=0.0095, oi_change_pct=-0.29, volume_ratio=9.5)
    assert action(CONFIG, risk(CONFIG, stressed))[0] == EXIT
    # The same three among five feeds, of which the on-chain two are calm, are less.
    calm_chain = dataclasses.replace(stressed, onchain_whale_pressure=0.0, exchange_netflow_zscore=0.0)
    assert risk(CONFIG, calm_chain) < 0.8


def test_no_feeds_at_all() -> None:
    assert risk(CONFIG, CascadeIndicators()) == 0.0
    assert describe(CONFIG, CascadeIndicators()) == "no feeds: risk taken as 0"


def test_liquidations_come_on_top_and_never_dilute() -> None:
    stressed = CascadeIndicators(0.005, -0.2, 6.0, 0.8, 3.0)
    quiet = dataclasses.replace(stressed, liquidation_volume_24h=0.0)
    assert risk(CONFIG, quiet) == risk(CONFIG, stressed)
    loud = dataclasses.replace(stressed, liquidation_volume_24h=3e9)
    assert risk(CONFIG, loud) == pytest.approx(risk(CONFIG, stressed) + 0.10)
    assert risk(CONFIG, CascadeIndicators(liquidation_volume_24h=3e9)) == 1.0


def test_only_falls_of_open_interest_and_inflows_count() -> None:
    assert risk(CONFIG, dataclasses.replace(CALM, oi_change_pct=0.5, exchange_netflow_zscore=-6.0)) == 0.0


def test_funding_counts_by_its_magnitude() -> None:
    assert risk(CONFIG, CascadeIndicators(-0.004)) == risk(CONFIG, CascadeIndicators(0.004)) > 0.0


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0.0, (NORMAL, 1.0)), (0.4, (NORMAL, 1.0)), (0.41, (REDUCE_50, 0.5)), (0.6, (REDUCE_50, 0.5)),
        (0.61, (REDUCE_75, 0.25)), (0.8, (REDUCE_75, 0.25)), (0.81, (EXIT, 0.0)), (1.0, (EXIT, 0.0)),
    ],
)  # fmt: skip
def test_levels(level: float, expected: tuple[str, float]) -> None:
    assert action(CONFIG, level) == expected


def test_reason_names_the_largest_share_first() -> None:
    text = describe(CONFIG, dataclasses.replace(CALM, oi_change_pct=-0.2, volume_ratio=3.0))
    assert text.index("open interest -0.2") < text.index("volume 3")


feeds = st.builds(
    CascadeIndicators,
    st.none() | st.floats(-0.1, 0.1),
    st.none() | st.floats(-1, 2),
    st.none() | st.floats(0, 100),
    st.none() | st.floats(0, 1),
    st.none() | st.floats(-20, 20),
    st.none() | st.floats(0, 1e10),
)


@given(feeds, st.sampled_from([f.name for f in dataclasses.fields(CascadeIndicators)]), st.floats(0, 1))
def test_in_range_and_monotone_in_every_component(before: CascadeIndicators, field: str, step: float) -> None:
    value = getattr(before, field)
    assert 0.0 <= risk(CONFIG, before) <= 1.0
    if value is None:
        return
    if field == "oi_change_pct":
        worse = max(value - step, -1.0)
    elif field == "onchain_whale_pressure":
        worse = min(value + step, 1.0)
    elif field == "funding_rate":
        worse = value + step * (1 if value >= 0 else -1)
    else:
        worse = value + step * max(1.0, abs(value))
    assert risk(CONFIG, dataclasses.replace(before, **{field: worse})) >= risk(CONFIG, before) - 1e-12


@given(feeds)
def test_shares_are_shares(indicators: CascadeIndicators) -> None:
    assert all(0.0 <= c.share <= 1.0 for c in components(CONFIG, indicators))
