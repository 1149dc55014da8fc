"""What an evaluation leaves behind: tracks, their metrics, the evidence, and the gate's verdict, as plain data.

A number that could not be computed is ``None``, never NaN; where a whole section could not be, the
evidence holds ``None`` for it, and ``Evidence.problems`` says why. The gate fails what it cannot see.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

__all__ = [
    "BUY_AND_HOLD",
    "CHAMPION",
    "FLAT",
    "KELLY_ONLY",
    "POLICY",
    "Attribution",
    "CostLine",
    "Costs",
    "Criterion",
    "Degeneracy",
    "Difference",
    "Evaluation",
    "Evidence",
    "Fold",
    "Interval",
    "Leak",
    "Overfitting",
    "Override",
    "Permutation",
    "Slice",
    "Stability",
    "Superiority",
    "Track",
    "Trust",
    "Verdict",
    "WalkForward",
]

POLICY = "policy"
KELLY_ONLY = "kelly_only"
BUY_AND_HOLD = "buy_and_hold"
FLAT = "flat"
CHAMPION = "champion"


@dataclass(frozen=True)
class Track:
    """One strategy's path over n bars.

    ``equity`` (n + 1,): marked at each bar's execution price, ``equity[0]`` is the capital before
    the first trade and ``equity[t + 1] / equity[t] - 1`` the return that bar t's decision earned,
    costs included. ``exposure`` (n,): signed fraction of equity held. ``multiplier`` (n,): in
    [0, 2]. ``turnover`` (n,): traded notional over equity. ``cost`` (n,): commission and slippage
    paid, in the currency of equity; of it ``slippage`` times the traded notional is slippage, the rest
    commission. ``funding`` (n,): paid (negative: received) for holding, in the same currency. ``trades``
    returns of the closed round trips, costs included.
    """

    equity: NDArray[np.float64]
    exposure: NDArray[np.float64]
    multiplier: NDArray[np.float64]
    turnover: NDArray[np.float64]
    cost: NDArray[np.float64]
    funding: NDArray[np.float64]
    trades: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the bounds that hold the true value with probability ``level``."""

    estimate: float | None
    low: float | None
    high: float | None
    level: float = 0.9


@dataclass(frozen=True, slots=True)
class Trust:
    """How far one track's Sharpe ratio can be trusted. All ratios are annualised."""

    sharpe: float | None
    standard_error: float | None
    """For returns that are neither normal nor independent."""
    probabilistic: float | None
    """Probability that the true ratio is above 0."""
    deflated: float | None
    """Probability that it is above what the best of ``trials`` without an edge would show."""
    trials: int
    trials_sharpe: float | None
    """That expected best ratio of so many trials without an edge."""
    years: float
    """Length of the record."""
    years_needed: float | None
    """Minimum track record length: below it this ratio proves nothing at 95 %; ``None`` if no length would do."""
    sharpe_interval: Interval
    drawdown_interval: Interval
    """Of the maximum drawdown, as a fraction; both by stationary bootstrap."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The policy's annualised Sharpe ratio less that of track ``against`` on the same bars, by paired bootstrap."""

    against: str
    sharpe: Interval
    volatility: float | None
    """Annualised volatility of the policy over that of the other, a ratio; ``None`` where the other has none."""


@dataclass(frozen=True, slots=True)
class Superiority:
    """Hansen's test (2005): p values of "no track is better than the benchmark", for the policy against each
    benchmark by name in ``benchmarks``."""

    benchmarks: tuple[str, ...]
    lower: float
    consistent: float
    upper: float


@dataclass(frozen=True, slots=True)
class Overfitting:
    """Probability of backtest overfitting by combinatorially symmetric cross-validation over ``sets`` tried."""

    sets: int
    blocks: int
    probability: float


@dataclass(frozen=True, slots=True)
class CostLine:
    """What the policy comes to when every cost is ``multiple`` times what it is; ``sharpe`` annualised."""

    multiple: float
    sharpe: float | None
    total_return: float | None


@dataclass(frozen=True, slots=True)
class Costs:
    """Where the money went, each as a fraction of the starting capital: gross = net + the three others."""

    gross: float
    commission: float
    slippage: float
    funding: float
    net: float
    lines: tuple[CostLine, ...]
    break_even: float | None
    """Multiple of all costs at which nothing is left; ``None`` where there is no such multiple up to 100."""


@dataclass(frozen=True, slots=True)
class Permutation:
    """The same policy and chain on price paths whose bars were put in random order.

    ``kind``: single bars, or blocks of them. ``signals``: computed anew on each path, or kept at their bars, as they
    come with the file. ``real`` and ``values`` are annualised Sharpe ratios (0 for a path without a ratio);
    ``p = (1 + number of values >= real) / (1 + number of values)``.
    """

    kind: Literal["bars", "blocks"]
    block_bars: int
    signals: Literal["recomputed", "kept"]
    real: float
    values: tuple[float, ...]
    p: float


@dataclass(frozen=True, slots=True)
class Leak:
    """Everything computed again on data cut off after the bars ``cuts``; ``differs`` names what was not identical."""

    compared: tuple[str, ...]
    cuts: tuple[int, ...]
    differs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attribution:
    """One combination of chain (on, off: its mean base fraction on the signal's side) and multiplier, on the same
    bars."""

    chain: Literal["on", "off"]
    multiplier: Literal["policy", "constant 1", "constant mean", "random", "off"]
    sharpe: float | None
    total_return: float
    max_drawdown: float


@dataclass(frozen=True, slots=True)
class Degeneracy:
    """Whether the policy decides anything, where the chain holds something. Multipliers are in [0, 2]."""

    decisions: int
    mean: float | None
    spread: float | None
    """Standard deviation of the multiplier."""
    at_low: float | None
    """Share of decisions within 0.02 of 0."""
    at_high: float | None
    """Share of decisions within 0.02 of 2."""
    members: int
    agreement: float | None
    """Mean correlation between the members' multipliers; ``None`` for one member or without spread."""
    findings: tuple[str, ...]
    """What is wrong, in sentences; empty for a policy that decides."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The policy's record over some of the bars."""

    label: str
    bars: int
    sharpe: float | None
    total_return: float


@dataclass(frozen=True, slots=True)
class Stability:
    """The record cut in several ways; ``trimmed`` without the best 1 % of bars."""

    regimes: tuple[Slice, ...]
    months: tuple[Slice, ...]
    directions: tuple[Slice, ...]
    trimmed: Slice


@dataclass(frozen=True, slots=True)
class Fold:
    """One piece of a walk-forward: its periods (ISO 8601), and what each seed's policy came to on the test bars."""

    number: int
    train_start: str
    train_end: str
    test_start: str
    test_end: str
    sharpes: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class WalkForward:
    """A policy per fold and seed, the mean of the seeds acting, the test pieces stitched into one record."""

    kind: Literal["rolling", "expanding"]
    seeds: tuple[int, ...]
    folds: tuple[Fold, ...]
    trust: Trust
    total_return: float
    max_drawdown: float
    versus_kelly: Difference | None
    overfitting: Overfitting | None
    seed_sharpes: tuple[float | None, ...]
    """Annualised, of each seed's own stitched record."""
    days: tuple[int, ...]
    """Days since 1970 (UTC) at whose end ``equity`` and ``kelly_equity`` were read, in multiples of the start."""
    equity: tuple[float, ...]
    kelly_equity: tuple[float, ...]


@dataclass(frozen=True)
class Evidence:
    """What a sceptic asks beyond the metrics; see each section. ``None``: could not be computed, see ``problems``.

    ``problems`` maps the name of a section to the sentence that says why it is missing.
    """

    trust: Trust | None = None
    differences: tuple[Difference, ...] = ()
    superiority: Superiority | None = None
    costs: Costs | None = None
    permutations: tuple[Permutation, ...] = ()
    leak: Leak | None = None
    attribution: tuple[Attribution, ...] = ()
    degeneracy: Degeneracy | None = None
    stability: Stability | None = None
    walk_forward: WalkForward | None = None
    overfitting: Overfitting | None = None
    """Over everything that was tried on these data, on the validation part, by which settings are chosen; ``None``
    without a problem where there are not two sets that differ."""
    champion: str | None = None
    """Model id of the champion that was walked over the same bars."""
    bootstrap_band: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]] | None = None
    """Days since 1970 (UTC), and the 5 % and 95 % quantile of equity over its start at their ends."""
    problems: Mapping[str, str] = field(default_factory=dict)


_EVIDENCE: TypeAdapter[Evidence] = TypeAdapter(Evidence)


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured on the held-out period.

    ``timestamps`` (n,) int64 UTC nanoseconds: the open of the bar at which decision t is made.
    ``tracks`` and ``metrics`` are keyed by POLICY, KELLY_ONLY, BUY_AND_HOLD and FLAT, and CHAMPION
    where one was walked over the same bars; a metric that cannot be computed is ``None``.
    ``context`` says what was judged: symbol, source, synthetic, model_id, seed, data_sha256, period
    of training, interval_seconds.
    """

    timestamps: NDArray[np.int64]
    tracks: Mapping[str, Track]
    metrics: Mapping[str, Mapping[str, float | None]]
    context: Mapping[str, Any]
    evidence: Evidence = field(default_factory=Evidence)

    def save(self, path: Path) -> None:
        """Write arrays and numbers to one ``.npz`` file at ``path`` (no pickle)."""
        arrays: dict[str, NDArray[Any]] = {"timestamps": self.timestamps}
        for name, track in self.tracks.items():
            for column, values in vars(track).items():
                arrays[f"{name}/{column}"] = values
        content = {"metrics": self.metrics, "context": self.context, "evidence": asdict(self.evidence)}
        details = json.dumps(content, sort_keys=True, allow_nan=False)
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
            evidence = _EVIDENCE.validate_python(details["evidence"])
            return cls(file["timestamps"], tracks, details["metrics"], details["context"], evidence)


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
class Override:
    """Who released a candidate that failed, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision: passed only when every criterion did, or where somebody took that upon himself."""

    passed: bool
    criteria: tuple[Criterion, ...]
    override: Override | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    """What was asked, whole, as the gate's configuration says it."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for manifests."""
        return asdict(self)
