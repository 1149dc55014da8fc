"""The page of training curves: health first, every policy and number on it, small, deterministic and safe."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path

import numpy as np
import pytest

from layer3.agent.environment import EnvironmentConfig
from layer3.agent.ppo import PPOConfig, Progress
from layer3.backtest.charts import Layout, Series, Style, _short, steps_chart
from layer3.backtest.learning import MOST_POLICIES, TrainingContext, render_curves
from layer3.errors import EvaluationError
from tests.agent.curves import SAMPLES, make_curve
from tests.backtest.sheets import Page, open_in_chromium
from tests.backtest.test_report import HOSTILE, assert_self_contained

CONTEXT = TrainingContext(
    symbol="BTC-USDT",
    source="data/BTC-USDT_1h.csv.gz",
    synthetic=False,
    seeds=(1, 2, 3),
    device="cpu",
    model_id="20250619-afaf75775594",
    settings={"ppo": dataclasses.asdict(PPOConfig()), "environment": dataclasses.asdict(EnvironmentConfig())},
)
PICTURES = [
    "Reward",
    "Sharpe ratio",
    "Action spread",
    "Entropy",
    "KL divergence",
    "Clip fraction",
    "Explained variance",
    "Gradient",
]


def population(policies: int, updates: int = 120, **bent: object) -> dict[str, list[Progress]]:
    return {f"seed-{i + 1}": make_curve(updates, seed=i, **bent) for i in range(policies)}


def rendered(policies: int, updates: int = 120, **bent: object) -> Page:
    return Page(render_curves(CONTEXT, population(policies, updates, **bent)))


@pytest.mark.parametrize(("policies", "updates"), [(1, 20_000), (16, 2_000), (MOST_POLICIES, 1_000)])
def test_it_stays_below_the_budget_and_offline(policies: int, updates: int) -> None:
    text = render_curves(CONTEXT, population(policies, updates))
    assert len(text.encode()) <= 500_000
    assert_self_contained(text, Page(text))


def test_health_comes_first_then_every_picture_then_the_table_and_the_context() -> None:
    text = rendered(3).text
    order = ["BTC-USDT: training curves", "3 policies, 245,760 steps each", "No warning", "Curves Against", *PICTURES]
    begin = text.index("Curves Against")
    places = [text.index(part, begin if part in PICTURES else 0) for part in [*order, "The last update", "What was"]]
    assert places == sorted(places)
    assert "Thin: each policy. Bold: their median." in text
    assert "synthetic" not in text.lower()


def test_an_unhealthy_training_says_so_in_words() -> None:
    text = rendered(2, kl=0.3, multiplier_sd=0.001).text
    assert "2 warnings, in 2 of 2 policies" in text
    assert "seed-1: The KL divergence explodes: 0.300 per update" in text
    assert "(the same holds for seed-2)" in text
    assert "The actions have collapsed" in text
    assert "limit 0.05" in text.split("What was trained")[0].split("KL divergence How far")[1]
    assert "No warning" not in text


def test_too_short_a_training_is_not_called_healthy_throughout() -> None:
    assert "too few updates to judge critic and reward" in rendered(1, 19).text
    assert "critic and reward are within their limits" in rendered(1, 20).text


def test_a_simulated_market_is_named_as_such_before_anything_else() -> None:
    context = dataclasses.replace(CONTEXT, synthetic=True)
    page = Page(render_curves(context, population(1)))
    assert page.text.index("SYNTHETIC DATA.") < page.text.index("BTC-USDT: training curves")
    assert page.text.startswith("Training curves: BTC-USDT (synthetic data)")
    assert page.text.count("synthetic data") == 3


def test_the_table_holds_the_last_update_of_every_policy_and_their_median() -> None:
    curves = {
        f"seed-{i}": make_curve(
            30,
            reward=0.01 * i,
            sharpe=-1.0 * i,
            multiplier_mean=1.0,
            multiplier_sd=0.1 * i,
            entropy=-0.5,
            kl=0.001 * i,
            clip_fraction=0.02 * i,
            explained_variance=0.3,
            gradient=0.25,
        )
        for i in (1, 2, 6)
    }
    text = Page(render_curves(CONTEXT, curves)).text
    assert "Median +0.0200 −2.00 1.00 ± 0.20 −0.50 0.0020 4.0% 0.30 0.250" in text
    assert "seed-6 +0.0600 −6.00 1.00 ± 0.60 −0.50 0.0060 12.0% 0.30 0.250" in text
    alone = Page(render_curves(CONTEXT, {"seed-1": curves["seed-1"]})).text
    assert "Median" not in alone
    assert "seed-1 +0.0100 −1.00" in alone


def test_the_context_shows_every_setting() -> None:
    text = rendered(1).text
    assert "Seeds 1, 2, 3" in text
    assert "Device cpu" in text
    assert "Model 20250619-afaf75775594" in text
    assert re.search(r"PPO steps 500000, .*learning_rate 0\.002", text)
    assert "costs (commission 0.001, slippage 0.0005)" in text
    assert "Model n/a" in Page(render_curves(dataclasses.replace(CONTEXT, model_id=""), population(1))).text


def test_the_same_curves_give_the_same_bytes() -> None:
    assert render_curves(CONTEXT, population(2)) == render_curves(CONTEXT, population(2))


def test_everything_from_outside_is_escaped() -> None:
    context = TrainingContext(HOSTILE, HOSTILE, False, (1,), HOSTILE, HOSTILE, {HOSTILE: {HOSTILE: HOSTILE}})
    text = render_curves(context, {HOSTILE: make_curve(kl=1.0), "$a$": make_curve(kl=1.0)})
    page = Page(text)
    assert_self_contained(text.replace("http://evil.example", "").replace("//evil.example", ""), page)
    assert HOSTILE in page.text
    assert "$a$" in page.text.split("The last update")[0]


def test_few_policies_are_named_at_their_lines_and_many_are_not() -> None:
    few, many = (rendered(n).text.split("The last update")[0] for n in (6, 7))
    assert few.count("seed-4") == len(PICTURES)
    assert "seed-4" not in many
    assert many.count("median") == len(PICTURES) + 1


def test_policies_trained_for_different_lengths_share_a_page() -> None:
    curves = {"short": make_curve(20), "long": make_curve(60, seed=1)}
    text = Page(render_curves(CONTEXT, curves)).text
    assert f"2 policies, {20 * SAMPLES:,} to {60 * SAMPLES:,} steps each" in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize("updates", [1, 2, 3, 29, 31])
@pytest.mark.parametrize("policies", [1, 2])
def test_short_and_flat_curves(policies: int, updates: int) -> None:
    page = rendered(policies, updates, reward=0.0, sharpe=0.0, kl=0.0, clip_fraction=0.0)
    assert "nan" not in page.text.lower()
    assert sum(tag == "svg" for tag, _ in page.elements) == len(PICTURES)


def test_a_hopeless_explained_variance_is_cut_and_the_page_says_so() -> None:
    values = np.full(120, 0.4)
    values[3] = -5_000.0
    assert "Below −1 drawn at −1." in rendered(1, explained_variance=values).text.replace("-1", "−1")
    assert "drawn at" not in rendered(1).text


@pytest.mark.parametrize("updates", [500, 20_000])
def test_a_single_spike_in_a_long_training_is_still_drawn(updates: int) -> None:
    kl = np.full(updates, 0.001)
    kl[updates // 3] = 0.0475
    text = rendered(1, updates, kl=kl).text
    assert "0.04" in text.split("How far each update moved the policy.")[1].split("Clip fraction")[0]


def test_lines_end_where_their_policies_do() -> None:
    """What is drawn, read back from the picture: the height of the last point against the axis."""
    layout = Layout("any", 400, 190, 50, 90, 4)
    steps = np.arange(1.0, 101.0) * 1_000
    lines = [Series("", steps, np.linspace(0.0, top, 100), Style("#111111")) for top in (0.0, 10.0)]
    main = Series("", steps, np.linspace(0.0, 5.0, 100), Style("#222222"))
    svg = steps_chart(lines, main, layout, name="n", title="t", columns=50)
    (thin,) = re.findall(r'<path d="([^"]+)"[^>]*stroke: #111111', svg)
    (bold,) = re.findall(r'<path d="([^"]+)"[^>]*stroke: #222222', svg)
    assert thin.count("M") == 2
    ends = [float(part.split("L")[-1].split()[1]) for part in [*thin.split("M")[1:], bold]]
    assert ends[2] == pytest.approx((ends[0] + ends[1]) / 2, abs=0.2)
    assert ends[0] > ends[2] > ends[1]


@pytest.mark.parametrize(
    ("steps", "text"), [(0, "0"), (500, "500"), (2_500, "2.5k"), (250_000, "250k"), (1e6, "1M"), (2.5e9, "2.5G")]
)
def test_steps_on_an_axis(steps: float, text: str) -> None:
    assert _short(steps) == text


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "got 0"),
        ({f"seed-{i}": [] for i in range(MOST_POLICIES + 1)}, f"got {MOST_POLICIES + 1}"),
        ({"seed-1": []}, "seed-1 has no curves"),
        (
            {"seed-1": make_curve(3, multiplier_sd=np.array([0.1, np.nan, 0.1]))},
            "multiplier_sd is nan after 4,096 steps",
        ),
        ({"seed-1": make_curve(3, kl=np.inf)}, "kl is inf after 2,048 steps"),
    ],
)
def test_what_cannot_be_drawn_is_refused(curves: dict[str, list[Progress]], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        render_curves(CONTEXT, curves)


def test_chromium_opens_it(tmp_path: Path) -> None:
    page = tmp_path / "training curves.html"
    page.write_text(render_curves(CONTEXT, population(3)), encoding="utf-8")
    dom = open_in_chromium(page, tmp_path / "profile")
    assert dom.count("<svg") == len(PICTURES)
    assert "No warning" in dom


@pytest.mark.parametrize("curves", [population(4), {letter * 120: make_curve(kl=1.0) for letter in "ab"}])
def test_a_phone_shows_it_without_scrolling_sideways(tmp_path: Path, curves: dict[str, list[Progress]]) -> None:
    inner = html.escape(render_curves(dataclasses.replace(CONTEXT, source="a/long/path-" * 12), curves))
    measure = (
        "const root = document.querySelector('iframe').contentDocument.documentElement;"
        "document.title = root.clientWidth < 400 && root.clientWidth > 350 && root.scrollWidth === root.clientWidth"
    )
    page = tmp_path / "phone.html"
    page.write_text(
        f'<!doctype html><title>?</title><body onload="{measure}"><iframe width="390" height="800" srcdoc="{inner}">'
        "</iframe></body>",
        encoding="utf-8",
    )
    assert "<title>true</title>" in open_in_chromium(page, tmp_path / "profile")
