"""A token bucket for each caller: how fast one may ask, and how long it must wait when it asked faster.

A bucket holds ``burst`` tokens and refills at ``per_second``; a request takes one. Nothing runs to refill them: what
went by since the last request is worked out at the next one.
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
    per_second : tokens that a bucket gets in a second, above 0
    burst : tokens that a full bucket holds, at least 1
    clock : seconds that never run backwards
    """

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float]) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        # Tokens after a caller's last request that was let through, and the moment of it.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, caller: str) -> float:
        """Seconds until ``caller`` may ask again, 0 where it may now; takes nothing."""
        return self._missing(self._tokens(caller, self._clock()))

    def take(self, caller: str) -> float:
        """Take a token and return 0, or take none and return the seconds until there is one."""
        now = self._clock()
        tokens = self._tokens(caller, now)
        if tokens < 1:
            return self._missing(tokens)
        buckets = self._buckets
        buckets[caller] = tokens - 1, now
        buckets.move_to_end(caller)
        if len(buckets) > MAX_CALLERS:
            buckets.popitem(last=False)
        return 0

    def _tokens(self, caller: str, now: float) -> float:
        bucket = self._buckets.get(caller)
        if bucket is None:
            return self._burst
        return min(self._burst, bucket[0] + (now - bucket[1]) * self._per_second)

    def _missing(self, tokens: float) -> float:
        return max(0, 1 - tokens) / self._per_second
