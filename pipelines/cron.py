"""Cron expressions as Vertex schedules take them, checked before anything is sent."""

from __future__ import annotations

import re
import zoneinfo
from dataclasses import dataclass
from datetime import date
from typing import Final

from layer3.errors import ConfigurationError

__all__ = ["EXAMPLE", "checked_cron", "runs_per_month"]

EXAMPLE: Final = "TZ=Etc/UTC 0 6 * * 1"
_PREFIX: Final = re.compile(r"(?:CRON_)?TZ=(\S*)")
_PIECE: Final = re.compile(r"(\*|\w+)(?:-(\w+))?(?:/(\d+))?")
_LONGEST: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
#: 28 years, after which the same days are the same days of the week.
_COUNTED: Final = range(date(2024, 1, 1).toordinal(), date(2052, 1, 1).toordinal())
_MONTHS_COUNTED: Final = 28 * 12


@dataclass(frozen=True, slots=True)
class _Field:
    """One of the five: its bounds, and the names that stand for numbers from ``low`` on."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    def value(self, word: str) -> int:
        """The number that ``word`` is; -1 for none in bounds."""
        if word.lower() in self.names:
            return self.low + self.names.index(word.lower())
        number = int(word) if word.isascii() and word.isdigit() else -1
        return number if self.low <= number <= self.high else -1


_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: Final = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of the week", 0, 6, _DAYS),
)


def checked_cron(text: str) -> str:
    """``text`` with single spaces: five fields, before them ``TZ=Zone`` or ``CRON_TZ=Zone`` (UTC without).

    Raises
    ------
    ConfigurationError : it is no such thing, its zone does not exist, or it names a day that never comes
    """
    words = text.split()
    if not words:
        raise ConfigurationError(f"when is it to run? CRON='{EXAMPLE}' is every Monday at six o'clock UTC")
    prefixed = _PREFIX.fullmatch(words[0])
    if prefixed is not None:
        _check_zone(prefixed[1], text)
    fields = words[1:] if prefixed is not None else words
    if len(fields) != len(_FIELDS):
        names = ", ".join(field.name for field in _FIELDS)
        raise ConfigurationError(
            f"CRON is {text!r}, with {len(fields)} fields; it needs {len(_FIELDS)} ({names}), as in '{EXAMPLE}'"
        )
    sets = [_values(field, said, text) for field, said in zip(_FIELDS, fields, strict=True)]
    _, _, days, months, _ = sets
    if fields[4] == "*" and not any(day <= _LONGEST[month - 1] for day in days for month in months):
        raise ConfigurationError(f"CRON is {text!r}: that day never comes in that month")
    return " ".join(words)


def runs_per_month(text: str) -> float:
    """How often in a month the expression ``text`` comes true, on average. Raises as :func:`checked_cron`."""
    fields = checked_cron(text).split()[-len(_FIELDS) :]
    sets = (_values(field, said, text) for field, said in zip(_FIELDS, fields, strict=True))
    minutes, hours, days, months, weekdays = sets
    # Where both kinds of day are named, either will do.
    enough = all if fields[2].startswith("*") or fields[4].startswith("*") else any
    found = sum(
        day.month in months and enough((day.day in days, day.isoweekday() % 7 in weekdays))
        for day in map(date.fromordinal, _COUNTED)
    )
    return len(minutes) * len(hours) * found / _MONTHS_COUNTED


def _check_zone(zone: str, text: str) -> None:
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"CRON is {text!r}: there is no time zone {zone!r}; write one such as Etc/UTC or America/Toronto"
        ) from error


def _values(field: _Field, said: str, text: str) -> set[int]:
    """What a field such as ``1-5``, ``*/10`` or ``mon,thu`` lists."""
    values: set[int] = set()
    for piece in said.split(","):
        found = _PIECE.fullmatch(piece)
        first, last, step = found.groups() if found else (None, None, None)
        low = field.low if first == "*" else field.value(first or "")
        high = field.value(last) if last else field.high if first == "*" or step else low
        if found is None or low < 0 or high < low or step == "0" or (first == "*" and last):
            names = f", or {field.names[0]} to {field.names[-1]}" if field.names else ""
            raise ConfigurationError(
                f"CRON is {text!r}: {piece!r} is no {field.name}: it must be {field.low} to {field.high}{names}; "
                "*, a-b, a,b and */n are understood"
            )
        values.update(range(low, high + 1, int(step or 1)))
    return values
