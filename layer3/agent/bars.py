"""One history as plain arrays: everything about it that does not depend on the policy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from layer3.errors import DataError
from layer3.market.features import market_features
from layer3.market.signals import with_signals
from layer3.sizing.batch import replay_at_once
from layer3.sizing.config import ChainConfig

__all__ = ["Bars", "concatenate", "load_bars", "prepare", "save_bars"]

_INFO = b"himari"


@dataclass(frozen=True)
class Bars:
    """Struct of arrays over n bars, each (n,).

    ``timestamp`` int64 UTC nanoseconds of the bar's open; ``open`` and ``close`` prices;
    ``signal_side`` of layer 2's action and ``direction`` of the chain (0 where it takes no side,
    e.g. shorts are off), both -1, 0, +1; ``confidence`` in [0, 1]; ``tier`` 1..4; ``base_fraction``
    in [0, 0.5]; ``cascade_risk`` in [0, 1]; ``return_1h``, ``return_4h`` and daily ``volatility``
    as fractions; ``funding_rate`` what a long pays a short per 8 hours, as a fraction of the position,
    0 where the feed is missing. Everything at index t is known at the close of bar t.
    """

    timestamp: NDArray[np.int64]
    open: NDArray[np.float64]
    close: NDArray[np.float64]
    signal_side: NDArray[np.int8]
    direction: NDArray[np.int8]
    confidence: NDArray[np.float64]
    tier: NDArray[np.int8]
    base_fraction: NDArray[np.float64]
    cascade_risk: NDArray[np.float64]
    return_1h: NDArray[np.float64]
    return_4h: NDArray[np.float64]
    volatility: NDArray[np.float64]
    funding_rate: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.timestamp)

    @property
    def interval_seconds(self) -> int:
        """Length of a bar."""
        return int(self.timestamp[1] - self.timestamp[0]) // 1_000_000_000


def concatenate(parts: Sequence[Bars]) -> Bars:
    """Several histories one after another. Windows must be chosen so that none crosses a seam."""
    return Bars(**{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Bars)})


def prepare(
    candles: pd.DataFrame, symbol: str, interval_seconds: int, config: ChainConfig | None = None
) -> tuple[Bars, str]:
    """Bars of checked candles, and where their signals came from.

    The whole Phase 1 chain runs over the history once; what it would hold does not depend on the
    policy, nor on what the ``symbol`` is called.
    """
    signals = with_signals(candles)
    history = replay_at_once(signals.frame, interval_seconds, config)
    features = market_features(candles["close"].to_numpy(), interval_seconds)
    bars = Bars(
        timestamp=np.asarray(candles["timestamp"].astype("datetime64[ns, UTC]").astype("int64"), dtype=np.int64),
        open=candles["open"].to_numpy(np.float64),
        close=candles["close"].to_numpy(np.float64),
        signal_side=history.signal_side,
        direction=history.side,
        confidence=history.confidence,
        tier=history.tier,
        base_fraction=history.base_fraction,
        cascade_risk=history.cascade_risk,
        funding_rate=np.nan_to_num(signals.frame["funding_rate"].to_numpy(np.float64)),
        **features._asdict(),
    )
    return bars, signals.source


def save_bars(path: Path, bars: Bars, info: Mapping[str, Any]) -> None:
    """Write bars and ``info`` (plain JSON: symbol, source, synthetic, sha256, ...) to one Parquet file."""
    table = pa.table({field.name: getattr(bars, field.name) for field in fields(Bars)})
    note = json.dumps(info, sort_keys=True, allow_nan=False).encode()
    pq.write_table(table.replace_schema_metadata({_INFO: note}), path)


def load_bars(path: Path) -> tuple[Bars, dict[str, Any]]:
    """Read what :func:`save_bars` wrote; refuses files of another kind and numbers that are not finite.

    Raises
    ------
    DataError : the file is not of this kind, or a column holds a number that is not finite
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is not a Parquet file of prepared bars ({error}): run ingest again") from error
    note = (table.schema.metadata or {}).get(_INFO)
    names = [field.name for field in fields(Bars)]
    if note is None or set(names) - set(table.column_names):
        raise DataError(f"{path} does not hold prepared bars: give the features that ingest wrote")
    columns = {name: table.column(name).to_numpy() for name in names}
    for name, values in columns.items():
        bad = np.flatnonzero(~np.isfinite(values.astype(np.float64)))
        if bad.size:
            raise DataError(
                f"{path}: row {bad[0] + 1}, column {name}: {values[bad[0]]} is not finite; run ingest again"
            )
    return Bars(**columns), dict(json.loads(note))
