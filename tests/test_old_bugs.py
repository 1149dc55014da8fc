"""The bugs of the system that this one replaces, and the test that would have caught each."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

CAUGHT_BY = {
    "a HOLD and a SELL sized like a BUY": "sizing/test_chain.py::test_old_bug_hold_and_sell_sized_like_a_buy",
    "a Kelly fraction that always sits on its cap": "sizing/test_kelly.py::test_old_bug_kelly_always_on_its_cap",
    "an expected return of 0.0 turned into 0.05": (
        "sizing/test_kelly.py::test_old_bug_expected_return_of_zero_became_the_prior_mean"
    ),
    "a look-back longer than its buffer, always 0": (
        "market/test_features.py::test_look_back_longer_than_the_buffer_is_no_constant_zero"
    ),
    "three bars to believe a crisis": "sizing/test_regime.py::test_old_bug_waiting_three_bars_to_believe_a_crisis",
    "an EXIT that no input can reach": (
        "sizing/test_cascade.py::test_old_bug_exit_out_of_reach_without_the_on_chain_feeds"
    ),
    "a served network that is not the trained one": (
        "serving/test_app.py::test_the_served_network_is_the_trained_network"
    ),
    "a model that fails to load, answers 0.8 and is healthy": "serving/test_release.py::test_a_server_that_lies",
    "HTTP 500 counted as a success": "layer3/test_remote.py::test_statuses_and_bodies",
    "an action in [0, 2] clipped to [-1, 1]": "agent/test_learning.py::test_its_action_uses_the_whole_range",
    "training on a constant price": "agent/test_checks.py::test_what_cannot_be_learnt_from_is_refused",
    "Sharpe annualised by the root of 252 at any bar size": (
        "backtest/test_metrics.py::test_a_year_has_365_days_of_the_candles_own_bars"
    ),
    "metrics that do not exist, the errors swallowed": (
        "components/test_components.py::test_every_metric_is_logged_finite_and_on_disk"
    ),
    "results on disk before they are known": (
        "pipelines/test_records.py::test_a_manifest_is_written_whole_or_not_at_all"
    ),
    "an edge that survives shuffling": "agent/test_learning.py::test_on_shuffled_data_it_does_not_win",
}


@pytest.mark.parametrize("bug", CAUGHT_BY)
def test_each_old_bug_has_its_test(bug):
    file, name = CAUGHT_BY[bug].split("::")
    functions = [node for node in ast.walk(ast.parse((TESTS / file).read_text())) if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions].count(name) == 1
