"""The mixture test: the integral that it stands for, its inverse, and its promise along whole paths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from layer3.ab.sequential import always_valid_p, boundary, mixture_scale


@given(z=st.floats(-6.0, 6.0), information=st.floats(0.01, 200.0))
def test_the_p_value_is_one_over_the_mixtures_likelihood_ratio(z: float, information: float) -> None:
    # An effect N(0, k) in standard errors: the ratio of the mixture's density of z to that of no effect.
    ratio = stats.norm.pdf(z, 0.0, math.sqrt(1.0 + information)) / stats.norm.pdf(z)
    assert float(always_valid_p(z, information)) == pytest.approx(min(1.0, 1.0 / ratio), rel=1e-9)


def test_the_closed_form_is_the_integral_over_effects() -> None:
    z, information = 2.3, 1.7
    spread = math.sqrt(information)
    integral, _ = integrate.quad(
        lambda effect: stats.norm.pdf(effect, 0.0, spread) * math.exp(effect * z - 0.5 * effect**2), -30.0, 30.0
    )
    assert float(always_valid_p(z, information)) == pytest.approx(1.0 / integral, rel=1e-9)


@given(information=st.floats(1e-3, 1e4), level=st.floats(0.6, 0.999))
def test_the_interval_and_the_p_value_agree(information: float, level: float) -> None:
    edge = float(boundary(information, level))
    assert float(always_valid_p(edge, information)) == pytest.approx(1.0 - level, rel=1e-9)
    assert edge > stats.norm.ppf(0.5 + 0.5 * level)


@pytest.mark.parametrize("units", [50.0, 500.0, 20_000.0])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_is_narrowest_about_where_it_was_asked_to_be(units: float, level: float) -> None:
    def width(scale: float) -> float:
        return float(boundary(scale * units, level))

    scale = mixture_scale(level, units)
    best = min(width(scale * factor) for factor in np.geomspace(0.01, 100.0, 400))
    assert width(scale) <= 1.01 * best


@pytest.mark.parametrize(("scale", "least"), [(0.001, 0.001), (0.05, 0.015)])
def test_under_no_difference_it_is_ever_wrong_in_at_most_five_of_a_hundred_paths(scale: float, least: float) -> None:
    rng = np.random.default_rng(11)
    n, paths = np.arange(1, 3_001), 2_000
    walk = np.cumsum(rng.standard_normal((paths, len(n)), dtype=np.float32), axis=1)
    wrong = np.mean((np.abs(walk) > boundary(scale * n, 0.95) * np.sqrt(n)).any(axis=1))
    assert least < wrong <= 0.05
    # A look at each with the usual limit, for comparison.
    assert np.mean((np.abs(walk[:, 50:]) > 1.96 * np.sqrt(n[50:])).any(axis=1)) > 0.3
