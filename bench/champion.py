"""How often the gate takes a candidate for not worse than the champion: the champion's equal, and one that is worse.

On each planted market (bench/calibration) a policy is champion. Two candidates are judged against it: its twin,
trained from another seed, and the sizing chain alone, whose true Sharpe ratio is lower by about what was planted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from tqdm import tqdm

from bench.calibration.candidates import INTERVAL, TRAINING, candidates
from bench.calibration.markets import YEAR, Design
from bench.calibration.plan import EDGES, YEARS
from bench.calibration.summary import wilson
from bench.page import table
from layer3.agent.population import Settings
from layer3.backtest.engine import asking, run
from layer3.backtest.gate import GateConfig, judge
from layer3.backtest.record import CHAMPION, Evaluation, Evidence, Track
from layer3.backtest.trust import difference

LEVELS: Final = (1.0, 2.0)
CANDIDATES: Final = {"twin": "another seed", "chain": "the chain alone"}
#: Markets trained in one call, each as it would be alone, and the seeds of champion and twin.
_TOGETHER: Final = 4
_SEEDS: Final = (1_001, 2_002)


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether one ``candidate`` was not shown to be worse after ``years``, and kept the margin as well."""

    level: float
    candidate: str
    years: float
    estimate: float
    not_shown: bool
    not_worse: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Print how often each candidate was taken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markets", type=int, default=16, help="of each planted Sharpe ratio (16)")
    markets = parser.parse_args(arguments).markets
    found = []
    for level in LEVELS:
        for first in tqdm(range(1, markets + 1, _TOGETHER), desc=f"Sharpe {level:g}"):
            found += answers(level, range(first, min(first + _TOGETHER, markets + 1)))
    report(found)
    return 0


def answers(
    level: float,
    numbers: range,
    *,
    years: Sequence[float] = YEARS,
    training_years: float = 3.0,
    settings: Settings = TRAINING,
) -> Iterator[Answer]:
    """The gate's answers on the markets ``numbers`` with a planted Sharpe ratio of about ``level``."""
    design = Design("planted", edge=EDGES[level])
    champions, twins = (
        candidates(
            design,
            numbers,
            training_years=training_years,
            record_years=max(years),
            code_version="",
            settings=settings,
            seed=seed,
        )
        for seed in _SEEDS
    )
    for number, champion, twin in zip(numbers, champions, twins, strict=True):
        strategies = {CHAMPION: asking(champion.policy), "twin": asking(twin.policy), "chain": lambda *_: 1.0}
        tracks = run(champion.bars, range(champion.start, len(champion.bars)), strategies)
        for length in years:
            for name in CANDIDATES:
                yield _answer(level, name, length, tracks, number)


def _answer(level: float, name: str, years: float, tracks: dict[str, Track], seed: int) -> Answer:
    mine, theirs = (tracks[each].equity[: round(years * YEAR) + 1] for each in (name, CHAMPION))
    apart = difference(mine, theirs, INTERVAL, against=CHAMPION, seed=seed)
    evidence = Evidence(differences=(apart,), champion=CHAMPION)
    verdict = judge(Evaluation(np.empty(0, np.int64), {}, {}, {}, evidence))
    passed = {criterion.name: criterion.passed for criterion in verdict.criteria}
    shown = passed["versus_champion"]
    return Answer(level, name, years, apart.sharpe.estimate or 0.0, shown, shown and passed["champion_margin"])


def report(found: Sequence[Answer]) -> None:
    """One row per candidate and length of record."""
    print(
        f"Shares with their 95 % intervals (Wilson); margin {GateConfig().margin:g}. Difference: the mean of the\n"
        "annualised Sharpe ratio less the champion's."
    )
    rows = []
    for level, name, years in dict.fromkeys((one.level, one.candidate, one.years) for one in found):
        mine = [one for one in found if (one.level, one.candidate, one.years) == (level, name, years)]
        shown, whole = (
            wilson(sum(took), len(mine)) for took in zip(*((o.not_shown, o.not_worse) for o in mine), strict=True)
        )
        apart = sum(one.estimate for one in mine) / len(mine)
        rows.append((CANDIDATES[name], f"{level:g}", f"{years:g}", len(mine), f"{apart:+.2f}", shown, whole))
    rows.sort(key=lambda row: row[:2])
    head = ("candidate", "planted", "years", "markets", "difference", "not shown to be worse", "and keeps the margin")
    table(head, rows)


if __name__ == "__main__":
    raise SystemExit(main())
