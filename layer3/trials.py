"""The ledger of everything that was ever tried on a data set.

Whoever tries often enough finds something that looks good, so the best of many is judged against how
many there were (Bailey and Lopez de Prado 2014, "The deflated Sharpe ratio"). That number is only
honest if it is written down when something is tried, not when it is shown: one JSON object per
record, at ``<store>/trials/<first 16 digits of the data's sha256>/<id>.json``, never changed and never
removed, in a folder and in a bucket alike. Beside it lie, as ``<id>.npy``, the returns that its policies earned
on the validation part, where they were walked there.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from layer3 import storage
from layer3.errors import DataError

__all__ = [
    "LEAST_FREEDOM",
    "STITCHED_SHARPE",
    "VALIDATION_SHARPE",
    "Data",
    "Kind",
    "Spread",
    "count",
    "market_of",
    "record",
    "sharpe_spread",
    "sharpe_variance",
    "validation_returns",
]

Returns = NDArray[np.float32]
Kind = Literal["run", "tune", "assets", "walk_forward"]

#: Scores in annualised Sharpe ratios: on the validation part, one per policy, and of a seed's record over all test
#: pieces of a walk-forward, the same for each of its folds.
VALIDATION_SHARPE: Final = "validation_sharpe"
STITCHED_SHARPE: Final = "stitched_sharpe"

#: Fewest degrees of freedom between trainings of different settings that a spread among trials is believed from.
LEAST_FREEDOM: Final = 4
_FOLDER: Final = "trials"
_SCHEMA: Final = 1
#: Stablecoins and the dollar quote one market.
_DOLLARS: Final = re.compile(r"(?<=.)(USDT|USDC|USD)$")
_DATA: Final = re.compile(r"[0-9a-f]{16}")
#: What a write that was cut short leaves behind is called otherwise.
_RECORD: Final = re.compile(r"\d{8}T\d{9}-[0-9a-f]{12}\.json")


@dataclass(frozen=True, slots=True)
class Data:
    """Which data: sha256 of the candles, market, opens of the first and the last bar (ISO 8601, UTC), and
    sha256 of the sizing chain's settings, under which the same candles are another game."""

    sha256: str
    symbol: str
    start: str
    end: str
    sizing_sha256: str

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Data:
        """The data that ingest described (:func:`layer3.workflow.ingest`)."""
        return cls(info["data_sha256"], info["symbol"], info["start"], info["end"], info["sizing_sha256"])

    def overlaps(self, other: Data) -> bool:
        """Whether a sceptic calls both the same history: one market, and a common stretch of time.

        Simulated markets all carry the same dates and have nothing in common: they are the same only
        where their bytes are.
        """
        if self.sha256 == other.sha256:
            return True
        market = market_of(self.symbol)
        if market != market_of(other.symbol) or market.startswith("SYNTH"):
            return False
        return _moment(self.start) <= _moment(other.end) and _moment(other.start) <= _moment(self.end)


def record(
    store: str,
    *,
    kind: Kind,
    data: Data,
    seeds: Sequence[int],
    folds: Sequence[Mapping[str, Sequence[range]]],
    settings: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Sequence[float | None]],
    code_version: str,
    now: datetime,
    returns: Returns | None = None,
) -> str:
    """Write down that every setting was trained on every fold with every seed; the record's address.

    Parameters
    ----------
    store : folder or ``gs://`` address that holds ``runs/``, ``models/`` and ``trials/``
    data : what the policies were scored on; record once for each data set that an experiment looks at
    folds : for each the rows that were trained on, by the sha256 of their data
    settings : the hyperparameters of each as plain JSON, all of them, defaults too
    scores : validation scores by name, one per policy in the order settings, folds, seeds (innermost);
        ``None`` where there is none
    now : the clock, with its offset
    returns : (bars, policies), what each earned per bar on the validation part of ``data``, in that order; ``None``
        where one of them has none
    """
    policies = len(settings) * len(folds) * len(seeds)
    if not policies:
        raise ValueError("nothing was trained: a record needs at least one setting, one fold and one seed")
    for name, values in scores.items():
        if len(values) != policies:
            raise ValueError(f"{len(values)} scores {name!r} for {policies} policies")
        if not all(value is None or math.isfinite(value) for value in values):
            raise ValueError(f"a score {name!r} is not finite: give None where there is none")
    if returns is not None and (returns.ndim != 2 or returns.shape[1] != policies or not np.isfinite(returns).all()):
        raise ValueError(f"returns {returns.shape} of {policies} policies: expected a finite one per bar and policy")
    when = now.astimezone(UTC).isoformat(timespec="milliseconds")
    content = {
        "schema": _SCHEMA,
        "when": when,
        "kind": kind,
        "data": asdict(data),
        "seeds": [int(seed) for seed in seeds],
        "folds": [
            {sha256: [[window.start, window.stop] for window in windows] for sha256, windows in fold.items()}
            for fold in folds
        ],
        "settings": [dict(setting) for setting in settings],
        "policies": policies,
        "scores": {name: list(values) for name, values in scores.items()},
        "code_version": code_version,
    }
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
    moment = re.sub(r"[-:.]", "", when.removesuffix("+00:00"))
    name = f"{moment}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    address = storage.join(store, _FOLDER, data.sha256[:16], name)
    storage.write_bytes(address, text.encode())
    if returns is not None:
        file = io.BytesIO()
        np.save(file, returns.astype(np.float32), allow_pickle=False)
        storage.write_bytes(_beside(address), file.getvalue())
    return address


def count(store: str, data_sha256: str) -> int:
    """How many different trainings were tried on these data, as far as ``store`` knows.

    A training is one setting on one fold with one seed; the very same one (same data, sizing and code
    too) counts once however often it was repeated. Records of the same market whose periods overlap
    that of ``data_sha256`` count as well: a window that has moved on by a day is the same history.
    What these data's period is, their own records say: record first, then count. 0 for data of which
    there is no record.

    Raises
    ------
    DataError : a record cannot be read
    """
    return len({key for trial in _related(store, data_sha256) for key in trial.keys})


def validation_returns(store: str, data: Data, bars: int) -> Returns:
    """What different trainings earned per bar on the validation part of ``data``, as far as it was kept: (bars, n).

    Returns compare on the same bars only: those of the same candles under the same sizing settings, ``bars`` many.
    A training that was repeated counts once, and so do trainings that came out the same to the last digit.

    Raises
    ------
    DataError : a record, or what lies beside it, cannot be read
    """
    folder = storage.join(store, _FOLDER, data.sha256[:16])
    names = set(storage.list_names(folder))
    columns: dict[str, Returns] = {}
    for name in sorted(filter(_RECORD.fullmatch, names)):
        if _beside(name) not in names:
            continue
        trial = _read(storage.join(folder, name))
        if (trial.data.sha256, trial.data.sizing_sha256) == (data.sha256, data.sizing_sha256):
            kept = _kept(_beside(storage.join(folder, name)), len(trial.keys))
            if len(kept) == bars:
                columns.update(zip(trial.keys, kept.T, strict=True))
    # By bytes: numpy's unique compares columns bar by bar, seven times as slowly on 20,000 bars of 600.
    different = {column.tobytes(): column for column in columns.values()}
    return np.stack([*different.values()], axis=1) if different else np.empty((bars, 0), np.float32)


def _beside(record: str) -> str:
    """Where the returns lie of what is on record at ``record``."""
    return record.removesuffix(".json") + ".npy"


def _kept(address: str, policies: int) -> Returns:
    try:
        found = np.lib.format.read_array(io.BytesIO(storage.read_bytes(address)), allow_pickle=False)
        if found.ndim != 2 or found.shape[1] != policies or found.dtype != np.float32 or not np.isfinite(found).all():
            raise ValueError(f"{found.dtype} {found.shape}, expected finite float32 of {policies} policies")
    except ValueError as error:
        raise DataError(f"{address} holds no returns of policies ({error}): restore it, or remove it") from error
    return np.asarray(found)


@dataclass(frozen=True, slots=True)
class Spread:
    """How far apart annualised Sharpe ratios lie: their ``variance``, known to so many degrees of ``freedom``, of which
    ``between`` are between trainings that differ in more than their seed."""

    variance: float
    freedom: int
    between: int


def sharpe_spread(store: str, data_sha256: str) -> Spread | None:
    """How far apart the annualised Sharpe ratios of what was tried on these data are.

    Ratios compare on the same bars only: those of the same candles under the same sizing settings, validation
    parts apart from the stitched test pieces of walk-forwards. Around each such group's own mean, pooled over
    the groups of :func:`count`'s trainings; a training that was repeated counts once, as it came out last, and so do
    trainings that came out the same to the last digit: a spread of 0 would say that trying costs nothing.
    ``None`` where no group has two.

    Raises
    ------
    DataError : a record cannot be read
    """
    groups: dict[Any, dict[str, float]] = {}
    for trial in _related(store, data_sha256):
        for name, ratios in trial.ratios.items():
            groups.setdefault((trial.data.sha256, trial.data.sizing_sha256, name), {}).update(ratios)
    # Each value once, and whose it was, the seed apart.
    owners = [
        {value: json.dumps(json.loads(name)[:-1]) for name, value in ratios.items()} for ratios in groups.values()
    ]
    samples = [sorted(values) for values in owners if values]
    squares = [sum((value - sum(sample) / len(sample)) ** 2 for value in sample) for sample in samples]
    freedom = sum(len(sample) - 1 for sample in samples)
    between = sum(len(set(values.values())) - 1 for values in owners if values)
    return Spread(sum(squares) / freedom, freedom, between) if freedom else None


def sharpe_variance(store: str, data_sha256: str) -> float | None:
    """The variance behind the best of so many trials (Bailey and Lopez de Prado 2014, eq. 6), where it is known.

    ``None`` below ``LEAST_FREEDOM`` degrees of freedom between settings: the spread of two that happen to agree would
    wave through what luck alone would show, and members of one policy, however many, say nothing of how far apart
    lies what is chosen among. The deflation then takes the trials as independent ones without an edge.

    Raises
    ------
    DataError : a record cannot be read
    """
    known = sharpe_spread(store, data_sha256)
    return known.variance if known is not None and known.between >= LEAST_FREEDOM else None


@dataclass(frozen=True, slots=True)
class _Trial:
    """One record: its data, a name for each training in it, and Sharpe ratios by where they were taken and of whom."""

    data: Data
    keys: tuple[str, ...]
    ratios: Mapping[str, Mapping[str, float]]


def _related(store: str, data_sha256: str) -> list[_Trial]:
    """The records of these data, and of others that overlap them, oldest first."""
    known = list(_records(store))
    own = {trial.data for trial in known if trial.data.sha256 == data_sha256}
    return [trial for trial in known if any(trial.data.overlaps(mine) for mine in own)]


def _records(store: str) -> Iterator[_Trial]:
    root = storage.join(store, _FOLDER)
    for folder in filter(_DATA.fullmatch, storage.list_names(root)):
        for name in filter(_RECORD.fullmatch, storage.list_names(storage.join(root, folder))):
            yield _read(storage.join(root, folder, name))


def _read(address: str) -> _Trial:
    try:
        content = json.loads(storage.read_bytes(address))
        data = Data(**content["data"])
        for text in (data.start, data.end):
            _moment(text)
        common = [data.sizing_sha256, content["code_version"]]
        trainings = list(itertools.product(content["settings"], content["folds"], content["seeds"]))
        keys = [_name(common, *training) for training in trainings]
        # A walk-forward's folds make one record together: its ratios belong to a setting and a seed.
        owners = {
            VALIDATION_SHARPE: keys,
            STITCHED_SHARPE: [_name(common, setting, content["folds"], seed) for setting, _, seed in trainings],
        }
        ratios = {
            name: {owner: float(value) for owner, value in zip(owners[name], values, strict=True) if value is not None}
            for name, values in content["scores"].items()
            if name in owners
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{address} is no record of a trial ({type(error).__name__}: {error}): restore it, without it nobody "
            "knows how much was tried"
        ) from error
    return _Trial(data, tuple(keys), ratios)


def _name(common: Sequence[Any], *training: Any) -> str:
    return json.dumps([*common, *training], sort_keys=True)


def market_of(symbol: str) -> str:
    """Letters and digits of ``symbol``, whatever dollar it is quoted in: BTC-USD, BTC/USDT and BTCUSDC are one."""
    letters = "".join(character for character in symbol.upper() if character.isalnum())
    return _DOLLARS.sub("USD", letters)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no offset from UTC")
    return moment
