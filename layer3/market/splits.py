"""Splits by time: train, validation, test, each followed by a purge gap. Never random."""

from __future__ import annotations

from dataclasses import dataclass

from layer3.errors import DataError

__all__ = ["PURGE_HOURS", "Splits", "split"]

#: Hours dropped between two parts: more than any feature's look-back (48) and the residual's day.
PURGE_HOURS = 168


@dataclass(frozen=True, slots=True)
class Splits:
    """Half-open ranges of bar indices; between two of them lies a purge gap that belongs to none."""

    train: range
    validation: range
    test: range


def split(bars: int, *, purge: int, train: float = 0.6, validation: float = 0.15, min_bars: int = 550) -> Splits:
    """Cut ``bars`` bars into train, validation and test (the rest), in this order of time.

    ``purge`` bars are dropped before validation and before test, so that nothing that one part is
    rewarded for, and no number of the state, lies within another. (What is slower by nature, such
    as the sizing chain's record of past trades, runs through causally.) The shares are of what
    remains after the gaps.

    Raises
    ------
    DataError : a part would be shorter than ``min_bars``; the message says how many bars it takes
    """
    if not (0.0 < train < 1.0 and 0.0 < validation < 1.0 and train + validation < 1.0 and purge >= 0):
        raise ValueError(f"shares {train}, {validation} and purge {purge} leave no test part")

    def parts(usable: int) -> tuple[int, int, int]:
        first, second = int(usable * train), int(usable * validation)
        return first, second, usable - first - second

    first, second, third = parts(bars - 2 * purge)
    if min(first, second, third) < min_bars:
        needed = min_bars
        while min(parts(needed)) < min_bars:
            needed += 1
        raise DataError(
            f"{bars:,} bars give {max(first, 0):,} to train, {max(second, 0):,} to validate and {max(third, 0):,} to "
            f"test, each part needs {min_bars:,}: supply at least {needed + 2 * purge:,} bars"
        )
    validation_start = first + purge
    test_start = validation_start + second + purge
    return Splits(
        train=range(first),
        validation=range(validation_start, validation_start + second),
        test=range(test_start, bars),
    )
