"""The tear sheet: whole, small, deterministic, safe with hostile names, and right in every number it shows."""

from __future__ import annotations

import dataclasses
import html as escaping
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from layer3.backtest import tables
from layer3.backtest.charts import Layout, Series, Style, average, average_span, lines_chart, thin
from layer3.backtest.drawing import spread_apart
from layer3.backtest.pictures import Record
from layer3.backtest.record import (
    FLAT,
    KELLY_ONLY,
    POLICY,
    Criterion,
    Degeneracy,
    Difference,
    Evaluation,
    Evidence,
    Interval,
    Leak,
    Override,
    Slice,
    Stability,
    Verdict,
)
from layer3.backtest.report import render_tear_sheet, render_verdict_markdown
from layer3.errors import EvaluationError
from tests.backtest.sheets import HOUR_NS, Page, make_evaluation, make_verdict, open_in_chromium

HOSTILE = '</style><script>alert(1)</script><img src=//evil.example/x onerror="x">|`[a](http://evil.example)\'&amp;'


@pytest.fixture(scope="module")
def sheet() -> str:
    return render_tear_sheet(make_evaluation(), make_verdict(passed=False))


def assert_self_contained(html: str, page: Page) -> None:
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert all(target.startswith("#") for _, _, target in page.references)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}


@pytest.mark.parametrize("bars", [17_520, 35_040])
def test_years_of_hours_stay_below_the_budget_and_offline(bars: int) -> None:
    html = render_tear_sheet(make_evaluation(bars), make_verdict())
    assert len(html.encode()) <= 500_000
    assert_self_contained(html, Page(html))


def test_the_verdict_comes_first_with_every_criterion(sheet: str) -> None:
    text = Page(sheet).text
    order = ["SYNTHETIC DATA.", "REJECTED", "Sentence number 7", "Equity", "Single bars shuffled", "Blocks shuffled"]
    order += [
        "Against the benchmarks",
        "What costs do to it",
        "Drawdown",
        "Months",
        "What the policy adds",
        "Multiplier",
    ]
    order += ["Exposure", "Walk-forward:", "Details", "Trust", "Costs told apart", "Leaks of the future", "All metrics"]
    places = [text.index(part, text.index("BTC-USDT: the policy") if i else 0) for i, part in enumerate(order)]
    assert places == sorted(places)
    assert "4 of 8 criteria failed: Sharpe ratio, Maximum drawdown, Excess over kelly, Seven" in text
    assert text.count("FAIL") == 4
    assert text.count(" pass ") == 4
    assert text.index("All metrics") < text.index("What was judged")
    assert all(f"Sentence number {i} says" in text for i in range(8))


def test_all_criteria_are_there_and_the_failed_ones_come_first() -> None:
    criteria = tuple(Criterion(f"number_{i}", float(i), ">=", 3.0, i % 3 == 0, f"Said of {i}.") for i in range(20))
    text = Page(render_tear_sheet(make_evaluation(50), Verdict(False, criteria))).text
    places = [text.index(f"Said of {i}.") for i in range(20)]
    failed = [place for place, criterion in zip(places, criteria, strict=True) if not criterion.passed]
    assert max(failed) < min(set(places) - set(failed))
    assert failed == sorted(failed)
    assert "13 of 20 criteria failed" in text


def test_an_override_is_red_with_its_name_and_reason() -> None:
    verdict = dataclasses.replace(
        make_verdict(False), passed=True, override=Override("Ada <L.>", "the old one | burns")
    )
    html = render_tear_sheet(make_evaluation(50), verdict)
    text = Page(html).text
    assert "OVERRIDDEN" in text
    assert "PASSED" not in text
    assert "released against the evidence: 4 of 8 criteria failed" in text
    assert (
        text.index("Override by Ada <L.>:")
        < text.index("Reason: the old one | burns")
        < text.index("Sentence number 0")
    )
    assert re.search(r"--no: #a3271b", html)
    assert re.search(r"\.override {[^}]*color: var\(--no\)", html)
    assert '<strong class="stamp no">OVERRIDDEN</strong>' in html
    markdown = render_verdict_markdown(make_evaluation(50), verdict)
    assert markdown.startswith("# OVERRIDDEN: released against the evidence")
    assert "**OVERRIDE by Ada &lt;L.&gt;: the old one \\| burns**" in markdown


def test_what_was_asked_is_shown_whole() -> None:
    limits = {"sharpe": 1.0, "claim": "return", "walk_forward": {"required": True, "probabilistic_sharpe": 0.95}}
    verdict = dataclasses.replace(make_verdict(), limits=limits)
    asked = ["Sharpe", "Claim", "Walk forward: required", "Walk forward: probabilistic sharpe"]
    text = Page(render_tear_sheet(make_evaluation(50), verdict)).text
    markdown = render_verdict_markdown(make_evaluation(50), verdict)
    for name, value in zip(asked, ("1", "return", "yes", "0.95"), strict=True):
        assert f"{name} {value}" in text
        assert f"- {name}: {value}\n" in markdown


SECTIONS = [
    *("trust", "differences", "superiority", "costs", "permutations", "leak", "attribution"),
    *("degeneracy", "stability", "walk_forward", "overfitting", "bootstrap_band"),
]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_missing_section_says_why_in_its_place(section: str) -> None:
    evaluation = make_evaluation(200)
    empty = () if isinstance(getattr(evaluation.evidence, section), tuple) and section != "bootstrap_band" else None
    why = f"the {section} would not come"
    changed = dataclasses.replace(evaluation.evidence, **{section: empty}, problems={section: why})
    page = Page(render_tear_sheet(dataclasses.replace(evaluation, evidence=changed), make_verdict()))
    assert page.text.count(why) >= 2, "once below the verdict, once in the section's place"
    assert page.text.count(f"Not computed. {why}") + page.text.count(f": {why}") >= 1
    assert "None" not in re.sub("None of", "", page.text)
    markdown = render_verdict_markdown(dataclasses.replace(evaluation, evidence=changed), make_verdict())
    assert why in markdown.replace("\\", "")


def test_a_record_without_evidence_shows_its_tracks_and_says_the_rest() -> None:
    evaluation = dataclasses.replace(make_evaluation(200), evidence=Evidence())
    html = render_tear_sheet(evaluation, make_verdict())
    text = Page(html).text
    assert html.count("<svg") == 6
    assert text.count("This evaluation holds nothing on it.") >= 10
    assert "Could not be computed" not in text


def test_overfitting_is_told_of_all_that_was_tried_and_of_the_seeds() -> None:
    evaluation = make_evaluation(200)
    text = Page(render_tear_sheet(evaluation, make_verdict())).text
    for what, sets, found in (("what was tried", 60, "0.310"), ("the walk-forward's seeds", 6, "0.180")):
        row = text[text.index(f"Probability of backtest overfitting, {what}") :]
        assert f"best of {sets} sets" in row[:300]
        assert found in row[:300]
    alone = dataclasses.replace(evaluation.evidence, overfitting=None)
    text = Page(render_tear_sheet(dataclasses.replace(evaluation, evidence=alone), make_verdict())).text
    assert "Overfitting: it takes two sets tried on these data that differ" in text
    assert "overfitting, what was tried" not in text


def test_a_problem_of_no_known_section_is_not_lost() -> None:
    evaluation = make_evaluation(50)
    evidence = dataclasses.replace(evaluation.evidence, problems={"something_odd": "it broke"})
    text = Page(render_tear_sheet(dataclasses.replace(evaluation, evidence=evidence), make_verdict())).text
    assert "Something odd. it broke" in text


def test_every_chart_has_a_title_and_what_it_shows(sheet: str) -> None:
    charts = re.findall(r"<svg .*?</svg>", sheet, flags=re.DOTALL)
    assert len(charts) == 13
    for chart in charts:
        assert re.search(r"<title id=[^>]+>[^<]{10,}</title><desc id=[^>]+>[^<]{10,}</desc>", chart)


def test_the_band_starts_with_the_capital_and_ends_inside_the_chart() -> None:
    evaluation = make_evaluation(24 * 40)
    band = Record.of(evaluation, HOUR_NS).band
    assert band is not None
    assert band.low[0] == band.high[0] == evaluation.tracks[POLICY].equity[0]
    assert evaluation.evidence.bootstrap_band is not None
    np.testing.assert_allclose(band.high[1:], 1e5 * np.array(evaluation.evidence.bootstrap_band[2]))
    assert np.all(np.diff(band.x) >= 0)
    start = (evaluation.timestamps[0] + HOUR_NS) / 86_400e9
    assert band.x[0] == pytest.approx(start)
    assert band.x[-1] <= (evaluation.timestamps[-1] + 2 * HOUR_NS) / 86_400e9


def test_a_passed_verdict_on_real_data_has_no_banner() -> None:
    html = render_tear_sheet(make_evaluation(synthetic=False), make_verdict())
    text = Page(html).text
    assert "PASSED" in text
    assert "all 8 criteria hold" in text
    assert "REJECTED" not in text
    assert "synthetic" not in text.lower()


def test_the_same_input_gives_the_same_bytes_whatever_the_settings(sheet: str) -> None:
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"svg.hashsalt": None, "lines.linewidth": 9.0, "svg.fonttype": "path", "font.size": 30}):
        assert render_tear_sheet(make_evaluation(), make_verdict(passed=False)) == sheet
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_imported(sheet: str) -> None:
    code = (
        "import sys; from tests.backtest.sheets import *; from layer3.backtest.report import render_tear_sheet;"
        "assert 'matplotlib' not in sys.modules and 'jinja2' not in sys.modules;"
        "html = render_tear_sheet(make_evaluation(), make_verdict(False));"
        "assert 'matplotlib.pyplot' not in sys.modules; sys.stdout.write(html)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == sheet


def test_everything_from_data_is_escaped() -> None:
    context = dict.fromkeys(("symbol", "source", "model_id", "signals", "code_version", HOSTILE), HOSTILE)
    evaluation = make_evaluation(50, **context, costs={HOSTILE: HOSTILE}, period=HOSTILE)
    metrics = {track: {**numbers, HOSTILE: 1.0} for track, numbers in evaluation.metrics.items()}
    evaluation = dataclasses.replace(
        evaluation, metrics=metrics, tracks={**evaluation.tracks, "$x_" + HOSTILE: evaluation.tracks[FLAT]}
    )
    evidence = dataclasses.replace(
        evaluation.evidence,
        differences=(Difference(HOSTILE, Interval(1.0, 0.5, 2.0), 1.0),),
        leak=Leak((HOSTILE,), (1,), (HOSTILE,)),
        degeneracy=Degeneracy(1, 1.0, 1.0, 0.0, 0.0, 1, None, (HOSTILE,)),
        stability=Stability(
            (Slice(HOSTILE, 1, 1.0, 1.0),), (Slice(HOSTILE, 1, 1.0, 1.0),), (), Slice(HOSTILE, 1, 1.0, 1.0)
        ),
        costs=None,
        champion=HOSTILE,
        problems={HOSTILE: HOSTILE, "costs": HOSTILE},
    )
    evaluation = dataclasses.replace(evaluation, evidence=evidence)
    criterion = Criterion(HOSTILE, 1.0, ">=", 2.0, False, HOSTILE)
    verdict = Verdict(True, (criterion,), Override(HOSTILE, HOSTILE), {HOSTILE: HOSTILE, "a": {HOSTILE: [HOSTILE]}})
    html = render_tear_sheet(evaluation, verdict)
    page = Page(html)
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert all(target.startswith("#") for _, _, target in page.references)
    assert HOSTILE in page.text
    markdown = render_verdict_markdown(evaluation, verdict)
    assert "<script" not in markdown
    assert "<img" not in markdown
    row = next(line for line in markdown.splitlines() if "FAIL" in line)
    assert row.replace("\\|", "").count("|") == 6
    assert "[a]" not in markdown


def test_months_equal_an_independent_computation() -> None:
    evaluation = make_evaluation(17_520)
    equity = evaluation.tracks[POLICY].equity
    months, years = tables.monthly_returns(evaluation.timestamps, equity, HOUR_NS)
    starts = pd.to_datetime(evaluation.timestamps, utc=True) + pd.Timedelta(hours=1)
    growth = pd.Series(equity[1:] / equity[:-1], index=starts)
    by_month = growth.groupby(growth.index.strftime("%Y-%m")).prod() - 1
    by_year = growth.groupby(growth.index.strftime("%Y")).prod() - 1
    assert [month.key for month in months] == list(by_month.index)
    np.testing.assert_allclose([month.value for month in months], by_month, rtol=0, atol=1e-10)
    np.testing.assert_allclose([year.value for year in years], by_year, rtol=0, atol=1e-10)
    assert np.prod([1 + (month.value or 0) for month in months]) == pytest.approx(equity[-1] / equity[0], rel=1e-12)
    assert [month.key for month in months if month.partial] == ["2023-03", "2025-03"]
    assert [year.key for year in years if year.partial] == ["2023", "2025"]
    text = Page(render_tear_sheet(evaluation, make_verdict())).text
    for value in by_month:
        assert f"{value * 100:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0") in text


def test_a_month_is_whole_when_its_first_and_last_bar_are_there() -> None:
    start = int(np.datetime64("2024-01-31T23:00", "ns").astype(np.int64))
    timestamps = start + np.arange(29 * 24) * HOUR_NS
    equity = np.linspace(100.0, 110.0, len(timestamps) + 1)
    months, years = tables.monthly_returns(timestamps, equity, HOUR_NS)
    assert months == [tables.Period("2024-02", pytest.approx(0.1), False)]
    assert years[0].partial
    assert tables.monthly_returns(timestamps[1:], equity[1:], HOUR_NS)[0][0].partial
    assert tables.monthly_returns(timestamps[:-1], equity[:-1], HOUR_NS)[0][0].partial


@pytest.mark.parametrize("bars", [1, 2, 30, 500])
@pytest.mark.parametrize("flat", [True, False])
def test_short_and_flat_records(bars: int, flat: bool) -> None:
    evaluation = make_evaluation(bars)
    if flat:
        evaluation = dataclasses.replace(evaluation, tracks=dict.fromkeys(evaluation.tracks, evaluation.tracks[FLAT]))
    html = render_tear_sheet(evaluation, make_verdict(criteria=1))
    assert "nan" not in html.lower()
    assert_self_contained(html, Page(html))


def test_a_ruined_account_and_a_context_without_anything() -> None:
    evaluation = make_evaluation(100)
    ruined = dataclasses.replace(evaluation.tracks[POLICY], equity=np.r_[np.linspace(1e5, 0, 50), np.zeros(51)])
    bare = Evaluation(evaluation.timestamps, {POLICY: ruined}, {}, {"interval_seconds": 3_600})
    page = Page(render_tear_sheet(bare, make_verdict(criteria=0)))
    assert "unnamed market" in page.text
    assert page.text.count("n/a") >= 13
    assert "n/a" in render_verdict_markdown(bare, make_verdict(criteria=0))


def test_a_record_without_the_length_of_a_bar_is_refused() -> None:
    evaluation = dataclasses.replace(make_evaluation(100), context={})
    with pytest.raises(EvaluationError, match="interval_seconds is None"):
        render_tear_sheet(evaluation, make_verdict())


def test_missing_metrics_read_not_available_and_unknown_ones_are_shown() -> None:
    evaluation = make_evaluation(100)
    odd = {"sharpe": None, "sortino": float("nan"), "calmar": float("-inf"), "tail_ratio": -1234.5678}
    evaluation = dataclasses.replace(evaluation, metrics={POLICY: odd, KELLY_ONLY: {"extra": 2.0}})
    page = Page(render_tear_sheet(evaluation, make_verdict()))
    assert "Tail ratio −1235 n/a n/a n/a n/a" in page.text
    assert "Extra n/a 2 n/a n/a n/a" in page.text
    assert "Calmar ratio annual return over maximum drawdown n/a" in page.text
    assert "nan" not in page.text
    assert "inf" not in page.text


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.1234, "percent", "12.3%"),
        (-0.1234, "percent", "−12.3%"),
        (-0.0001, "percent", "0.0%"),
        (12345.6, "money", "12,346"),
        (3.0, "count", "3"),
        (None, "ratio", "n/a"),
        (float("inf"), "number", "n/a"),
        (0.00001234, "number", "1.234e−05"),
        (12.34, "multiple", "12.3×"),
    ],
)
def test_numbers_as_a_reader_sees_them(value: float | None, kind: tables.Kind, text: str) -> None:
    assert tables.format_number(value, kind) == text


def test_a_narrow_miss_never_reads_as_a_hit() -> None:
    (row,) = tables.criterion_rows([Criterion("sharpe", 0.99996, ">=", 1.0, False, "")])
    assert (row["value"], row["limit"]) == ("0.99996", "1.00000")


def test_context_in_words() -> None:
    rows = dict(tables.context_rows(make_evaluation(5).context))
    assert rows["Costs"] == "commission 10 bps, slippage 5 bps"
    assert rows["Bar interval"] == "1 hour"
    assert rows["Held-out test"] == "2023-03-10 00:00 UTC to 2025-03-09 00:00 UTC"
    assert rows["Capital at the start"] == "100,000"


def test_markdown_is_one_short_table() -> None:
    text = render_verdict_markdown(make_evaluation(50), make_verdict(passed=False))
    assert text.startswith("# REJECTED: 4 of 8 criteria failed\n\n**SYNTHETIC DATA.**")
    assert sum(line.startswith("|") for line in text.splitlines()) == 10
    assert len(text) < 2_500


@pytest.mark.parametrize("width", [360, 760])
def test_every_length_of_time_has_an_axis(width: int) -> None:
    layout = Layout("any", width, 170, 46, 92, 5 if width == 360 else 8)
    for days in np.geomspace(1 / 1440, 12_000, 60):
        line = Series("a", np.array([19_000.0, 19_000.0 + days]), np.array([1.0, 2.0]), Style("#000000"))
        svg = lines_chart([line], layout, name="n", title="t")
        assert svg.count("<text") >= 5


@pytest.mark.parametrize("points", [10, 1_401, 20_000])
def test_thinning_keeps_the_extremes_of_every_pixel_column(points: int) -> None:
    rng = np.random.default_rng(3)
    x, y = np.sort(rng.uniform(5.0, 9.0, points)), rng.normal(size=points).cumsum()
    kept_x, kept_y = thin(x, y, 700)
    assert len(kept_x) <= max(1_402, points if points <= 1_400 else 0)
    assert (kept_x[0], kept_x[-1], kept_y[0], kept_y[-1]) == (x[0], x[-1], y[0], y[-1])
    edges = np.linspace(x[0], x[-1], 701)
    for low, high in pairwise(edges):
        inside, kept = y[(x >= low) & (x < high)], kept_y[(kept_x >= low) & (kept_x < high)]
        if len(inside):
            assert (kept.min(), kept.max()) == (inside.min(), inside.max())


def test_averages_cover_whole_days() -> None:
    assert average_span(17_520, 3600) == 192
    assert average_span(100, 3600) == 1
    assert average_span(1_000, 86_400) == 11
    np.testing.assert_allclose(average(np.arange(5.0), 2), [0.5, 2.5, 4.0])


def test_labels_never_overlap() -> None:
    places = spread_apart([50.0, 50.0, 51.0, 200.0, 199.0], 13.0, 200.0)
    assert np.diff(sorted(places)).min() >= 13.0
    assert max(places) <= 200.0
    assert places[0] < places[2] < places[4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tracks": {}}, "needs the track 'policy'"),
        ({"timestamps": np.array([], dtype=np.int64)}, "at least one bar"),
        ({"timestamps": np.arange(3)}, "for 3 bars"),
    ],
)
def test_a_record_that_cannot_carry_it_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        render_tear_sheet(dataclasses.replace(make_evaluation(10), **change), make_verdict())


def test_infinite_equity_is_refused() -> None:
    evaluation = make_evaluation(10)
    evaluation.tracks[POLICY].equity[3] = np.inf
    with pytest.raises(EvaluationError, match="not finite"):
        render_tear_sheet(evaluation, make_verdict())


def test_chromium_opens_it(sheet: str, tmp_path: Path) -> None:
    page = tmp_path / "tear sheet.html"
    page.write_text(sheet, encoding="utf-8")
    dom = open_in_chromium(page, tmp_path / "profile")
    assert "REJECTED" in dom
    assert "4 of 8 criteria failed" in dom
    assert dom.count("<svg") == 13


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_any_width_and_a_viewer_without_scripts_show_it_whole(width: int, sheet: str, tmp_path: Path) -> None:
    """In a frame that forbids scripts, as the pipelines' viewer does, nothing sticks out of any screen."""
    page = tmp_path / "viewer.html"
    measure = "const d = this.contentDocument;"
    measure += "document.title = [d.documentElement.scrollWidth, d.querySelectorAll('svg').length]"
    page.write_text(
        f'<!doctype html><title></title><iframe sandbox="allow-same-origin" style="width:{width}px;border:0" '
        f'onload="{escaping.escape(measure)}" srcdoc="{escaping.escape(sheet)}"></iframe>',
        encoding="utf-8",
    )
    title = re.search(r"<title>(\d+),(\d+)</title>", open_in_chromium(page, tmp_path / "profile"))
    assert title is not None
    assert int(title[1]) <= width
    assert int(title[2]) == 13


def test_sections_that_lack_the_same_thing_are_told_once() -> None:
    gone = Evidence(problems={"trust": "It is too short.", "costs": "No trades.", "walk_forward": "It is too short."})
    assert tables.missing_sections(gone) == [("Trust, walk forward", "It is too short."), ("Costs", "No trades.")]
    assert tables.missing_sections(Evidence()) == []
