"""Walk-forward folds by time: train on a window, test on the piece after it, step on by one piece."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final, Literal

from layer3.errors import ConfigurationError, EvaluationError

__all__ = ["EMBARGO_HOURS", "KINDS", "MAX_FOLDS", "FoldRange", "Kind", "plan", "shared_out"]

Kind = Literal["rolling", "expanding"]

KINDS: Final[tuple[Kind, ...]] = ("rolling", "expanding")
#: Hours that serial correlation carries further than what features and rewards reach over.
EMBARGO_HOURS: Final = 24
MAX_FOLDS: Final = 200


@dataclass(frozen=True, slots=True)
class FoldRange:
    """Fold ``number`` (from 1): half-open ranges of the bars that are trained and tested on."""

    number: int
    train: range
    test: range


def plan(
    bars: int,
    *,
    folds: int = 18,
    kind: Kind = "rolling",
    purge: int,
    embargo: int,
    min_train: int = 550,
    min_test: int = 24,
) -> tuple[FoldRange, ...]:
    """Cut ``bars`` bars into ``folds`` folds, in order of time.

    The first quarter of the bars trains the first fold; what is left after the gap is tiled by ``folds``
    test pieces of equal length, without holes (the last one takes the remainder), so that two years of
    hours give half a year to train and a month to test, moved on by a month. Every training window ends
    ``purge + embargo`` bars before its test piece begins: ``purge`` is what rewards and numbers of the
    state reach over, ``embargo`` what serial correlation carries further (Lopez de Prado 2018, "Advances
    in financial machine learning", ch. 7). A rolling window keeps its length, an expanding one keeps its
    first bar, 0.

    Raises
    ------
    ConfigurationError : ``folds``, ``kind``, ``purge`` or ``embargo`` is out of range
    EvaluationError : a training window would be shorter than ``min_train`` bars or a test piece shorter
        than ``min_test``; the message says how many bars it takes
    """
    if not 1 <= folds <= MAX_FOLDS:
        raise ConfigurationError(f"folds is {folds}, expected 1 to {MAX_FOLDS}")
    if kind not in KINDS:
        raise ConfigurationError(f"the kind of folds is {kind!r}, expected {' or '.join(KINDS)}")
    if purge < 0 or embargo < 0:
        raise ConfigurationError(f"purge is {purge} and embargo {embargo} bars, expected 0 or more")
    gap = purge + embargo

    def lengths(usable: int) -> tuple[int, int]:
        train = usable // 4
        return train, max(usable - train - gap, 0) // folds

    train, test = lengths(bars)
    if train < min_train or test < min_test:
        needed = max(4 * min_train, gap + folds * min_test)
        while lengths(needed)[1] < min_test:
            needed += 1
        raise EvaluationError(
            f"{bars:,} bars in {folds} folds give {train:,} to train (at least {min_train:,} are needed) and {test:,} "
            f"to each test (at least {min_test:,}), {gap:,} purged between: supply at least {needed:,} bars, or ask "
            "for fewer folds"
        )
    first = train + gap
    starts = [first + number * test for number in range(folds)]
    return tuple(
        FoldRange(
            number,
            range(start - gap - train if kind == "rolling" else 0, start - gap),
            range(start, start + test if number < folds else bars),
        )
        for number, start in enumerate(starts, start=1)
    )


def shared_out(folds: int, groups: int) -> list[list[int]]:
    """The numbers of ``folds`` folds in at most ``groups`` groups of neighbours, as equal as can be.

    Without folds it is one group of none: a loop over no groups would be none at all.
    """
    if not 0 <= folds <= MAX_FOLDS:
        raise ConfigurationError(f"folds is {folds}, expected 0 (no walk-forward) to {MAX_FOLDS}")
    if groups < 1:
        raise ConfigurationError(f"fold_groups is {groups}, expected at least 1")
    count = max(min(folds, groups), 1)
    cuts = [number * folds // count for number in range(count + 1)]
    return [list(range(first + 1, last + 1)) for first, last in itertools.pairwise(cuts)]
