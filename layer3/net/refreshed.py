"""A value that is fetched in the background, ahead of the moment when the old one can no longer be used."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from layer3.errors import HimariError, SourceError

__all__ = ["Refreshed"]

T = TypeVar("T")
#: Seconds before a failed fetch is tried again: at first, and at most.
_RETRY: Final = (1.0, 30.0)
logger = logging.getLogger(__name__)


class Refreshed(Generic[T]):
    """Keeps what ``fetch`` returns: a value and its expiry (Unix seconds, ``inf`` for never).

    A daemon thread fetches at once, then ``ahead`` seconds before each expiry (earlier where a value
    lives less than twice that), at the latest ``period`` seconds after the last. A fetch that fails is
    tried again, and logged once as long as it fails for the same reason; the old value stays until its
    expiry. ``what`` names the value in errors, ``first`` is one that is known already and never expires.
    ``fetch`` may be slow and may raise anything: only that thread waits for it.
    """

    def __init__(
        self,
        what: str,
        fetch: Callable[[], tuple[T, float]],
        *,
        first: T | None = None,
        ahead: float = 300.0,
        period: float = math.inf,
    ) -> None:
        self._what = what
        self._fetch = fetch
        self._ahead = ahead
        self._period = period
        self._value: tuple[T, float] | None = None if first is None else (first, math.inf)
        self._failure = ""
        self._last_fetch = -math.inf
        self._closed = False
        self._wake = threading.Event()
        self._starting = threading.Lock()
        self._thread = self._start()

    def peek(self) -> T | None:
        """The value now, ``None`` while the first is on its way; never waits.

        Raises
        ------
        SourceError : there is none, and the last fetch failed
        """
        if not self._thread.is_alive():
            self._restart()
        held = self._value
        if held is not None and time.time() < held[1]:
            return held[0]
        if self._failure:
            raise SourceError(f"{self._what}: {self._failure}")
        return None

    def refresh(self) -> None:
        """Fetch soon, for who holds a value that was refused; at most once a second."""
        if time.monotonic() - self._last_fetch >= _RETRY[0]:
            self._wake.set()

    def close(self) -> None:
        """End the thread; one that is inside ``fetch`` ends with it."""
        self._closed = True
        self._wake.set()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._keep, name=f"himari: {self._what}", daemon=True)
        thread.start()
        return thread

    def _restart(self) -> None:
        # A fork takes no threads along.
        with self._starting:
            if not self._closed and not self._thread.is_alive():
                self._thread = self._start()

    def _keep(self) -> None:
        retry = _RETRY[0]
        while not self._closed:
            # Cleared before the fetch, so that who asks during it is heard.
            self._wake.clear()
            if self._update():
                wait = self._until_next()
                retry = _RETRY[0]
            else:
                wait = min(retry, self._period)
                retry = min(2.0 * retry, _RETRY[1])
            if self._closed:
                return
            self._wake.wait(min(wait, threading.TIMEOUT_MAX))

    def _until_next(self) -> float:
        assert self._value is not None
        life = self._value[1] - time.time()
        return min(self._period, max(life - self._ahead, 0.5 * life, _RETRY[0]))

    def _update(self) -> bool:
        self._last_fetch = time.monotonic()
        try:
            value, expiry = self._fetch()
            if not expiry > time.time():
                raise SourceError(f"what was fetched expired at {expiry!r} (Unix seconds)")
        except HimariError as error:
            if self._is_new(str(error)):
                held = self._value is not None and time.time() < self._value[1]
                logger.warning("%s: %s%s", self._what, error, "; the one before is used" if held else "")
            return False
        except Exception as error:  # the thread's outermost frame around a stranger's code
            if self._is_new(f"{type(error).__name__}: {error}"):
                logger.exception("cannot fetch %s", self._what)
            return False
        self._value = (value, expiry)
        if self._failure:
            logger.info("%s: fetched again", self._what)
        self._failure = ""
        return True

    def _is_new(self, failure: str) -> bool:
        before, self._failure = self._failure, failure
        return failure != before
