"""Where candles come from: a file, an exchange, or the simulator; all pass the same checks.

../data/BTC.csv.gz, gs://bucket/BTC.parquet   a file: CSV or Parquet, plain or compressed
coinbase:BTC-USD                              an exchange, by its ccxt id
synthetic:default                             the simulator, by its preset or settings
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import lzma
import re
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from layer3 import storage
from layer3.errors import ConfigurationError, DataError, SourceError
from layer3.market import exchange
from layer3.market.candles import MIN_ROWS, CandleReport, check

__all__ = ["COMPRESSIONS", "FORMATS", "is_synthetic", "load", "symbol_of", "utc_now", "version_of"]

FORMATS: Final = (".csv", ".parquet")
COMPRESSIONS: Final = (".gz", ".bz2", ".xz", ".zst", ".zip")

_SYNTHETIC: Final = "synthetic:"
#: One letter before the colon is a Windows drive.
_EXCHANGE: Final = re.compile(r"([a-z][a-z0-9]+):([A-Za-z0-9][A-Za-z0-9/_:-]*)")
_DAMAGED: Final = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException)


def utc_now() -> datetime:
    """The clock, as an aware time in UTC."""
    return datetime.now(UTC)


def version_of(data: str, *, now: Callable[[], datetime] = utc_now) -> str:
    """What pins the data of a run: hand it to :func:`load` so that every step sees the same rows.

    The sha256 of a file's bytes; for an exchange the end of the last closed hour, ISO 8601 in
    UTC; for the simulator, which its own settings pin, the empty text.

    Raises
    ------
    DataError : the file is missing, empty or cannot be read
    ConfigurationError : ``data`` names nothing that can be loaded
    """
    kind, _, _ = _parse(data)
    if kind == "file":
        return hashlib.sha256(_read(data)).hexdigest()
    if kind == "exchange":
        return exchange.window_end(now()).isoformat()
    return ""


def is_synthetic(data: str) -> bool:
    """Whether ``data`` names the simulator; a file that happens to be called so does not."""
    return _parse(data)[0] == "synthetic"


def symbol_of(data: str) -> str:
    """The market that ``data`` names, where it names one: an exchange's, or the simulator's own.

    Raises
    ------
    ConfigurationError : a file's name says nothing
    """
    if is_synthetic(data):
        return "SYNTH-USD"
    if ":" in data and not data.startswith("gs://") and not Path(data).exists():
        return data.partition(":")[2]
    raise ConfigurationError(f"which market is {data}? Name it with SYMBOL=…, for example SYMBOL=BTC-USDT")


def load(
    data: str,
    symbol: str,
    *,
    version: str = "",
    now: Callable[[], datetime] = utc_now,
    connect: Callable[[str], exchange.Exchange] = exchange.connect,
    cache: Path | None = None,
    sleep: Callable[[float], object] = time.sleep,
    min_rows: int = MIN_ROWS,
) -> tuple[pd.DataFrame, CandleReport]:
    """Read candles and check them (:func:`layer3.market.candles.check`).

    Parameters
    ----------
    data : path or ``gs://`` URI of a file, ``<exchange>:<SYMBOL>``, or ``synthetic:<edge>``; a path
        that exists wins over the other readings
    symbol : what the run calls the market; a file's ``symbol`` column and an exchange's market must
        agree with it, and only simulated data may be called SYNTH
    version : from :func:`version_of`; empty takes the data as they are now
    now, connect, cache, sleep : the clock, and for an exchange how to reach it, where its pages are
        kept (by default below the user's cache folder), and how to wait between attempts
    min_rows : fewest rows

    Raises
    ------
    DataError : the data break a rule, or the file is not the one that ``version`` names
    SourceError : an exchange or a bucket does not answer in full
    ConfigurationError : ``data`` or ``version`` cannot be understood, or ``symbol`` is another market's
    """
    kind, name, market = _parse(data)
    if kind != "synthetic" and symbol.upper().startswith("SYNTH"):
        raise ConfigurationError(f"symbol {symbol!r} names simulated data, {data} is real: name its market")
    if kind == "file":
        raw = _read(data)
        _verify(raw, data, version)
        frame = _one_symbol(_table(raw, data), data, symbol)
    elif kind == "exchange":
        # A contract's settlement (BTC/USDT:USDT) may be left out of the name.
        if symbol and _letters(symbol) not in (_letters(market), _letters(market.partition(":")[0])):
            raise ConfigurationError(f"{data} is the market {market}, the run says {symbol!r}: correct one of them")
        end = _window_end(version, now())
        client = connect(name)
        try:
            frame = exchange.history(client, market, end=end, cache=cache or exchange.cache_folder(), sleep=sleep)
        finally:
            client.close()
    else:
        if version:
            raise ConfigurationError(f"{data}: simulated data have no version, but {version!r} was asked for")
        from layer3.market.simulator import load_synthetic

        frame = load_synthetic(data, symbol)
    return check(frame, data, min_rows=min_rows)


def _parse(data: str) -> tuple[str, str, str]:
    """(kind, exchange, market): kind is "file", "exchange" or "synthetic", the others "" but for an exchange."""
    if not data.strip():
        raise ConfigurationError("no data named; give a file, <exchange>:<SYMBOL> or synthetic:<edge>")
    if "://" in data:
        if not data.startswith("gs://"):
            raise ConfigurationError(f"{data}: this kind of address cannot be read; use a local path or gs://")
        return "file", "", ""
    if Path(data).exists():
        return "file", "", ""
    if data.startswith(_SYNTHETIC):
        return "synthetic", "", ""
    found = _EXCHANGE.fullmatch(data)
    return ("exchange", found[1], found[2]) if found else ("file", "", "")


def _read(data: str) -> bytes:
    if "://" not in data and Path(data).is_dir():
        raise DataError(f"{data}: is a folder; name one file in it")
    try:
        raw = storage.read_bytes(data)
    except FileNotFoundError as error:
        raise DataError(
            f"{data}: there is no such file; give the path of a CSV or Parquet file (looked for from {Path.cwd()}), "
            "<exchange>:<SYMBOL> or synthetic:<edge>"
        ) from error
    except OSError as error:
        raise SourceError(f"{data}: cannot be read: {error}") from error
    if not raw:
        raise DataError(f"{data}: the file is empty; download or export it again")
    return raw


def _verify(raw: bytes, data: str, version: str) -> None:
    if version and (found := hashlib.sha256(raw).hexdigest()) != version.lower():
        raise DataError(
            f"{data}: has changed since the run was started (its sha256 is {found}, the run pinned {version}); start "
            "a new run, or put the old file back"
        )


def _window_end(version: str, now: datetime) -> datetime:
    newest = exchange.window_end(now)
    if not version:
        return newest
    try:
        end = datetime.fromisoformat(version)
    except ValueError as error:
        raise ConfigurationError(
            f"the window's end {version!r} is no time; expected one like {newest.isoformat()}"
        ) from error
    if end.tzinfo is None or end != exchange.window_end(end) or end > newest:
        raise ConfigurationError(
            f"the window's end {version!r} must be a full hour with its offset, not after {newest.isoformat()}"
        )
    return end


def _table(raw: bytes, data: str) -> pd.DataFrame:
    """Rows of a file as they stand, by its suffixes."""
    name = PurePosixPath(data.replace("\\", "/")).name.lower()
    inner, compression = name, ""
    for suffix in COMPRESSIONS:
        if name.endswith(suffix):
            inner, compression = name.removesuffix(suffix), suffix
    if not inner.endswith(FORMATS):
        raise DataError(
            f"{data}: its name must end in {' or '.join(FORMATS)}, plain or followed by one of "
            f"{', '.join(COMPRESSIONS)}; rename or convert the file"
        )
    if compression:
        try:
            raw = _decompress(raw, compression)
        except _DAMAGED as error:
            raise DataError(
                f"{data}: is damaged or is no {compression} file ({type(error).__name__}: {error}); download it again"
            ) from error
        if not raw.strip():
            raise DataError(f"{data}: what it holds is empty; download or export it again")
    return _csv(raw, data) if inner.endswith(".csv") else _parquet(raw, data)


def _decompress(raw: bytes, compression: str) -> bytes:
    if compression == ".gz":
        return gzip.decompress(raw)
    if compression == ".bz2":
        return bz2.decompress(raw)
    if compression == ".xz":
        return lzma.decompress(raw)
    if compression == ".zst":
        with pa.input_stream(io.BytesIO(raw), compression="zstd") as stream:
            content: bytes = stream.read()
        return content
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} files, expected one")
        if archive.getinfo(names[0]).flag_bits & 0x1:
            raise ValueError("it is encrypted")
        return archive.read(names[0])


def _csv(raw: bytes, data: str) -> pd.DataFrame:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{data}: is not UTF-8 text (byte {error.start}); is it a compressed or Excel file?") from error
    head = text.lstrip()[:1]
    if head == "<":
        raise DataError(f"{data}: is a web page, not CSV; download the file itself")
    if head in ("", "{", "["):
        raise DataError(f"{data}: holds no CSV; its first line must name the columns")
    try:
        header = next(csv.reader(io.StringIO(text.lstrip())))
    except csv.Error as error:
        raise DataError(f"{data}: its first line cannot be read as CSV ({error}); it must name the columns") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # Values that are not numbers stay text, so that the checks can show them as they stand.
            frame = pd.read_csv(
                io.StringIO(text.lstrip()),
                header=None,
                skiprows=1,
                names=range(len(header)),
                index_col=False,
                keep_default_na=False,
                na_values=[""],
                low_memory=False,
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise DataError(_long_row(text, data, len(header)) or f"{data}: cannot be read as CSV ({error})") from error
    if frame.empty:
        raise DataError(f"{data}: has a header but no rows; download or export it again")
    frame.columns = pd.Index(header)
    return frame


def _long_row(text: str, data: str, columns: int) -> str:
    """What to say of the first row that has more fields than the header; nothing if there is none."""
    for row, fields in enumerate(csv.reader(io.StringIO(text.lstrip()))):
        if len(fields) > columns:
            shown = ",".join(fields)
            return (
                f"{data}, row {row}: {shown[:80]!r} has {len(fields)} fields, the first line names {columns}; "
                "correct the row, or remove what stands above the line that names the columns"
            )
    return ""


def _parquet(raw: bytes, data: str) -> pd.DataFrame:
    try:
        frame: pd.DataFrame = pq.read_table(io.BytesIO(raw)).to_pandas(date_as_object=False)
    except _DAMAGED as error:
        raise DataError(f"{data}: is damaged or is no Parquet file ({error}); download or export it again") from error
    return frame


def _one_symbol(frame: pd.DataFrame, data: str, symbol: str) -> pd.DataFrame:
    """Refuse a file whose own ``symbol`` column speaks of another market, or of several."""
    columns = [position for position, name in enumerate(frame.columns) if str(name).strip().lower() == "symbol"]
    for position in columns:
        held = [str(name) for name in frame.iloc[:, position].dropna().unique()]
        if len(held) > 1:
            raise DataError(f"{data}: holds {len(held)} symbols ({', '.join(held[:5])}); give a file with one")
        if held and symbol and _letters(held[0]) != _letters(symbol):
            raise DataError(
                f"{data}: its column 'symbol' says {held[0]!r}, the run says {symbol!r}; correct one of them"
            )
    return frame


def _letters(symbol: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", symbol.upper())
