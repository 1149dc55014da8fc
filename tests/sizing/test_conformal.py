from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer3.sizing.config import ConformalConfig
from layer3.sizing.conformal import ConformalWindow, describe

CONFIG = ConformalConfig()


def window_of(residuals: list[float], config: ConformalConfig = CONFIG) -> ConformalWindow:
    window = ConformalWindow(config)
    for residual in residuals:
        assert window.record(0.0, residual)
    return window


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=20, max_size=260))
def test_quantile_is_numpys(errors: list[float]) -> None:
    window = window_of(errors)
    kept = np.abs(errors[-200:])
    n = len(kept)
    rank = math.ceil((n + 1) * 0.9)
    # numpy's "higher" takes the order statistic at or above (n - 1) * level; half a rank below is safely ours.
    assert window.quantile == np.quantile(kept, (rank - 1.5) / (n - 1), method="higher")
    assert window.scale == pytest.approx(1.0 / (1.0 + window.quantile))
    assert 0.0 < window.scale <= 1.0


def test_nothing_is_scaled_before_twenty_residuals() -> None:
    window = window_of([0.5] * 19)
    assert (window.scale, window.quantile) == (1.0, None)
    assert describe(CONFIG, len(window), window.quantile) == "19 residuals known, 20 needed: no scaling yet"
    window.record(0.0, 0.5)
    assert window.scale == pytest.approx(1 / 1.5)
    assert "90% of 20 one-day forecasts erred by at most 0.5000" in describe(CONFIG, len(window), window.quantile)


def test_finite_sample_rank_of_twenty() -> None:
    # ceil(21 * 0.9) = 19: the second largest.
    assert window_of([i / 100 for i in range(1, 21)]).quantile == 0.19


def test_the_oldest_leaves_the_window() -> None:
    window = window_of([1.0] * 50 + [0.01] * 200)
    assert len(window) == 200
    assert window.quantile == 0.01


@pytest.mark.parametrize("bad", [(None, 0.1), (0.1, None), (math.nan, 0.1), (0.1, math.inf)])
def test_what_is_no_number_is_rejected_and_counted(bad: tuple[float | None, float | None]) -> None:
    window = window_of([0.02] * 20)
    before = window.scale
    assert not window.record(*bad)
    assert (window.rejected, len(window), window.scale) == (1, 20, before)
    assert (window.nulls, window.nans) == ((1, 0) if None in bad else (0, 1))


def test_larger_errors_scale_down_more() -> None:
    scales = [window_of([size] * 30).scale for size in (0.0, 0.01, 0.05, 0.2)]
    assert scales == sorted(scales, reverse=True)
    assert scales[0] == 1.0


def test_coverage_is_kept_on_exchangeable_errors() -> None:
    rng = np.random.default_rng(7)
    config = ConformalConfig(window=60)
    covered = []
    for _ in range(600):
        errors = rng.standard_t(3, size=61) * 0.02
        window = window_of(errors[:60].tolist(), config)
        assert window.quantile is not None
        covered.append(abs(errors[60]) <= window.quantile)
    assert 0.87 <= np.mean(covered) <= 0.94
