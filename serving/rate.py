"""A token bucket for each caller: how fast one may ask, and how long it must wait when it asked faster.

A bucket holds ``burst`` tokens, refills at ``per_second`` and every request takes one. What is stored is not the
number of tokens but the moment at which the bucket will be full again (the generic cell rate algorithm, ITU-T
I.371, which admits exactly the same requests): one number for each caller, and nothing that refills it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

__all__ = ["TokenBuckets"]

#: Callers remembered at once; beyond it the one that asked longest ago is forgotten, that is, gets a full bucket.
MAX_CALLERS: Final = 4096


class TokenBuckets:
    """The buckets of all callers; not for several threads at once.

    Parameters
    ----------
    per_second : tokens a bucket gets in a second, above 0
    burst : tokens that a full bucket holds, at least 1
    clock : seconds that never run backwards
    """

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float]) -> None:
        self._seconds_per_token = 1 / per_second
        self._slack = (burst - 1) * self._seconds_per_token
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def wait(self, caller: str) -> float:
        """Seconds until ``caller`` may ask again; 0 where it may now. Takes nothing."""
        return max(0, self._full_at.get(caller, 0) - self._slack - self._clock())

    def take(self, caller: str) -> float:
        """Take a token and return 0, or take none and return the seconds until there is one."""
        now = self._clock()
        buckets = self._full_at
        full_at = buckets.get(caller)
        if full_at is None:
            if len(buckets) >= MAX_CALLERS:
                buckets.popitem(last=False)
            full_at = now
        elif full_at < now:
            full_at = now
        elif full_at - self._slack > now:
            return full_at - self._slack - now
        buckets[caller] = full_at + self._seconds_per_token
        buckets.move_to_end(caller)
        return 0
