"""The comparison page: intervals everywhere, nothing from outside, and it opens in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.backtest.comparison import MEASURES, Comparison, Group, Reference, Row, in_words, render_comparison
from layer3.errors import EvaluationError

SCORES = {
    "reward": [1e-3, 2e-3, 3e-3],
    "sharpe": [0.5, 1.0, 1.5],
    "total_return": [0.10, 0.12, 0.14],
    "max_drawdown": [0.01, 0.02, 0.12],
}
KELLY = Reference("Kelly only", {"reward": -1e-3, "sharpe": 0.4, "total_return": 0.02, "max_drawdown": 0.07})
FLAT = Reference("Flat", {"reward": 0.0, "sharpe": None, "total_return": 0.0, "max_drawdown": 0.0})
PAGE = Comparison(
    title="Tuning on BTC-USDT",
    about=["BTC-USDT", "validation part"],
    synthetic=False,
    notes=["Nothing was released."],
    groups=[Group("Settings", "By mean.", [Row("Defaults", "batch 1024", SCORES)], [KELLY, FLAT])],
    trials={"BTC-USDT": 1_234},
    context=[("Data sha256", "ab" * 32)],
)


class Text(HTMLParser):
    """What a reader reads, and where the page would load from."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data"}]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_every_mean_stands_with_its_interval() -> None:
    text = Text(render_comparison(PAGE)).text
    assert "+2.00 +0.31 to +3.69" in text  # the mean, and 2.920 standard errors each way
    assert "+1.00 +0.16 to +1.84" in text
    assert "+12.0% +8.6% to +15.4%" in text
    assert "5.0% 0.0% to 15.3%" in text  # no drawdown is below zero
    assert "90% interval over 3 seeds (Student's t" in text
    assert "best" not in text.lower()


def test_the_number_of_trials_is_said() -> None:
    assert "BTC-USDT 1,234 different trainings on these data" in Text(render_comparison(PAGE)).text


def test_references_have_a_line_and_no_interval() -> None:
    page = render_comparison(PAGE)
    assert re.search(r"Kelly only<small>.*?−1\.00.*?\+0\.40.*?\+2\.0%.*?7\.0%", page, re.DOTALL)
    assert re.search(r"Flat<small>.*?n/a", page, re.DOTALL)
    # Two lines in the row, two in each reference's own, two in the key.
    assert page.count('class="line"') == page.count('class="line second"') == 4


def test_marks_are_where_the_numbers_say() -> None:
    page = render_comparison(PAGE)
    assert page.count('class="span"') == 2  # one row and the key
    axis = [(float(x), float(text.replace("−", "-"))) for x, text in re.findall(r'x="([\d.]+)%" y="16">([^<]+)<', page)]
    (x0, first), (x1, last) = axis[0], axis[-1]
    assert len(axis) >= 2

    def at(value: float) -> float:
        return x0 + (value - first) / (last - first) * (x1 - x0)

    (mean,) = re.findall(r'class="mean" cx="([\d.]+)%" cy="50%"', page)
    assert float(mean) == pytest.approx(at(2.0), abs=0.05)
    seeds = [float(x) for x in re.findall(r'class="seed" cx="([\d.]+)%"', page)]
    assert seeds == pytest.approx([at(1.0), at(2.0), at(3.0)], abs=0.05)
    kelly, flat = re.findall(r'class="line(?: second)?" x1="([\d.]+)%"', page)[:2]
    assert (float(kelly), float(flat)) == pytest.approx((at(-1.0), at(0.0)), abs=0.05)


def test_a_row_without_an_interval_shows_its_seeds_and_says_so() -> None:
    values = {**SCORES, "reward": [1e-3], "sharpe": [None, 1.0, 2.0]}
    page = render_comparison(replace(PAGE, groups=[Group("Settings", "", [Row("x", "", values)], [])]))
    assert page.count('class="span"') == 1  # the key's
    assert Text(page).text.count("n/a") == 2


def test_nothing_is_loaded_and_nothing_runs() -> None:
    parsed = Text(render_comparison(PAGE))
    assert parsed.loaded == []
    assert "script" not in parsed.tags


def test_synthetic_data_are_called_so() -> None:
    assert "SYNTHETIC" not in render_comparison(PAGE)
    page = render_comparison(replace(PAGE, synthetic=True))
    assert "SYNTHETIC DATA." in page
    assert "<title>Tuning on BTC-USDT (synthetic data)</title>" in page


def test_what_comes_from_data_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    group = Group(evil, evil, [Row(evil, evil, SCORES)], [Reference(evil, KELLY.values)])
    page = render_comparison(Comparison(evil, [evil], False, [evil], [group], {evil: 1}, [(evil, evil)]))
    assert "<script" not in page


def test_the_same_input_gives_the_same_bytes_and_a_long_list_stays_small() -> None:
    rows = [Row(f"Trial {n}", "learning rate 0.0012, batch 512, " * 4, SCORES) for n in range(100)]
    page = replace(PAGE, groups=[Group("Settings", "", rows, [KELLY, FLAT])])
    assert render_comparison(page) == render_comparison(page)
    assert len(render_comparison(page).encode()) <= 500_000


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "nothing was scored"),
        ([Group("a", "", [], [KELLY])], "nothing was scored"),
        ([Group("a", "", [Row("x", "", {**SCORES, "sharpe": [float("nan")] * 3})], [])], "not finite"),
        ([Group("a", "", [Row("x", "", SCORES)], [Reference("r", {**KELLY.values, "reward": float("inf")})])], "not f"),
    ],
)
def test_what_cannot_be_compared_is_refused(groups: list[Group], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        render_comparison(replace(PAGE, groups=groups))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=6))
def test_any_finite_scores_have_a_place_on_the_axis(values: list[float]) -> None:
    page = render_comparison(
        replace(PAGE, groups=[Group("a", "", [Row("x", "", {**SCORES, "reward": values})], [KELLY])])
    )
    places = [float(x) for x in re.findall(r'(?:cx|x1|x2)="(-?[\d.]+)%"', page)]
    assert all(0.0 <= place <= 100.0 for place in places)
    assert "nan" not in page


def test_in_words() -> None:
    sharpe = MEASURES[1]
    assert in_words(sharpe, [0.5, 1.0, 1.5]) == ("+1.00", "+0.16 to +1.84")
    assert in_words(sharpe, [0.5]) == in_words(sharpe, [None, 1.0]) == ("n/a", "")


@pytest.mark.parametrize("width", [1280, 390])
def test_chromium_opens_it_without_sideways_scroll(tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    long = Row("Trial 7", "learning rate 0.0012, batch 512, epochs 7, clip 0.31", SCORES)
    page = render_comparison(replace(PAGE, groups=[Group("Settings", "By mean.", [long] * 12, [KELLY, FLAT])]))
    # Chromium's window has a least width, so that a phone is a frame of its own.
    (tmp_path / "page.html").write_text(page)
    measure = "document.title = f.contentDocument.documentElement.scrollWidth"
    frame = f'<iframe id="f" src="page.html" width="{width}" height="900" style="border:0" onload="{measure}"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!doctype html><body>{frame}</body>")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += ["--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000"]
    shown = subprocess.run(
        [browser, *options, "--virtual-time-budget=3000", "--dump-dom", f"file://{tmp_path}/frame.html"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    found = re.search(r"<title>(\d+)</title>", shown)
    assert found is not None
    assert int(found[1]) <= width
