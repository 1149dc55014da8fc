"""Hourly history from an exchange, through ccxt, without a key.

A download is cut into pages of PAGE_BARS bars on a fixed grid of time. Each page that came
complete is kept on disk at once, so that an interrupted download goes on where it stopped, and a
later window downloads only what is new. A page that came short is asked for again; what is still
missing at either end of the window, or over more than ``candles.MAX_GAP`` bars, is an error. A
shorter hole is the exchange's own record (an outage, an hour without a trade): it is left open
for :func:`layer3.market.candles.check`, which fills and counts it.

ccxt is imported only here, and only when a connection is made.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3 import storage
from layer3.errors import ConfigurationError, SourceError
from layer3.market.candles import CANDLE_COLUMNS, MAX_GAP

__all__ = [
    "PAGE_BARS",
    "TIMEFRAME",
    "WINDOW_BARS",
    "Exchange",
    "TransientError",
    "cache_folder",
    "connect",
    "history",
    "resolve",
    "window_end",
]

TIMEFRAME: Final = "1h"
#: Two years of hours.
WINDOW_BARS: Final = 17_520
#: What the most restrictive of the large exchanges (Coinbase) gives in one answer.
PAGE_BARS: Final = 300

_STEP_MS: Final = 3_600_000
#: Seconds to wait before each further attempt at a request.
_BACK_OFF: Final = (1.0, 2.0, 4.0, 8.0)
#: A page that came short is asked for this often in all: the newest bar may be late by seconds.
_ROUNDS: Final = 3

_T = TypeVar("_T")
Bar = tuple[float, float, float, float, float]
Sleep = Callable[[float], object]

log = logging.getLogger(__name__)


class TransientError(SourceError):
    """One request failed in a way that may pass: network, rate limit, maintenance."""


class Exchange(Protocol):
    """What is needed of an exchange; :func:`connect` gives one over ccxt."""

    @property
    def name(self) -> str:
        """The exchange's id, such as ``coinbase``."""

    def symbols(self) -> Sequence[str]:
        """Every market in ccxt's notation, such as ``BTC/USD``."""

    def fetch_ohlcv(self, symbol: str, timeframe: str, since: int, limit: int) -> Sequence[Sequence[float | None]]:
        """At most ``limit`` bars that open at ``since`` (epoch ms) or later: time, open, high, low, close, volume.

        Raises :class:`TransientError` where trying again may help, else :class:`SourceError`.
        """

    def close(self) -> None:
        """Give the connection back."""


def window_end(now: datetime) -> datetime:
    """When the last closed hourly bar ended: ``now``, an aware time, cut to the full hour in UTC."""
    return now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def cache_folder() -> Path:
    """Where downloaded pages are kept for this user, whatever the working directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "himari" / "candles"


def history(
    client: Exchange,
    symbol: str,
    *,
    end: datetime,
    bars: int = WINDOW_BARS,
    cache: Path,
    sleep: Sleep = time.sleep,
) -> pd.DataFrame:
    """The ``bars`` hourly bars that closed at ``end`` (a full hour, not in the future) or before.

    Parameters
    ----------
    client : the exchange
    symbol : in any usual notation: ``BTC-USD``, ``BTC/USD``, ``BTCUSD``
    cache : folder for complete pages; created when needed
    sleep : waits between attempts, in seconds

    Returns
    -------
    Frame with the candle columns, ``timestamp`` in int64 epoch milliseconds; not checked yet.

    Raises
    ------
    ConfigurationError : the exchange has no such symbol
    SourceError : the exchange does not answer, or gave less than the window asks
    """
    market = resolve(symbol, _retry(client.symbols, sleep, f"{client.name}: list of markets"), client.name)
    stop = int(end.timestamp()) * 1000
    if stop % _STEP_MS or bars < 1:
        raise ConfigurationError(f"the window of {bars} bars to {end.isoformat()} does not end on a full hour")
    first = stop - bars * _STEP_MS
    folder = cache / client.name / market.replace("/", "-").replace(":", "_") / TIMEFRAME
    rows: dict[int, Bar] = {}
    page_ms = PAGE_BARS * _STEP_MS
    for page in range(first - first % page_ms, stop, page_ms):
        page_stop = min(page + page_ms, stop)
        kept = _read_page(folder, page)
        if kept is None:
            # The page is asked for whole even where the window starts within it, so that it can be kept.
            kept = _download(client, market, page, page_stop, max(page, first), sleep)
            if len(kept) == PAGE_BARS and all(math.isfinite(number) for bar in kept.values() for number in bar):
                _write_page(folder, page, kept)
        rows |= {opened: bar for opened, bar in kept.items() if first <= opened < stop}
        _refuse_short(client.name, market, np.array(sorted(rows), dtype=np.int64), first, page_stop, page_stop == stop)
        log.info("%s %s: %d of %d bars", client.name, market, len(rows), bars)
    opened = sorted(rows)
    table = np.array([rows[time_ms] for time_ms in opened], dtype=np.float64)
    frame = pd.DataFrame(table, columns=list(CANDLE_COLUMNS[1:]))
    frame.insert(0, "timestamp", np.array(opened, dtype=np.int64))
    return frame


def resolve(symbol: str, known: Sequence[str], exchange: str) -> str:
    """The exchange's own name of a symbol written ``BTC-USD``, ``BTC/USD``, ``btc_usd`` or ``BTCUSD``."""
    if symbol in known:
        return symbol
    wanted = _plain(symbol)
    matches = [name for name in known if ":" not in name and _plain(name) == wanted]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigurationError(
            f"{exchange}: {symbol!r} may be any of {', '.join(matches)}; write one of them in full"
        )
    by_plain = {_plain(name): name for name in known if ":" not in name}
    near = [by_plain[name] for name in difflib.get_close_matches(wanted, by_plain, n=5, cutoff=0.5)]
    hint = f"did you mean {', '.join(near)}?" if near else f"it lists {len(known):,} markets, none like it"
    raise ConfigurationError(f"{exchange} has no market {symbol!r}: {hint}")


def connect(name: str, *, base_url: str = "") -> Exchange:
    """Open an exchange by its ccxt id; ``base_url`` speaks to a mirror or a stand-in instead.

    Raises
    ------
    ConfigurationError : ccxt is not installed, has no such exchange, or the exchange gives no
        hourly candles
    """
    try:
        import ccxt
    except ImportError as error:
        raise ConfigurationError(
            f"data from the exchange {name!r} needs ccxt, which is not installed: pip install -e '.[exchange]'"
        ) from error
    if name not in ccxt.exchanges:
        near = difflib.get_close_matches(name, ccxt.exchanges, n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see https://docs.ccxt.com for the list"
        raise ConfigurationError(f"unknown exchange {name!r}: {hint}")
    # A mirror is spared the pacing that the exchange itself asks for.
    client = getattr(ccxt, name)({"enableRateLimit": not base_url})
    if base_url:
        client.urls["api"] = _rebase(client.urls["api"], base_url)
    if not client.has.get("fetchOHLCV") or TIMEFRAME not in (client.timeframes or {}):
        raise ConfigurationError(f"{name} gives no hourly candles through ccxt; use another exchange, or a file")
    return _Ccxt(client, ccxt.NetworkError, ccxt.BaseError)


class _Ccxt:
    """An exchange over ccxt; ccxt's errors become ours."""

    def __init__(self, client: Any, transient: type[Exception], other: type[Exception]) -> None:
        self._client = client
        self._transient = transient
        self._other = other

    @property
    def name(self) -> str:
        return str(self._client.id)

    def symbols(self) -> Sequence[str]:
        return list(self._call(self._client.load_markets))

    def fetch_ohlcv(self, symbol: str, timeframe: str, since: int, limit: int) -> Sequence[Sequence[float | None]]:
        rows: Sequence[Sequence[float | None]] = self._call(
            lambda: self._client.fetch_ohlcv(symbol, timeframe, since=since, limit=limit)
        )
        return rows

    def close(self) -> None:
        self._client.session.close()

    def _call(self, request: Callable[[], Any]) -> Any:
        try:
            return request()
        except self._transient as error:
            raise TransientError(f"{self.name}: {type(error).__name__}: {error}") from error
        except self._other as error:
            if _passing(error):
                raise TransientError(f"{self.name}: {type(error).__name__}: {error}") from error
            raise SourceError(f"{self.name} refused the request: {type(error).__name__}: {error}") from error


def _passing(error: BaseException) -> bool:
    """Whether the HTTP status behind an error says busy or broken: ccxt reads the body first and drops it."""
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return bool(status in (408, 425, 429) or status >= 500)
        cause = cause.__cause__ or cause.__context__
    return False


def _download(client: Exchange, market: str, start: int, stop: int, needed_from: int, sleep: Sleep) -> dict[int, Bar]:
    """Bars that open in [start, stop), epoch ms; asked again where bars from ``needed_from`` on are missing."""
    rows: dict[int, Bar] = {}
    cursor = start
    for attempt in range(_ROUNDS):
        if attempt:
            sleep(_BACK_OFF[attempt - 1])
        while cursor < stop:
            since, limit = cursor, (stop - cursor) // _STEP_MS

            def request(since: int = since, limit: int = limit) -> Sequence[Sequence[float | None]]:
                return client.fetch_ohlcv(market, TIMEFRAME, since, limit)

            answer = _retry(request, sleep, f"{client.name} {market}: bars from {_iso(since)}")
            fresh = {opened: bar for opened, bar in _parse(answer, client.name, market) if since <= opened < stop}
            if not fresh:
                break
            rows |= fresh
            cursor = max(fresh) + _STEP_MS
        missing = [opened for opened in range(needed_from, stop, _STEP_MS) if opened not in rows]
        if not missing:
            break
        cursor = missing[0]
    return rows


def _parse(answer: Sequence[Sequence[float | None]], name: str, market: str) -> list[tuple[int, Bar]]:
    """Rows of an answer as (open in ms, bar); a number that the exchange left out becomes NaN."""
    rows: list[tuple[int, Bar]] = []
    for row in answer:
        if len(row) < 6 or row[0] is None or int(row[0]) % _STEP_MS:
            raise SourceError(f"{name} {market}: answered {list(row)!r} where an hourly bar was expected")
        o, h, l, c, v = (math.nan if number is None else float(number) for number in row[1:6])  # noqa: E741
        rows.append((int(row[0]), (o, h, l, c, v)))
    return rows


def _refuse_short(name: str, market: str, have: NDArray[np.int64], first: int, stop: int, at_end: bool) -> None:
    """Refuse a window [first, stop) whose start, end, or more than MAX_GAP bars in a row are missing."""
    grid = np.concatenate([[first - _STEP_MS], have, [stop]])
    missing = np.diff(grid) // _STEP_MS - 1
    allowed = np.full(len(missing), MAX_GAP)
    allowed[0] = 0
    if at_end:
        allowed[-1] = 0
    if (missing > allowed).any():
        gap = int(np.argmax(missing > allowed))
        raise SourceError(
            f"{name} gave {len(have):,} of the {(stop - first) // _STEP_MS:,} hourly bars of {market} asked for from "
            f"{_iso(first)} to {_iso(stop)}; the first missing bar that cannot be filled opens at "
            f"{_iso(int(grid[gap]) + _STEP_MS)} ({int(missing[gap]):,} in a row). Try again later, or use an exchange "
            "with a longer or fuller record, or a file"
        )


def _retry(request: Callable[[], _T], sleep: Sleep, what: str) -> _T:
    for delay in _BACK_OFF:
        try:
            return request()
        except TransientError as error:
            log.warning("%s failed, next attempt in %g s: %s", what, delay, error)
            sleep(delay)
    try:
        return request()
    except TransientError as error:
        raise SourceError(
            f"{what}: no answer in {len(_BACK_OFF) + 1} attempts; complete pages are kept, so start again to go on "
            f"from there. The last error was: {error}"
        ) from error


def _page_path(folder: Path, start: int) -> Path:
    return folder / f"{datetime.fromtimestamp(start / 1000, UTC):%Y%m%dT%H%MZ}-{PAGE_BARS}.json"


def _read_page(folder: Path, start: int) -> dict[int, Bar] | None:
    """A complete page kept earlier; None where there is none, or none that can be trusted."""
    path = _page_path(folder, start)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        page = {
            int(row[0]): (float(row[1]), float(row[2]), float(row[3]), float(row[4]), float(row[5])) for row in rows
        }
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError) as error:
        log.warning("%s is damaged and is downloaded again: %s", path, error)
        return None
    if list(page) != list(range(start, start + PAGE_BARS * _STEP_MS, _STEP_MS)):
        log.warning("%s is not complete and is downloaded again", path)
        return None
    return page


def _write_page(folder: Path, start: int, page: dict[int, Bar]) -> None:
    rows = [[opened, *page[opened]] for opened in sorted(page)]
    storage.write_bytes(str(_page_path(folder, start)), json.dumps(rows).encode())


def _plain(symbol: str) -> str:
    return symbol.upper().translate({ord(mark): None for mark in "-_/ "})


def _rebase(urls: Any, base_url: str) -> Any:
    return {key: _rebase(value, base_url) for key, value in urls.items()} if isinstance(urls, dict) else base_url


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
