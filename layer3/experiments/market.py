"""One market's bars for an experiment, by the same loading, checks and refusals as a run's."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from layer3 import trials, workflow
from layer3.agent.bars import Bars, load_bars
from layer3.market import sources

__all__ = ["Market", "load_market", "moment"]


@dataclass(frozen=True)
class Market:
    """Prepared bars, and what ingest says of them (:func:`layer3.workflow.ingest`)."""

    bars: Bars
    info: Mapping[str, Any]

    @property
    def symbol(self) -> str:
        """Its name."""
        return str(self.info["symbol"])

    @property
    def synthetic(self) -> bool:
        """Whether it is simulated."""
        return bool(self.info["synthetic"])

    @property
    def data(self) -> trials.Data:
        """Its data as the ledger of trials names them."""
        return trials.Data.of(self.info)


def load_market(data: str, symbol: str, sizing: str) -> Market:
    """Load, check and prepare what ``data`` names; ``symbol`` may be empty where the data say it themselves.

    ``sizing`` is the text of a YAML file like ``config/sizing.yaml``, or empty.

    Raises
    ------
    DataError, SourceError, ConfigurationError : as :func:`layer3.workflow.ingest`
    """
    symbol = symbol or sources.symbol_of(data)
    with tempfile.TemporaryDirectory(prefix="himari-") as folder:
        candles, features = Path(folder, "candles.parquet"), Path(folder, "features.parquet")
        workflow.ingest(data, symbol, sources.version_of(data), sizing, candles, features)
        return Market(*load_bars(features))


def moment(bars: Bars, at: int) -> str:
    """When bar ``at`` opens, to the minute."""
    return f"{np.datetime64(int(bars.timestamp[at]), 'ns').astype('datetime64[m]')}".replace("T", " ")
