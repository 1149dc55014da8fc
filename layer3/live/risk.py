"""What may stop a size whatever the chain says: words, the kill switch, and the account of the day.

A decision that the engine refuses carries one of these words in ``refusal``:

==================  ===========================================================================================
``bad_input``       a value cannot be used; the reason names it
``stale_signal``    the signal, or the price, is older than the limit
``stale_price``
``future_signal``   the signal, or the price, is further ahead of this machine's clock than the limit
``future_price``
``too_many``        more symbols than ``market.max_symbols`` are kept apart
``kill_switch``     the kill switch is on: by its file, by SIGUSR1 or by a call
``daily_loss``      the day's loss reached its limit
``internal_error``  a fault of this program; its traceback is in the log
==================  ===========================================================================================
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from layer3.errors import ConfigurationError

__all__ = [
    "BAD_INPUT",
    "DAILY_LOSS",
    "FUTURE_PRICE",
    "FUTURE_SIGNAL",
    "INTERNAL_ERROR",
    "KILL_SWITCH",
    "REFUSALS",
    "STALE_PRICE",
    "STALE_SIGNAL",
    "TOO_MANY",
    "DayAccount",
    "KillSwitch",
    "age_problem",
]

BAD_INPUT: Final = "bad_input"
STALE_SIGNAL: Final = "stale_signal"
STALE_PRICE: Final = "stale_price"
FUTURE_SIGNAL: Final = "future_signal"
FUTURE_PRICE: Final = "future_price"
TOO_MANY: Final = "too_many"
KILL_SWITCH: Final = "kill_switch"
DAILY_LOSS: Final = "daily_loss"
INTERNAL_ERROR: Final = "internal_error"
REFUSALS: Final = (
    BAD_INPUT, STALE_SIGNAL, STALE_PRICE, FUTURE_SIGNAL, FUTURE_PRICE, TOO_MANY, KILL_SWITCH, DAILY_LOSS,
    INTERNAL_ERROR,
)  # fmt: skip

_DAY_NS: Final = 86_400 * 1_000_000_000


def age_problem(what: str, time_ns: int, now_ns: int, oldest_s: float, ahead_s: float) -> tuple[str, str] | None:
    """The refusal of a ``signal`` or ``price`` (``what``) that is too old or too far ahead: its word and sentence."""
    age = (now_ns - time_ns) / 1e9
    if age > oldest_s:
        return f"stale_{what}", f"the {what} is {age:.3f} s old, at most {oldest_s:g} s are allowed"
    if age < -ahead_s:
        return f"future_{what}", (
            f"the {what} is {-age:.3f} s ahead of this machine's clock, at most {ahead_s:g} s are allowed: "
            "set the clocks of both machines"
        )
    return None


class KillSwitch:
    """While it is on, every size is zero.

    It is on while ``file`` exists (or cannot be looked for), and from :meth:`engage` or SIGUSR1 until
    :meth:`release`.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._engaged: str | None = None

    def engage(self, reason: str) -> None:
        """Turn it on; decisions that are being made are caught too."""
        self._engaged = reason

    def release(self) -> None:
        """Take back :meth:`engage` or a signal. The file has to be removed."""
        self._engaged = None

    @property
    def engaged(self) -> str | None:
        """Who turned it on by call or signal, ``None`` if nobody."""
        return self._engaged

    def listen(self) -> None:
        """Let SIGUSR1 turn it on.

        Raises
        ------
        ConfigurationError : called from another thread than the main one, which alone may say so
        """
        if threading.current_thread() is not threading.main_thread():
            raise ConfigurationError("the kill signal can be listened to from the main thread only")
        signal.signal(signal.SIGUSR1, lambda *_: self.engage("signal SIGUSR1"))

    def why(self) -> str | None:
        """Why it is on, ``None`` if it is off."""
        if self._engaged is not None:
            return self._engaged
        if self.file is None:
            return None
        try:
            self.file.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"the kill file {self.file} cannot be looked for: {error.strerror}"
        return f"the file {self.file} exists"


class DayAccount:
    """Profit and loss of the present UTC day, over all positions; locked once the loss reached its limit.

    The day's result is what closed trades of the day made, and by how much the unrealised result of each open
    position changed since the day began (for a position that was not seen before, since its entry). A trade
    that closes what was carried over from yesterday so counts for today's part only.

    The lock holds until the next UTC day or :meth:`reset`, even if the positions recover. The day turns only by a
    time that another clock agrees with: one clock that leaps for a moment must not unlock it. What trades make
    meanwhile counts for either day.
    """

    def __init__(self) -> None:
        self.day = -1
        self.realised = 0.0
        self.locked = False
        self._forgiven = 0.0
        # The day that the clock shows, which may be a later one, and what was realised on it.
        self._shown, self._shown_realised = -1, 0.0
        # Of each position: unrealised result now, and when the day began.
        self._marks: dict[str, tuple[float, float]] = {}

    def begin(self, now_ns: int, agreed: bool) -> None:
        """Turn to the day of ``now_ns`` if another clock ``agreed`` to it; one that is set back turns nothing back."""
        day = now_ns // _DAY_NS
        if day != self._shown:
            self._shown, self._shown_realised = day, 0.0
        if agreed and day > self.day:
            if self.day >= 0:
                self._marks = {name: (now, now) for name, (now, _) in self._marks.items() if now != 0.0}
            self.day, self.realised, self._forgiven, self.locked = day, self._shown_realised, 0.0, False

    def add_trade(self, pnl_usd: float, closed_at_ns: int | None) -> None:
        """Count a closed trade; one that says that it was closed on an earlier day is that day's."""
        day = max(self.day, self._shown) if closed_at_ns is None else closed_at_ns // _DAY_NS
        if day >= (self._shown if self.day < 0 else self.day):
            self.realised += pnl_usd
        if day >= self._shown:
            self._shown_realised += pnl_usd

    def mark(self, position: str, unrealised_usd: float) -> None:
        """What an open position has made since its entry, in dollars; 0.0 for none."""
        self._marks[position] = (unrealised_usd, self._marks.get(position, (0.0, 0.0))[1])

    @property
    def result(self) -> float:
        """Dollars made (+) or lost (-) on this UTC day, since the last reset if there was one."""
        total = self.realised - self._forgiven
        for now, start in self._marks.values():
            total += now - start
        return total

    def check(self, limit_usd: float) -> bool:
        """Lock if the loss reached ``limit_usd``; whether it is locked."""
        if not self.locked and self.result <= -limit_usd:
            self.locked = True
        return self.locked

    def reset(self) -> None:
        """Unlock, and count from here, of the day that the clock shows: what was lost so far is forgiven."""
        self._forgiven += self.result
        self.locked, self.day = False, min(self.day, self._shown)

    def to_json(self) -> dict[str, Any]:
        """The account as plain data."""
        return {
            "day": self.day,
            "realised": self.realised,
            "forgiven": self._forgiven,
            "locked": self.locked,
            "shown": [self._shown, self._shown_realised],
            "marks": {name: list(mark) for name, mark in self._marks.items()},
        }

    @classmethod
    def restored(cls, data: Mapping[str, Any]) -> DayAccount:
        """Goes on where :meth:`to_json` was taken; KeyError, TypeError or ValueError where it cannot."""
        account = cls()
        account.day, account.locked = int(data["day"]), bool(data["locked"])
        account.realised, account._forgiven = float(data["realised"]), float(data["forgiven"])
        shown, realised = data.get("shown", (-1, 0.0))  # an older program's account has none
        account._shown, account._shown_realised = int(shown), float(realised)
        account._marks = {name: (float(now), float(start)) for name, (now, start) in data["marks"].items()}
        return account
