"""One market's bars for an experiment, by the same loading, checks and refusals as a run's."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from layer3 import trials, workflow
from layer3.agent.bars import Bars, load_bars
from layer3.errors import ConfigurationError
from layer3.market import simulator, sources

__all__ = ["Market", "data_of", "load_market", "moment"]

_PLACE: Final = "{asset}"


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


def data_of(pattern: str, assets: Sequence[str]) -> list[tuple[str, str]]:
    """What to load for each asset, and what to call it: ``pattern`` with the asset's name at ``{asset}``.

    A file's market is called after the word around ``{asset}``. A pattern of the simulator needs none:
    every asset is another seed, counted up from the pattern's own.

    Raises
    ------
    ConfigurationError : fewer than two assets, one twice, a name with odd characters, or a pattern
        that gives every asset the same data
    """
    if len(assets) < 2 or len(set(assets)) < len(assets):
        raise ConfigurationError(f"assets are {', '.join(assets) or 'none'}: name at least two different ones, BTC,ETH")
    for asset in assets:
        if not re.fullmatch(r"[A-Za-z0-9]{1,20}", asset):
            raise ConfigurationError(f"asset {asset!r} is no name: use letters and digits, for example BTC")
    if _PLACE in pattern:
        word = re.search(r"[A-Za-z0-9-]*\{asset\}[A-Za-z0-9-]*", Path(pattern).name)
        around = word[0] if word else _PLACE
        return [_named(pattern.replace(_PLACE, asset), asset, around.replace(_PLACE, asset)) for asset in assets]
    if not sources.is_synthetic(pattern):
        raise ConfigurationError(f"{pattern} is the same for every asset: write {{asset}} where its name stands")
    name = pattern.partition(":")[2]
    seed = simulator.parse(name).seed
    return [(f"{pattern},seed={seed + number}", f"SYNTH-{asset}") for number, asset in enumerate(assets)]


def _named(data: str, asset: str, word: str) -> tuple[str, str]:
    if sources.is_synthetic(data):
        return data, f"SYNTH-{asset}"
    try:
        return data, sources.symbol_of(data)
    except ConfigurationError:
        return data, word
