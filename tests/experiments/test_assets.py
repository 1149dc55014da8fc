"""``make assets`` with real trainings, and which policies are judged where."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layer3 import storage, trials
from layer3.errors import ConfigurationError
from layer3.experiments import assets
from layer3.experiments.calendar import common_calendar
from layer3.experiments.market import Market, data_of
from layer3.experiments.transfer import Experiment, folds_of
from tests.agent.worlds import HOUR_NS, START, make_bars

DATA = "synthetic:bars=5000,edge=3,seed=4"


@pytest.mark.parametrize(
    ("pattern", "names", "expected"),
    [
        ("coinbase:{asset}-USD", ["BTC", "ETH"], [("coinbase:BTC-USD", "BTC-USD"), ("coinbase:ETH-USD", "ETH-USD")]),
        (
            "../data/{asset}-USDT_1h.csv.gz",
            ["BTC", "SOL"],
            [("../data/BTC-USDT_1h.csv.gz", "BTC-USDT"), ("../data/SOL-USDT_1h.csv.gz", "SOL-USDT")],
        ),
        (
            "gs://b/{asset}/1h.parquet",
            ["BTC", "ETH"],
            [("gs://b/BTC/1h.parquet", "BTC"), ("gs://b/ETH/1h.parquet", "ETH")],
        ),
        ("synthetic:seed={asset}", ["3", "5"], [("synthetic:seed=3", "SYNTH-3"), ("synthetic:seed=5", "SYNTH-5")]),
        (
            "synthetic:no-edge,seed=7",
            ["A", "B"],
            [("synthetic:no-edge,seed=7,seed=7", "SYNTH-A"), ("synthetic:no-edge,seed=7,seed=8", "SYNTH-B")],
        ),
    ],
)
def test_each_asset_has_its_own_data_and_name(pattern: str, names: list[str], expected: list[tuple[str, str]]) -> None:
    assert data_of(pattern, names) == expected


@pytest.mark.parametrize(
    ("pattern", "names", "message"),
    [
        ("coinbase:{asset}-USD", ["BTC"], "assets are BTC: name at least two different ones"),
        ("coinbase:{asset}-USD", [], "assets are none: name at least two"),
        ("coinbase:{asset}-USD", ["BTC", "ETH", "BTC"], "two different ones"),
        ("coinbase:{asset}-USD", ["BTC", "../x"], r"asset '\.\./x' is no name"),
        ("BTC.csv", ["BTC", "ETH"], r"BTC.csv is the same for every asset: write \{asset\} where its name stands"),
        ("synthetic:nonsense", ["A", "B"], "synthetic market 'nonsense' is not known"),
    ],
)
def test_assets_that_cannot_be_are_refused(pattern: str, names: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        data_of(pattern, names)


def test_three_markets_together_without_each_and_each_alone() -> None:
    assert [sorted(fold) for fold in folds_of(3)] == [[0, 1, 2], [1, 2], [0, 2], [0, 1], [0], [1], [2]]


def test_with_two_markets_the_other_one_is_one_alone_and_trained_once() -> None:
    assert [sorted(fold) for fold in folds_of(2)] == [[0, 1], [1], [0]]


def test_windows_are_the_training_parts_and_never_cross_a_seam() -> None:
    def market(name: str, begins: int) -> Market:
        times = START + begins * HOUR_NS + HOUR_NS * np.arange(6_000, dtype=np.int64)
        info = {
            "symbol": name,
            "data_sha256": name * 64,
            "sizing_sha256": "",
            "start": "2023-01-01T00:00:00+00:00",
            "end": "2024-01-01T00:00:00+00:00",
        }
        return Market(make_bars(6_000, timestamp=times), info)

    markets = (market("a", 0), market("b", 500), market("c", 200))
    experiment = Experiment(markets, common_calendar(markets), folds_of(3))
    bars = 5_500
    part = experiment.calendar.splits.train
    assert experiment.windows(experiment.folds[0]) == [
        range(part.start + k * bars, part.stop + k * bars) for k in range(3)
    ]
    assert experiment.windows(frozenset({2})) == [range(2 * bars + part.start, 2 * bars + part.stop)]
    assert experiment.own_rows(frozenset({0, 2})) == {
        "a" * 64: [range(500 + part.start, 500 + part.stop)],
        "c" * 64: [range(300 + part.start, 300 + part.stop)],
    }
    for number in range(3):
        folds = [fold for fold, _ in experiment.judged_on(number)]
        assert [number in fold for fold in folds] == [True, False, True]
        assert [len(fold) for fold in folds] == [3, 2, 1]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    arguments = ["--assets", "A,B", "--data", DATA, "--seeds", "2", "--steps", "4096", "--store", str(store)]
    assert assets.main(arguments) == 0
    return store


def test_every_market_has_its_rows_in_both_parts(done: Path) -> None:
    (page,) = done.rglob("comparison.html")
    text = page.read_text()
    assert "SYNTHETIC DATA." in text
    titles = re.findall(r"<h2>(SYNTH-[AB], \w+ part)", text)
    assert titles == [f"SYNTH-{name}, {part} part" for name in "AB" for part in ("validation", "test")]
    rows = re.findall(r'<th scope="row">([^<]+)<small>([^<]+)<', text)
    expected = [
        (what, f"trained on {on}")
        for own, other in (("A", "B"), ("B", "A"))
        for _ in ("validation", "test")
        for what, on in (
            ("All markets together", "SYNTH-A, SYNTH-B"),
            (f"Never saw SYNTH-{own}", f"SYNTH-{other}"),
            ("This market alone", f"SYNTH-{own}"),
        )
    ]
    assert [row for row in rows if row[0] not in {"Kelly only", "Flat"}] == expected
    assert len(rows) == len(expected) + 2 * 4
    assert "The test part was looked at" in text
    assert text.count("6 different trainings on these data") == 2


def test_what_was_judged_is_on_record_for_each_market(done: Path) -> None:
    records: list[dict[str, Any]] = [json.loads(path.read_text()) for path in done.rglob("trials/*/*.json")]
    assert sorted(record["data"]["symbol"] for record in records) == ["SYNTH-A", "SYNTH-B"]
    shas = {record["data"]["symbol"]: record["data"]["sha256"] for record in records}
    for record in records:
        own = record["data"]["sha256"]
        assert record["kind"] == "assets"
        assert [set(fold) for fold in record["folds"]] == [set(shas.values()), set(shas.values()) - {own}, {own}]
        assert record["policies"] == 6
        assert {len(values) for values in record["scores"].values()} == {6}
        assert trials.count(str(done), own) == 6


def test_nothing_is_left_but_page_and_record(done: Path) -> None:
    assert {path.name for path in done.iterdir()} == {"assets", "trials"}
    assert [path.name for path in (done / "assets").glob("*/*")] == ["comparison.html"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--assets", "A"], "name at least two different ones"),
        (["--assets", "A,B", "--seeds", "1"], "one alone has no interval"),
        (["--assets", "A,B", "--data", "nowhere/{asset}.csv"], "nowhere/A.csv: there is no such file"),
        (["--assets", "A,B", "--data", "synthetic:bars=2000"], "supply at least"),
        (
            ["--assets", "1,2", "--data", "synthetic:bars=6000,edge=3,seed={asset}"],
            "SYNTH-1, validation part: the sizing",
        ),
        (["--assets", "A,B", "--store", "gs://bucket/x"], "gs://bucket/x is a bucket"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    common = ["--data", DATA, "--steps", "4096", "--store", str(tmp_path / "store")]
    assert assets.main([*common, *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_at_the_end_is_said_in_one_sentence_and_nothing_is_trained_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, arguments = storage.write_bytes, ["--assets", "A,B", "--data", DATA, "--seeds", "2", "--steps", "2048"]

    def full(uri: str, content: bytes) -> None:
        if uri.endswith("comparison.html"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), uri)
        write(uri, content)

    with monkeypatch.context() as context:
        context.setattr(storage, "write_bytes", full)
        assert assets.main([*arguments, "--store", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"assets: \S+/comparison\.html: No space left on device: free some space; then run the same command again to "
        r"go on\.\n",
        said,
    )
    assert assets.main([*arguments, "--store", str(tmp_path)]) == 0
    # No line of a training: it had ended.
    assert "Episode" not in capsys.readouterr().out
