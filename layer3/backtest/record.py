"""What a backtest leaves behind: tracks, their metrics, and the gate's verdict, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["BUY_AND_HOLD", "FLAT", "KELLY_ONLY", "POLICY", "Criterion", "Evaluation", "Track", "Verdict"]

POLICY = "policy"
KELLY_ONLY = "kelly_only"
BUY_AND_HOLD = "buy_and_hold"
FLAT = "flat"


@dataclass(frozen=True)
class Track:
    """One strategy's path over n bars.

    ``equity`` (n + 1,): marked at each bar's execution price, ``equity[0]`` is the capital before
    the first trade and ``equity[t + 1] / equity[t] - 1`` the return that bar t's decision earned,
    costs included. ``exposure`` (n,): signed fraction of equity held. ``multiplier`` (n,): in
    [0, 2]. ``turnover`` (n,): traded notional over equity. ``cost`` (n,): commission and slippage
    paid, in the currency of equity. ``trades`` returns of the closed round trips, costs included.
    """

    equity: NDArray[np.float64]
    exposure: NDArray[np.float64]
    multiplier: NDArray[np.float64]
    turnover: NDArray[np.float64]
    cost: NDArray[np.float64]
    trades: NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured on the held-out period.

    ``timestamps`` (n,) int64 UTC nanoseconds: the open of the bar at which decision t is made.
    ``tracks`` and ``metrics`` are keyed by POLICY, KELLY_ONLY, BUY_AND_HOLD and FLAT; a metric
    that cannot be computed is ``None``, never NaN. ``context`` says what was judged: symbol,
    source, synthetic, model_id, seed, data_sha256, period of training, interval_seconds.
    """

    timestamps: NDArray[np.int64]
    tracks: Mapping[str, Track]
    metrics: Mapping[str, Mapping[str, float | None]]
    context: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write arrays and numbers to one ``.npz`` file at ``path`` (no pickle)."""
        arrays: dict[str, NDArray[Any]] = {"timestamps": self.timestamps}
        for name, track in self.tracks.items():
            for field, values in vars(track).items():
                arrays[f"{name}/{field}"] = values
        details = json.dumps({"metrics": self.metrics, "context": self.context}, sort_keys=True, allow_nan=False)
        arrays["details"] = np.frombuffer(details.encode(), dtype=np.uint8)
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            details = json.loads(file["details"].tobytes())
            names = list(dict.fromkeys(key.split("/")[0] for key in file.files if "/" in key))
            tracks = {
                name: Track(**{key.split("/")[1]: file[key] for key in file.files if key.startswith(f"{name}/")})
                for name in names
            }
            return cls(file["timestamps"], tracks, details["metrics"], details["context"])


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing that the gate asks, and the answer: passes when ``value comparison limit`` holds.

    ``value`` is ``None`` where it could not be computed; that fails. ``sentence`` says it in words.
    """

    name: str
    value: float | None
    comparison: Literal[">=", "<="]
    limit: float
    passed: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision: passed only when every criterion did."""

    passed: bool
    criteria: tuple[Criterion, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for manifests."""
        return asdict(self)
