"""The report: within its columns, the same words on the page, nothing from outside, and a sentence for each failure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from layer3.ab.assignment import Design
from layer3.ab.rehearsal import rehearse
from layer3.ab.report import main
from layer3.ab.simulate import World
from layer3.ab.store import Store

WORLD = World(decisions=16, days=10, skill=0.4)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    file = tmp_path_factory.mktemp("ab") / "ab.sqlite"
    with Store(file) as store:
        rehearse(store, Design("<b>one & two</b>", least_units=15, ramp=((0.0, 0.5), (4.0, 0.6))), WORLD, seed=9)
    return file


def test_the_text_keeps_to_its_columns_and_says_everything(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--store", str(path)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    measures = ["Sharpe ratio, annual", "Maximum drawdown", "Win rate", "Mean return per unit"]
    tests = ["Always valid, adjusted", "Welch's t", "Paired t", "chi-square", "Guardrails"]
    for words in ["<b>one & two</b>", "60% from day 4", *measures, *tests]:
        assert words in text
    assert "nan" not in text.lower()


def test_the_page_stands_alone_and_is_the_same_each_time(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for page in pages:
        assert main(["--store", str(path), "--html", str(page)]) == 0
    text = capsys.readouterr().out
    first, second = (page.read_text() for page in pages)
    assert first == second
    assert "<script" not in first
    assert not re.search(r"(?:src|href)=\"(?!#)", first)
    assert "&lt;b&gt;one &amp; two&lt;/b&gt;" in first
    assert "<b>one" not in first
    assert first.count("<svg") == 6
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", first, flags=re.DOTALL).lower()
    headline = next(line.strip() for line in text.splitlines() if line.startswith("  ") and line.strip())
    assert headline in first.upper()


def test_an_experiment_without_pictures_has_words_in_their_place(tmp_path: Path) -> None:
    file, page = tmp_path / "ab.sqlite", tmp_path / "ab.html"
    with Store(file) as store:
        store.begin("empty", Design("empty").as_text(), 1)
    assert main(["--store", str(file), "--html", str(page)]) == 0
    text = page.read_text()
    assert "<svg" not in text
    assert text.count("There is nothing to draw") == 2
    assert "Fewer than two trades have closed" in text


def test_shares_of_the_design_stand_there_as_they_were_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "ab.sqlite", tmp_path / "ab.html"
    design = Design("careful", ramp=((0.0, 0.005), (3.0, 0.025)), level=0.995)
    with Store(file) as store:
        store.begin("careful", design.as_text(), 1)
    assert main(["--store", str(file), "--html", str(page)]) == 0
    for text in (capsys.readouterr().out.replace("\n", " "), page.read_text()):
        assert "0.5% from day 0, 2.5% from day 3 get the policy" in text
        assert "Sharpe ratio, annual, 99.5%" in text


def test_what_cannot_be_reported_is_a_sentence(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, two = tmp_path / "empty.sqlite", tmp_path / "two.sqlite"
    Store(empty).close()
    with Store(two) as store:
        for name in ("one", "two"):
            store.begin(name, Design(name).as_text(), 1)
    cases = {
        ("--store", str(tmp_path / "none.sqlite")): "there is no experiment store",
        ("--store", str(empty)): "holds no experiment yet",
        ("--store", str(two)): "2 experiments: say --experiment= with one or two",
        ("--store", str(path), "--experiment", "three"): "knows no experiment 'three'",
        ("--store", str(path), "--html", str(tmp_path / "no" / "x.html")): "cannot be written: No such file",
    }
    for arguments, words in cases.items():
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert words in said.err
        assert said.err.startswith("error: ")
        assert said.out == ""
