"""Downloads: complete, resumable, never silently short; then the real ccxt over loopback HTTP."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from layer3.errors import ConfigurationError, DataError, SourceError
from layer3.market import exchange
from layer3.market.candles import MAX_GAP, check
from layer3.market.exchange import PAGE_BARS, TransientError, history, resolve, window_end
from layer3.market.sources import load
from tests.fakes.coinbase import HOUR, Coinbase, candle, serve

END = datetime(2025, 6, 1, 12, tzinfo=UTC)
HOUR_MS = 3_600_000
STOP = int(END.timestamp()) * 1000
BARS = 1_000
FIRST = STOP - BARS * HOUR_MS

Rows = Sequence[Sequence[float | None]]


def bar(opened: int) -> list[float | None]:
    base = 100.0 + opened // HOUR_MS % 50
    return [opened, base, base + 2, base - 2, base + 1, 7.0]


class Venue:
    """An exchange in memory: a record with holes, an answer size, and failures to come."""

    name = "venue"

    def __init__(
        self, *, missing: Sequence[int] = (), answer: int = 10_000, failures: int = 0, stops_after: int = 10**9
    ) -> None:
        self.missing = set(missing)
        self.answer = answer
        self.failures = failures
        self.stops_after = stops_after
        self.asked: list[int] = []

    def symbols(self) -> Sequence[str]:
        return ["BTC/USD", "BTC/USDT", "BTC/USDT:USDT", "ETH/USD"]

    def fetch_ohlcv(self, symbol: str, timeframe: str, since: int, limit: int) -> Rows:
        if self.failures:
            self.failures -= 1
            raise TransientError("busy")
        if len(self.asked) >= self.stops_after:
            raise KeyboardInterrupt
        self.asked.append(since)
        # One bar more than closed: the exchange also gives the bar that is still open.
        opens = range(since, STOP + HOUR_MS, HOUR_MS)[: min(limit, self.answer)]
        return [bar(opened) for opened in opens if opened not in self.missing]

    def close(self) -> None:
        pass


class Naps(list[float]):
    """A sleep that only notes how long."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def download(
    venue: exchange.Exchange, cache: Path, *, sleep: exchange.Sleep | None = None, bars: int = BARS
) -> pd.DataFrame:
    return history(venue, "BTC-USD", end=END, bars=bars, cache=cache, sleep=Naps() if sleep is None else sleep)


def expected(bars: int = BARS) -> pd.DataFrame:
    rows = [bar(opened) for opened in range(STOP - bars * HOUR_MS, STOP, HOUR_MS)]
    frame = pd.DataFrame(rows, columns=["timestamp", "open", "high", "low", "close", "volume"])
    return frame.astype(dict.fromkeys(frame.columns[1:], "float64"))


@pytest.mark.parametrize("answer", [10_000, PAGE_BARS, 100, 7, 1])
@pytest.mark.parametrize("bars", [1, 299, 300, 301, BARS])
def test_window_is_complete_at_any_page_size(tmp_path: Path, answer: int, bars: int) -> None:
    frame = download(Venue(answer=answer), tmp_path, bars=bars)
    pd.testing.assert_frame_equal(frame, expected(bars))


def test_frame_passes_the_checks() -> None:
    table, report = check(expected(3_000), "venue")
    assert (report.rows, report.timestamp_form) == (3_000, "epoch milliseconds")
    assert table["timestamp"].iloc[-1] == pd.Timestamp(END) - pd.Timedelta(hours=1)


def test_complete_pages_are_not_asked_for_again(tmp_path: Path) -> None:
    first, second = Venue(), Venue()
    frame = download(first, tmp_path)
    pd.testing.assert_frame_equal(download(second, tmp_path), frame)
    assert len(first.asked) == 5
    assert second.asked == first.asked[-1:], "only the page that is still growing is asked for again"


def test_interrupted_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first, second = Venue(stops_after=2), Venue()
    with pytest.raises(KeyboardInterrupt):
        download(first, tmp_path)
    pd.testing.assert_frame_equal(download(second, tmp_path), expected())
    assert not set(first.asked) & set(second.asked)


@pytest.mark.parametrize("damage", ["", "{", "[]", "[[1,2]]", "null", '[["a",1,2,3,4,5]]', "cut"])
def test_damaged_page_is_downloaded_again(tmp_path: Path, damage: str) -> None:
    download(Venue(), tmp_path)
    page = sorted(tmp_path.rglob("*.json"))[1]
    whole = page.read_text()
    page.write_text(json.dumps(json.loads(whole)[:-1]) if damage == "cut" else damage)
    venue = Venue()
    pd.testing.assert_frame_equal(download(venue, tmp_path), expected())
    assert len(venue.asked) == 2
    assert page.read_text() == whole


def test_cache_tells_exchanges_and_symbols_apart(tmp_path: Path) -> None:
    download(Venue(), tmp_path)
    other = Venue()
    history(other, "BTC-USDT", end=END, bars=BARS, cache=tmp_path, sleep=Naps())
    assert len(other.asked) == 5
    assert {path.name for path in (tmp_path / "venue").iterdir()} == {"BTC-USD", "BTC-USDT"}


def test_failures_are_retried_with_back_off(tmp_path: Path) -> None:
    naps = Naps()
    pd.testing.assert_frame_equal(download(Venue(failures=4), tmp_path, sleep=naps), expected())
    assert naps == [1.0, 2.0, 4.0, 8.0]


def test_exchange_that_stays_away(tmp_path: Path) -> None:
    naps = Naps()
    with pytest.raises(
        SourceError, match=r"venue BTC/USD: bars from .*no answer in 5 attempts.*start again.*busy"
    ) as caught:
        download(Venue(failures=99), tmp_path, sleep=naps)
    assert not isinstance(caught.value, TransientError)
    assert len(naps) == 4


def opens(start: int, count: int) -> list[int]:
    return list(range(start, start + count * HOUR_MS, HOUR_MS))


@pytest.mark.parametrize(
    ("missing", "counts", "first"),
    [
        (opens(FIRST, 1), r"gave \d+ of the \d+ hourly bars", "2025-04-20T20:00:00Z (1 in a row)"),
        (opens(FIRST, 400), r"gave 0 of the", "2025-04-20T20:00:00Z"),
        (opens(STOP - HOUR_MS, 1), r"gave 999 of the 1,000 hourly bars", "2025-06-01T11:00:00Z (1 in a row)"),
        (opens(FIRST + 500 * HOUR_MS, MAX_GAP + 1), r"gave \d+ of the \d+", "2025-05-11T16:00:00Z (7 in a row)"),
        (opens(FIRST, BARS), r"gave 0 of the", "2025-04-20T20:00:00Z"),
    ],
    ids=["first bar", "listed later", "last bar", "long hole", "nothing"],
)
def test_short_answer_is_never_silent(tmp_path: Path, missing: list[int], counts: str, first: str) -> None:
    with pytest.raises(SourceError, match=counts) as caught:
        download(Venue(missing=missing), tmp_path)
    assert f"opens at {first}" in str(caught.value)


def test_long_hole_across_two_pages_is_found(tmp_path: Path) -> None:
    boundary = FIRST - FIRST % (PAGE_BARS * HOUR_MS) + 2 * PAGE_BARS * HOUR_MS
    with pytest.raises(SourceError, match=r"\(8 in a row\)"):
        download(Venue(missing=opens(boundary - 4 * HOUR_MS, 8)), tmp_path)


def test_short_hole_of_the_exchange_is_left_to_the_checks(tmp_path: Path) -> None:
    hole = opens(FIRST + 500 * HOUR_MS, 3)
    frame = download(Venue(missing=hole), tmp_path)
    assert len(frame) == BARS - 3
    _, report = check(frame, "venue", min_rows=100)
    assert (report.rows, report.gaps, report.filled_rows) == (BARS, 1, 3)


def test_late_bar_is_waited_for(tmp_path: Path) -> None:
    class Late(Venue):
        def fetch_ohlcv(self, symbol: str, timeframe: str, since: int, limit: int) -> Rows:
            if since == STOP - HOUR_MS:
                self.missing.clear()
            return super().fetch_ohlcv(symbol, timeframe, since, limit)

    naps = Naps()
    pd.testing.assert_frame_equal(download(Late(missing=[STOP - HOUR_MS]), tmp_path, sleep=naps), expected())
    assert naps == []


@pytest.mark.parametrize("row", [[FIRST + 1, 1, 1, 1, 1, 1], [None, 1, 1, 1, 1, 1], [FIRST, 1, 1]])
def test_rows_that_are_no_hourly_bars(tmp_path: Path, row: list[float | None]) -> None:
    class Odd(Venue):
        def fetch_ohlcv(self, symbol: str, timeframe: str, since: int, limit: int) -> Rows:
            return [row]

    with pytest.raises(SourceError, match="where an hourly bar was expected"):
        download(Odd(), tmp_path)


def test_number_that_the_exchange_leaves_out_is_refused_by_the_checks(tmp_path: Path) -> None:
    class Holey(Venue):
        def fetch_ohlcv(self, symbol: str, timeframe: str, since: int, limit: int) -> Rows:
            return [[*row[:4], None, *row[5:]] for row in super().fetch_ohlcv(symbol, timeframe, since, limit)]

    with pytest.raises(DataError, match=r"row 1 .*column 'close': '' is empty"):
        check(download(Holey(), tmp_path), "venue", min_rows=100)
    assert not list(tmp_path.rglob("*.json")), "what is incomplete must not be kept"


@pytest.mark.parametrize("symbol", ["BTC/USD", "BTC-USD", "btc-usd", "BTC_USD", "BTCUSD"])
def test_symbols_in_any_notation(symbol: str) -> None:
    assert resolve(symbol, Venue().symbols(), "venue") == "BTC/USD"


def test_unknown_and_ambiguous_symbols() -> None:
    with pytest.raises(ConfigurationError, match=r"venue has no market 'BTC-USX': did you mean BTC/USD"):
        resolve("BTC-USX", Venue().symbols(), "venue")
    with pytest.raises(ConfigurationError, match="lists 4 markets, none like it"):
        resolve("ZZZZ-QQQQ", Venue().symbols(), "venue")
    with pytest.raises(ConfigurationError, match="may be any of AB/C, A/BC"):
        resolve("ABC", ["AB/C", "A/BC"], "venue")
    assert resolve("BTC/USDT:USDT", Venue().symbols(), "venue") == "BTC/USDT:USDT"


def test_window_ends_with_the_last_closed_bar() -> None:
    plus_two = datetime.fromisoformat("2025-06-01T14:59:59.999+02:00")
    assert window_end(plus_two) == END
    assert window_end(END) == END
    with pytest.raises(ConfigurationError, match="does not end on a full hour"):
        history(Venue(), "BTC-USD", end=END + timedelta(minutes=1), cache=Path("unused"))


def test_ccxt_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ccxt", None)
    with pytest.raises(ConfigurationError, match=r"pip install -e '\.\[exchange\]'"):
        exchange.connect("coinbase")


def test_unknown_exchange() -> None:
    pytest.importorskip("ccxt")
    with pytest.raises(ConfigurationError, match=r"unknown exchange 'coinbas': did you mean coinbase"):
        exchange.connect("coinbas")
    with pytest.raises(ConfigurationError, match=r"see https://docs\.ccxt\.com"):
        exchange.connect("qqqqqqqq")


NOW = int(END.timestamp()) + 40 * 60


@pytest.fixture
def coinbase() -> Iterator[Coinbase]:
    pytest.importorskip("ccxt")
    with serve(Coinbase(listed=NOW - 4_000 * HOUR, now=NOW)) as state:
        yield state


@pytest.fixture
def client(coinbase: Coinbase) -> Iterator[exchange.Exchange]:
    connected = exchange.connect("coinbase", base_url=coinbase.url)
    yield connected
    connected.close()


def candle_requests(state: Coinbase) -> int:
    return sum("/candles" in path for path in state.requests)


def test_real_ccxt_downloads_every_closed_bar(coinbase: Coinbase, client: exchange.Exchange, tmp_path: Path) -> None:
    frame = download(client, tmp_path)
    assert frame["timestamp"].tolist() == list(range(FIRST, STOP, HOUR_MS)), "the bar that is still open is dropped"
    for row in (0, 500, 999):
        said = candle(int(frame["timestamp"].iloc[row]) // 1000)
        assert frame.iloc[row, 1:].tolist() == [float(said[key]) for key in ("open", "high", "low", "close", "volume")]
    assert candle_requests(coinbase) == 5
    download(client, tmp_path)
    assert candle_requests(coinbase) == 6


def test_real_ccxt_failures_are_retried(coinbase: Coinbase, client: exchange.Exchange, tmp_path: Path) -> None:
    coinbase.failures = [503, 429, 500]
    naps = Naps()
    assert len(download(client, tmp_path, sleep=naps)) == BARS
    assert naps == [1.0, 2.0, 4.0]


def test_real_ccxt_refusal_is_not_retried(coinbase: Coinbase, client: exchange.Exchange, tmp_path: Path) -> None:
    coinbase.failures = [400]
    naps = Naps()
    with pytest.raises(SourceError, match="coinbase refused the request"):
        download(client, tmp_path, sleep=naps)
    assert naps == []


def test_real_ccxt_short_record(coinbase: Coinbase, client: exchange.Exchange, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"coinbase gave .* hourly bars of BTC/USD .*opens at 20"):
        download(client, tmp_path, bars=5_000)


def test_real_ccxt_unknown_symbol(client: exchange.Exchange, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"coinbase has no market 'BTC-USX': did you mean .*BTC/USD"):
        history(client, "BTC-USX", end=END, cache=tmp_path)


def test_real_ccxt_nobody_listens(tmp_path: Path) -> None:
    pytest.importorskip("ccxt")
    gone = exchange.connect("coinbase", base_url="http://127.0.0.1:1")
    with pytest.raises(SourceError, match="list of markets: no answer in 5 attempts"):
        download(gone, tmp_path)
    gone.close()


def test_load_over_real_ccxt(coinbase: Coinbase, tmp_path: Path) -> None:
    coinbase.listed = 0
    coinbase.missing = {NOW // HOUR * HOUR - 5_000 * HOUR}
    table, report = load(
        "coinbase:BTC-USD",
        "BTC-USD",
        now=lambda: datetime.fromtimestamp(NOW, UTC),
        connect=lambda name: exchange.connect(name, base_url=coinbase.url),
        cache=tmp_path,
        sleep=(naps := Naps()),
    )
    assert naps == [1.0, 2.0], "a page that came short is asked for three times in all"
    assert (len(table), report.filled_rows, report.gaps) == (17_520, 1, 1)
    assert report.end == "2025-06-01T11:00:00+00:00"
