"""What a circuit breaker must do, as plainly as it can be said: the whole list of answers is judged anew each time."""

from __future__ import annotations

from layer3.breaker import BreakerConfig

__all__ = ["BreakerModel"]


class BreakerModel:
    """The model of a breaker without jitter; an era is a stretch of time whose permits speak for the same state."""

    def __init__(self, config: BreakerConfig) -> None:
        self.config = config
        self.state = "closed"
        self.transitions: list[tuple[str, str]] = []
        self.era = 0
        self.open_until = 0.0
        self.probe_until: float | None = None
        self._trips = 0
        self._answers: list[tuple[float, bool]] = []

    def ask(self, now: float) -> int | None:
        """The era of the permit that is given, or ``None``."""
        if self.state == "closed":
            return self.era
        if self.state == "open" and now >= self.open_until:
            self._go("half_open", now)
        if self.state == "open" or (self.probe_until is not None and now < self.probe_until):
            return None
        self.era += 1
        self.probe_until = now + self.config.lease
        return self.era

    def answer(self, now: float, era: int, failed: bool | None) -> None:
        """``failed`` is ``None`` for an answer that says nothing."""
        if era != self.era:
            return
        if self.state == "half_open":
            self.probe_until = None
            if failed is not None:
                self._go("open" if failed else "closed", now)
        elif self.state == "closed" and failed is not None:
            self._answers.append((now, failed))
            if failed and self._too_many(now):
                self._go("open", now)

    def reset(self, now: float) -> None:
        self._go("closed", now)
        self.era += 1

    def retry_in(self, now: float) -> float:
        return max(0.0, self.open_until - now) if self.state == "open" else 0.0

    def _too_many(self, now: float) -> bool:
        config = self.config
        row = [failed for _, failed in self._answers[-config.failures :]]
        if len(row) == config.failures and all(row):
            return True
        recent = [failed for at, failed in self._answers[-config.window_calls :] if at > now - config.window]
        return len(recent) >= config.minimum_calls and sum(recent) / len(recent) >= config.failure_rate - 1e-12

    def _go(self, state: str, now: float) -> None:
        if state != self.state:
            self.transitions.append((self.state, state))
        self.state = state
        self.era += 1
        self.probe_until = None
        if state == "closed":
            self._answers, self._trips = [], 0
        if state == "open":
            wait = self.config.first_wait * self.config.factor**self._trips
            self.open_until = now + min(wait, self.config.longest_wait)
            self._trips += 1
