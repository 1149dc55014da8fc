"""Files of every kind, their damages, versions, and the routes to exchange and simulator."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import itertools
import lzma
import re
import zipfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layer3.errors import ConfigurationError, DataError, SourceError
from layer3.market.sources import is_synthetic, load, symbol_of, version_of
from tests.fakes.gcs import FakeGcs
from tests.fakes.timing import quickest

REAL = Path(__file__).parents[3] / "shared" / "data"
ROWS = 2_000
NOW = datetime(2025, 6, 1, 12, 34, 56, tzinfo=UTC)


def candles(rows: int = ROWS, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0, 0.01, rows)))
    opened = np.concatenate([[100.0], close[:-1]])
    return pd.DataFrame(
        {
            "timestamp": pd.date_range("2024-01-01", periods=rows, freq="h", tz="UTC", unit="ns"),
            "open": opened,
            "high": np.maximum(opened, close) * 1.001,
            "low": np.minimum(opened, close) * 0.999,
            "close": close,
            "volume": rng.uniform(1, 9, rows),
        }
    )


FRAME = candles()


def csv_bytes(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


def parquet_bytes(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def zipped(raw: bytes, names: Sequence[str] = ("data",)) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, raw)
    return buffer.getvalue()


def zst(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return bytes(sink.getvalue())


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zst,
    ".zip": zipped,
}
WRITE: dict[str, Callable[[pd.DataFrame], bytes]] = {".csv": csv_bytes, ".parquet": parquet_bytes}
UNITS: dict[str, Callable[[pd.Series], pd.Series]] = {
    "datetime": lambda t: t,
    "iso": lambda t: t.dt.strftime("%Y-%m-%dT%H:%M:%S+00:00"),
    "s": lambda t: t.astype("int64") // 10**9,
    "ms": lambda t: t.astype("int64") // 10**6,
    "us": lambda t: t.astype("int64") // 10**3,
    "ns": lambda t: t.astype("int64"),
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("kind", "compression"), list(itertools.product(WRITE, COMPRESS)))
def test_round_trip_through_every_kind_of_file(tmp_path: Path, kind: str, compression: str, unit: str) -> None:
    path = tmp_path / f"BTC{kind}{compression}"
    path.write_bytes(COMPRESS[compression](WRITE[kind](FRAME.assign(timestamp=UNITS[unit](FRAME["timestamp"])))))
    table, report = load(str(path), "BTC-USDT", version=version_of(str(path)))
    pd.testing.assert_frame_equal(table, FRAME, check_exact=True)
    assert report.origin == str(path)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(list(WRITE)),
    compression=st.sampled_from(list(COMPRESS)),
    unit=st.sampled_from(list(UNITS)),
    scale=st.floats(1e-9, 1e9),
)
def test_round_trip_keeps_every_bit(
    tmp_path: Path, seed: int, kind: str, compression: str, unit: str, scale: float
) -> None:
    frame = candles(seed=seed)
    frame[["open", "high", "low", "close"]] *= scale
    path = tmp_path / f"any{kind}{compression}"
    path.write_bytes(COMPRESS[compression](WRITE[kind](frame.assign(timestamp=UNITS[unit](frame["timestamp"])))))
    pd.testing.assert_frame_equal(load(str(path), "X")[0], frame, check_exact=True)


def test_parquet_with_the_time_as_index(tmp_path: Path) -> None:
    path = tmp_path / "indexed.parquet"
    FRAME.set_index("timestamp").to_parquet(path)
    pd.testing.assert_frame_equal(load(str(path), "X")[0], FRAME)


def test_csv_with_byte_order_mark_crlf_and_extra_columns(tmp_path: Path) -> None:
    path = tmp_path / "windows.csv"
    text = FRAME.assign(trades=5, note='a,"b"').to_csv(index=False).replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    table, report = load(str(path), "X")
    pd.testing.assert_frame_equal(table, FRAME)
    assert report.ignored_columns == ("trades", "note")


HEADER = "timestamp,open,high,low,close,volume\n"
CSV = csv_bytes(FRAME)
BAD_FILES: list[tuple[str, str, bytes, str]] = [
    ("empty", "a.csv", b"", "the file is empty"),
    ("only blanks", "a.csv", b" \n\n", "holds no CSV"),
    ("only a header", "a.csv", HEADER.encode(), "has a header but no rows"),
    ("only a header, gz", "a.csv.gz", gzip.compress(HEADER.encode()), "has a header but no rows"),
    ("empty gz", "a.csv.gz", gzip.compress(b""), "what it holds is empty"),
    ("no suffix", "candles", CSV, "its name must end in .csv or .parquet"),
    ("wrong suffix", "a.xlsx", CSV, "its name must end in .csv or .parquet"),
    ("wrong compression", "a.csv.7z", CSV, "its name must end in"),
    ("only a compression", "a.gz", gzip.compress(CSV), "its name must end in"),
    ("gz that is none", "a.csv.gz", CSV, r"damaged or is no \.gz file"),
    ("cut gz", "a.csv.gz", gzip.compress(CSV)[:-500], r"damaged or is no \.gz file"),
    ("flipped gz", "a.csv.gz", gzip.compress(CSV)[:200] + b"\xff" * 9 + gzip.compress(CSV)[209:], r"no \.gz file"),
    ("bz2 that is none", "a.csv.bz2", CSV, r"no \.bz2 file"),
    ("cut bz2", "a.csv.bz2", bz2.compress(CSV)[:-500], r"no \.bz2 file"),
    ("xz that is none", "a.csv.xz", CSV, r"no \.xz file"),
    ("cut xz", "a.csv.xz", lzma.compress(CSV)[:-500], r"no \.xz file"),
    ("zst that is none", "a.csv.zst", CSV, r"no \.zst file"),
    ("cut zst", "a.csv.zst", zst(CSV)[:-500], r"no \.zst file"),
    ("zip that is none", "a.csv.zip", CSV, r"no \.zip file"),
    ("zip of two", "a.csv.zip", zipped(CSV, ("a", "b")), "holds 2 files, expected one"),
    ("zip of none", "a.csv.zip", zipped(CSV, ()), "holds 0 files"),
    ("web page", "a.csv", b"\n<!DOCTYPE html><html>not found</html>", "is a web page, not CSV"),
    ("JSON", "a.csv", b'{"error": "not found"}', "holds no CSV"),
    ("endless header", "a.csv", b"x" * 200_000, "its first line cannot be read"),
    ("gz without its suffix", "a.csv", gzip.compress(CSV), "is not UTF-8 text"),
    ("UTF-16", "a.csv", CSV.decode().encode("utf-16"), "is not UTF-8 text"),
    ("semicolons", "a.csv", CSV.replace(b",", b";"), "the columns found are: timestamp;open.*separated by commas"),
    ("no header", "a.csv", CSV.split(b"\n", 1)[1], "column 'timestamp' is missing"),
    ("column twice", "a.csv", CSV.replace(b"volume", b"close", 1), "column 'close' is there twice"),
    (
        "long row",
        "a.csv",
        CSV.replace(b"\n", b",1\n").replace(b"volume,1", b"volume", 1),
        r"row 1: '2024.*' has 7 fields, the first line names 6; correct the row",
    ),
    ("line above the header", "a.csv", b"https://example.com\n" + CSV, "has 6 fields, .*names 1; .*remove what stands"),
    ("one long row", "a.csv", CSV + b"1,2,3,4,5,6,7,8\n", r"row 2001: '1,2,3,4,5,6,7,8' has 8 fields"),
    ("short row", "a.csv", CSV + b"2024-03-24 08:00:00+00:00,2,3\n", "row 2001 .*column 'low': '' is empty"),
    ("text in a price", "a.csv", CSV.replace(b",100.0,", b",n/a,", 1), "row 1 .*column 'open': 'n/a' is not a finite"),
    ("parquet that is none", "a.parquet", CSV, "damaged or is no Parquet file"),
    ("cut parquet", "a.parquet", parquet_bytes(FRAME)[:-200], "damaged or is no Parquet file"),
    ("two symbols", "a.csv", csv_bytes(FRAME.assign(symbol=["A", "B"] * 1000)), "holds 2 symbols"),
    ("another symbol", "a.csv", csv_bytes(FRAME.assign(symbol="ETHUSDT")), "says 'ETHUSDT', the run says 'BTC-USDT'"),
    ("too few rows", "a.csv", csv_bytes(FRAME.head(1999)), "has 1,999 rows, at least 2,000 are needed"),
]


@pytest.mark.parametrize(
    ("name", "content", "message"), [case[1:] for case in BAD_FILES], ids=[case[0] for case in BAD_FILES]
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(str(path), "BTC-USDT")
    assert str(caught.value).startswith(str(path))
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from([*COMPRESS]), st.sampled_from([*WRITE]), st.binary(min_size=1, max_size=400))
def test_any_bytes_are_refused_with_a_data_error(tmp_path: Path, compression: str, kind: str, content: bytes) -> None:
    path = tmp_path / f"fuzz{kind}{compression}"
    for raw in (content, COMPRESS[compression](content)):
        path.write_bytes(raw)
        with pytest.raises(DataError):
            load(str(path), "X")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        load(str(tmp_path / "none.csv"), "X")
    with pytest.raises(DataError, match="is a folder"):
        load(str(tmp_path), "X")
    with pytest.raises(DataError, match="there is no such file"):
        version_of(str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="is a folder"):
        version_of(str(tmp_path))


def test_symbol_column_that_agrees(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(csv_bytes(FRAME.assign(Symbol="BTCUSDT")))
    assert load(str(path), "BTC-USDT")[1].rows == ROWS
    assert load(str(path), "")[1].rows == ROWS


def test_version_is_the_sha256_and_is_verified(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(CSV)
    version = version_of(str(path))
    assert version == hashlib.sha256(CSV).hexdigest()
    assert load(str(path), "X", version=version.upper())[1].rows == ROWS
    path.write_bytes(CSV + b"\n")
    with pytest.raises(DataError, match="changed since the run was started"):
        load(str(path), "X", version=version)


def test_bucket_is_read_like_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeGcs("bucket") as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        gcs.put("bucket", "data/BTC.csv.gz", gzip.compress(CSV))
        version = version_of("gs://bucket/data/BTC.csv.gz")
        table, report = load("gs://bucket/data/BTC.csv.gz", "BTC-USDT", version=version)
        pd.testing.assert_frame_equal(table, FRAME)
        assert report.origin == "gs://bucket/data/BTC.csv.gz"
        gcs.put("bucket", "data/BTC.csv.gz", gzip.compress(CSV[:-1]))
        with pytest.raises(DataError, match="changed since the run was started"):
            load("gs://bucket/data/BTC.csv.gz", "BTC-USDT", version=version)
        with pytest.raises(DataError, match=r"gs://bucket/none\.csv: there is no such file"):
            load("gs://bucket/none.csv", "X")


@pytest.mark.parametrize("data", ["", "  ", "s3://bucket/a.csv", "https://host/a.csv", "file:///tmp/a.csv"])
def test_addresses_that_cannot_be_read(data: str) -> None:
    for call in (lambda: load(data, "X"), lambda: version_of(data)):
        with pytest.raises(ConfigurationError):
            call()


@pytest.mark.parametrize("data", [r"C:\data\btc.csv", "C:/data/btc.csv", "./coinbase:BTC.csv", "coinbase:BTC.csv"])
def test_paths_with_a_colon_are_paths(data: str) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        load(data, "X")


def test_a_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coinbase:BTC-USD").write_bytes(CSV)
    assert version_of("coinbase:BTC-USD") == hashlib.sha256(CSV).hexdigest()


class Venue:
    """An exchange with a complete record; it notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.closed = 0

    name = "coinbase"

    def symbols(self) -> Sequence[str]:
        return ["BTC/USD"]

    def fetch_ohlcv(self, symbol: str, timeframe: str, since: int, limit: int) -> Sequence[Sequence[float | None]]:
        assert (symbol, timeframe) == ("BTC/USD", "1h")
        self.asked.append(since)
        return [[since + row * 3_600_000, 10.0, 12.0, 9.0, 11.0, 5.0] for row in range(limit)]

    def close(self) -> None:
        self.closed += 1


def test_exchange_is_pinned_by_the_end_of_its_window(tmp_path: Path) -> None:
    venue = Venue()
    version = version_of("coinbase:BTC-USD", now=lambda: NOW)
    assert version == "2025-06-01T12:00:00+00:00"

    def later() -> datetime:
        return datetime(2025, 6, 1, 15, 0, 5, tzinfo=UTC)

    table, report = load(
        "coinbase:BTC-USD", "BTC-USD", version=version, now=later, connect=lambda name: venue, cache=tmp_path
    )
    assert (report.rows, report.end, report.origin) == (17_520, "2025-06-01T11:00:00+00:00", "coinbase:BTC-USD")
    assert venue.closed == 1
    first = len(venue.asked)
    _, newest = load("coinbase:BTC-USD", "BTC-USD", now=later, connect=lambda name: venue, cache=tmp_path)
    assert newest.end == "2025-06-01T14:00:00+00:00"
    assert len(table) == newest.rows
    assert len(venue.asked) == first + 1, "the second window must ask for its open end only"


@pytest.mark.parametrize(
    "version", ["yesterday", "2025-06-01T12:00:00", "2025-06-01T12:30:00+00:00", "2026-01-01T00:00Z"]
)
def test_bad_window_ends(version: str) -> None:
    with pytest.raises(ConfigurationError, match="the window's end"):
        load("coinbase:BTC-USD", "BTC-USD", version=version, now=lambda: NOW, connect=lambda name: Venue())


def test_connection_is_closed_when_the_download_fails(tmp_path: Path) -> None:
    class Broken(Venue):
        def fetch_ohlcv(self, symbol: str, timeframe: str, since: int, limit: int) -> Sequence[Sequence[float | None]]:
            raise SourceError("no")

    venue = Broken()
    with pytest.raises(SourceError):
        load("coinbase:BTC-USD", "BTC-USD", now=lambda: NOW, connect=lambda name: venue, cache=tmp_path)
    assert venue.closed == 1


@pytest.mark.parametrize(
    ("data", "symbol"),
    [("coinbase:BTC-USD", "ETH-USD"), ("binance:BTC/USDT:USDT", "BTC-USD"), ("coinbase:BTC-USD", "SYNTH-USD")],
)
def test_a_market_is_not_called_by_the_name_of_another(data: str, symbol: str) -> None:
    with pytest.raises(ConfigurationError, match=symbol):
        load(data, symbol, now=lambda: NOW, connect=lambda name: Venue())


def test_a_real_file_is_not_called_synthetic(tmp_path: Path) -> None:
    path = tmp_path / "BTC.csv"
    path.write_bytes(CSV)
    with pytest.raises(ConfigurationError, match="names simulated data"):
        load(str(path), "SYNTH-USD")


def test_simulator_passes_the_same_checks() -> None:
    assert version_of("synthetic:default") == ""
    table, report = load("synthetic:bars=3000", "SYNTH-USD")
    assert report.rows == len(table) == 3_000
    assert "signal_action" in report.signal_columns
    with pytest.raises(ConfigurationError, match="have no version"):
        load("synthetic:default", "SYNTH-USD", version="abc")


@pytest.mark.parametrize("pair", ["BTC", "ETH", "SOL"])
def test_real_files(pair: str) -> None:
    path = REAL / f"{pair}-USDT_1h.csv.gz"
    if not path.exists():
        pytest.skip(f"the shared market data are not on this machine: {path}")
    table, report = load(str(path), f"{pair}-USDT")
    assert (report.rows, report.gaps, report.filled_rows, report.interval_seconds) == (17_520, 0, 0, 3600)
    assert (report.start, report.end) == ("2024-04-16T01:00:00+00:00", "2026-04-16T00:00:00+00:00")
    assert len(table) == 17_520
    elapsed = quickest(lambda: load(str(path), f"{pair}-USDT"), 3.0)
    assert elapsed < 3.0, "it takes 0.1 s; ten times the budget of 0.3 s is a change of kind, not a busy machine"


def test_a_file_that_is_called_synthetic_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_synthetic("synthetic:no-edge")
    assert not is_synthetic("coinbase:BTC-USD")
    Path("synthetic:no-edge").write_text("x")
    assert not is_synthetic("synthetic:no-edge")


@pytest.mark.parametrize(
    ("data", "symbol"),
    [("synthetic:no-edge", "SYNTH-USD"), ("coinbase:BTC-USD", "BTC-USD"), ("kraken:BTC/USD:USD", "BTC/USD:USD")],
)
def test_data_that_name_their_market(data: str, symbol: str) -> None:
    assert symbol_of(data) == symbol


@pytest.mark.parametrize("data", ["BTC-USD_1h.csv.gz", "gs://bucket/BTC-USD.parquet"])
def test_a_files_name_says_nothing_of_its_market(data: str) -> None:
    with pytest.raises(ConfigurationError, match=r"Name it with SYMBOL="):
        symbol_of(data)
