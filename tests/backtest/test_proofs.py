"""Pictures and tables of evidence: what they say is what the evidence holds, and what is missing is told."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from layer3.backtest import proofs
from layer3.backtest.figures import Bar, Panel, Whisker, bars_chart, costs_chart, folds_chart, intervals_chart
from layer3.backtest.figures import histogram_chart as histogram
from layer3.backtest.record import Costs, Degeneracy, Difference, Evidence, Interval, Leak, Trust
from layer3.backtest.sections import detail_sections
from tests.backtest.sheet_evidence import make_permutation, make_trust
from tests.backtest.sheets import Page, make_evaluation

WORDS = {"name": "n", "title": "A title", "description": "What & why"}


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return make_evaluation(3_000).evidence


def section(evidence: Evidence, title: str) -> dict[str, tuple[str, ...]]:
    (found,) = [s for s in detail_sections(evidence) if s.title == title]
    return {row.label: row.texts for row in found.rows}


def svg_text(svg: str) -> str:
    return Page(svg).text


@pytest.mark.parametrize("kind", ["bars", "blocks"])
def test_a_permutation_says_how_many_paths_did_as_well(kind: str) -> None:
    made = make_permutation(kind, np.random.default_rng(4), paths=400)  # type: ignore[arg-type]
    pictures = proofs.permutations(Evidence(permutations=(made,), problems={"permutations": "the path is too short"}))
    shown, other = pictures if kind == "bars" else reversed(pictures)
    assert f"{sum(v >= made.real for v in made.values)} of 400 shuffled paths" in shown.finding
    assert f"p = {made.p:.3f}" in shown.finding
    assert f"{np.median(made.values):.2f}".replace("-", "−") in shown.note
    assert {"real 1.42", f"p = {made.p:.3f}"} <= set(Page(str(shown.charts[0])).texts)
    assert shown.missing == ()
    assert (other.charts, other.missing) == ((), ("the path is too short",))


def bars_of(svg: str) -> list[tuple[float, float, str]]:
    """(left, height, colour) of every column."""
    found = []
    for path, style in re.findall(r'<path d="([^"]+)"[^>]*style="([^"]*)"', svg):
        color = re.search(r"fill: (#\w+)", style)
        numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", path)]
        if color and "stroke" not in style and color[1] in ("#8fa9c9", "#c4500f"):
            found.append((min(numbers[::2]), max(numbers[1::2]) - min(numbers[1::2]), color[1]))
    return found


def test_the_columns_of_a_histogram_are_the_counts() -> None:
    values = np.random.default_rng(0).normal(size=900)
    real = 1.5
    columns = bars_of(histogram(values, real, (), unit="u", **WORDS))
    heights = {c: sum(h for _, h, color in columns if color == c) for c in ("#8fa9c9", "#c4500f")}
    share = heights["#c4500f"] / sum(heights.values())
    assert share == pytest.approx(np.mean(values >= real), rel=0.05)


@pytest.mark.parametrize("values", [[0.0], [0.0] * 300, [-1e6, 1e6], list(np.linspace(-3, 3, 1_000))])
@pytest.mark.parametrize("real", [-50.0, 0.0, 2.99, 50.0])
def test_any_histogram_has_its_line_and_words_inside(values: list[float], real: float) -> None:
    svg = histogram(np.array(values), real, ("real", "p"), unit="u", **WORDS)
    assert {"real", "p", "u"} <= set(Page(svg).texts)
    assert "nan" not in svg
    width = re.search(r'viewBox="0 0 (\d+) ', svg)
    assert width
    for x in re.findall(r'<text [^>]*x="(-?[\d.]+)"', svg):
        assert -1 <= float(x) <= float(width[1]) + 1


def test_a_chart_tells_a_screen_reader_what_it_is() -> None:
    svg = histogram(np.arange(9.0), 4.0, (), unit="u", **WORDS)
    assert '<title id="n-half-title">A title</title><desc id="n-half-desc">What &amp; why</desc>' in svg
    assert 'role="img" aria-labelledby="n-half-title n-half-desc"' in svg


@pytest.mark.parametrize("break_even", [None, 0.0, 0.3, 3.4, 90.0])
def test_costs_are_labelled_and_the_break_even_marked_where_it_is_near(break_even: float | None) -> None:
    panels = (Panel("ratio", [1.5, None, -0.25, -1.0], "{:.2f}"), Panel("return", [None] * 4, "{:.0%}"))
    text = svg_text(costs_chart(np.array([0.5, 1, 2, 4]), panels, break_even, **WORDS))
    assert all(part in text for part in ("1.50", "−0.25", "−1.00", "0.5×", "4×", "ratio", "return", "multiple of all"))
    assert ("breaks even at" in text) == (break_even in (0.3, 3.4))


@pytest.mark.parametrize(
    ("gross", "break_even", "words"),
    [
        (0.1, 3.4, "Nothing is left at 3.4 times these costs."),
        (0.1, None, "No multiple of these costs up to 100 eats all of it."),
        (-0.1, None, "It loses before any cost, so no multiple breaks even."),
        (0.0, None, "It loses before any cost, so no multiple breaks even."),
    ],
)
def test_the_break_even_in_words(gross: float, break_even: float | None, words: str) -> None:
    costs = Costs(gross, 0.01, 0.01, 0.0, gross - 0.02, (), break_even)
    assert proofs.break_even_words(costs) == words


def test_bars_whiskers_and_folds_without_numbers_still_draw() -> None:
    bars = svg_text(bars_chart([("group", [Bar("a", None, "n/a"), Bar("b", -2.0, "−2", True)])], unit="u", **WORDS))
    assert "group" in bars
    assert "n/a" in bars
    whiskers = [Whisker("x", None, None, None, "n/a"), Whisker("y", 0.1, 0.2, 0.3, "+0.2")]
    assert "+0.2" in svg_text(intervals_chart(whiskers, unit="u", **WORDS))
    assert "fold" in svg_text(folds_chart([(None, None), (1.0, None), ()], unit="u", **WORDS))


def test_the_intervals_read_better_worse_or_not_told_apart(evidence: Evidence) -> None:
    finding = proofs.differences(evidence).finding
    assert finding == "Better than Kelly only and Flat; not told apart from Buy and hold; worse than Champion."
    unknown = Evidence(differences=(Difference("flat", Interval(None, None, None), None),))
    picture = proofs.differences(unknown)
    assert (picture.finding, picture.charts) == ("Not compared with Flat.", ())
    assert "None of them has an interval." in picture.missing


@pytest.mark.parametrize(
    ("years", "needed", "words"),
    [
        (1.0, 1.37, "need 5 more months"),
        (1.0, 1.0 + 1 / 12, "need 1 more month for"),
        (1.37, 1.37, "long enough"),
        (2.0, 1.37, "long enough"),
        (2.0, None, "No length of record would do"),
    ],
)
def test_the_length_of_a_record_in_words(years: float, needed: float | None, words: str) -> None:
    trust = dataclasses.replace(make_trust(1.0, years), years_needed=needed)
    (found,) = [s for s in detail_sections(Evidence(trust=trust)) if s.title == "Trust"]
    assert words in found.findings[0]


def test_trust_stands_beside_that_of_the_walk_forward(evidence: Evidence) -> None:
    rows = section(evidence, "Trust")
    assert evidence.walk_forward
    assert rows["Sharpe ratio"] == ("1.42", "1.05")
    assert rows["90% interval"] == ("0.37 to 2.44", "0.00 to 2.07")
    assert rows["Trials"] == ("90", "90")
    assert rows["Minimum track record"] == ("16.4 months", "16.4 months")
    alone = section(dataclasses.replace(evidence, walk_forward=None), "Trust")
    assert alone["Deflated Sharpe ratio"] == ("0.914",)


def test_costs_add_up_as_they_are_shown() -> None:
    rows = section(Evidence(costs=Costs(0.3, 0.05, 0.03, -0.01, 0.23, (), 9.0)), "Costs told apart")
    parts = [
        float(rows[name][0].replace("−", "-").rstrip("%")) for name in ("Gross", "Commission", "Slippage", "Funding")
    ]
    assert parts == [30.0, -5.0, -3.0, 1.0]
    assert sum(parts) == pytest.approx(23.0)
    assert rows["Net"] == ("+23.00%",)


def test_a_leak_and_degeneracy_are_told_in_words() -> None:
    leak = Leak(("features", "states"), (10, 20), ("states from bar 7",))
    flat = Degeneracy(5, 1.0, 0.0, 0.0, 0.0, 5, None, ("Five members, one output.", "It hardly varies."))
    made = {s.title: s for s in detail_sections(Evidence(leak=leak, degeneracy=flat))}
    assert made["Leaks of the future"].findings == ("Different, so it used the future: states from bar 7.",)
    assert made["Degeneracy"].findings == flat.findings
    assert {row.label: row.texts for row in made["Degeneracy"].rows}["Agreement"] == ("n/a",)


def test_every_fold_seed_and_slice_has_its_row(evidence: Evidence) -> None:
    assert evidence.walk_forward
    assert evidence.stability
    folds = section(evidence, "Folds of the walk-forward")
    assert len(folds) == len(evidence.walk_forward.folds) + 1
    assert folds["Fold 3"] == tuple(f"{s:.2f}".replace("-", "−") for s in evidence.walk_forward.folds[2].sharpes)
    months = section(evidence, "Sharpe ratio by month")
    assert list(months) == [s.label for s in evidence.stability.months]
    cut = section(evidence, "Stability")
    labels = {
        s.label.capitalize().replace("_", " ") for s in (*evidence.stability.regimes, *evidence.stability.directions)
    }
    assert labels | {"Without the best 1 % of bars"} <= set(cut)


def test_numbers_that_could_not_be_computed_read_not_available() -> None:
    unknown = Interval(None, None, None)
    trust = Trust(None, None, None, None, 0, None, 0.0, None, unknown, unknown)
    rows = section(Evidence(trust=trust), "Trust")
    for label in ("Sharpe ratio", "Standard error", "90% interval", "Deflated Sharpe ratio"):
        assert rows[label] == ("n/a",)
    assert rows["Minimum track record"] == ("no length would do",)


def test_results_at_other_costs_are_shown(evidence: Evidence) -> None:
    assert evidence.costs
    rows = section(evidence, "At other costs")
    assert list(rows) == ["0.5× all costs", "1× all costs", "2× all costs", "4× all costs"]
    for line, texts in zip(evidence.costs.lines, rows.values(), strict=True):
        total, ratio = (float(text.rstrip("%").replace("−", "-")) for text in texts)
        assert (total, ratio) == (
            pytest.approx(100 * (line.total_return or 0.0), abs=0.051),
            pytest.approx(line.sharpe, abs=0.0051),
        )


def test_the_attribution_names_what_multiplies(evidence: Evidence) -> None:
    picture = proofs.attribution(evidence)
    assert "policy: 1.42, always 1: 1.11, always its mean: 1.09, random: 0.87." in picture.finding
    texts = Page(str(picture.charts[0])).texts
    assert [text for text in texts if "(" in text][:2] == ["1.42 (+14.2%)", "1.11 (+11.1%)"]
    assert texts.count("nothing held") == 2


def test_the_walk_forward_counts_its_folds(evidence: Evidence) -> None:
    walk = evidence.walk_forward
    assert walk
    stitched, folds = proofs.walk_forward(evidence)
    above = sum(np.mean([s for s in fold.sharpes if s is not None]) > 0 for fold in walk.folds)
    assert folds.finding.startswith(f"{above} of 18 folds above 0 on average.")
    assert "not told apart from Kelly only" in stitched.finding
    silent = dataclasses.replace(walk, folds=tuple(dataclasses.replace(f, sharpes=(None,)) for f in walk.folds))
    _, nothing = proofs.walk_forward(Evidence(walk_forward=silent))
    assert (nothing.charts, nothing.missing) == ((), ("No fold has a Sharpe ratio.",))
