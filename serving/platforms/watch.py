"""Watching a canary from both sides: the release's own questions, and what Cloud Monitoring saw of everybody's.

A service's own /metrics would not do. Each instance counts for itself, so that an address with ten of them behind it
answers with one at random, and none counts the request that killed it. Cloud Monitoring counts at Cloud Run's front,
per revision, but about three minutes late, only what happened to be asked, and never whether an answer was right.
So golden pairs are asked of both revisions under their tags' addresses for as long as the window lasts: a wrong
answer ends the canary at once, and there are always enough requests to compare.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession

from layer3.agent.policy import Policy
from layer3.errors import ReleaseError, SourceError
from serving import proof
from serving.canary import Comparison, Tally, percentile
from serving.platforms.run_api import LONGEST_PAUSE, retry_after
from serving.platforms.tagged import Tagged
from serving.platforms.target import Target

__all__ = ["Canary", "Monitoring", "Watch", "Watcher"]

_MONITORING: Final = "https://monitoring.googleapis.com"
_CALL_SECONDS: Final = 30.0
_SHORTEST_PERIOD: Final = 60
#: Questions in a window, to each side; never closer together than this many seconds.
_QUESTIONS: Final = 300
_CLOSEST: Final = 0.005
_ATTEMPTS: Final = 4
_MAY_PASS: Final = (429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Canary:
    """Who is watched: the candidate's revision and address, its policy, the champion's beside it, since when."""

    policy: Policy
    revision: str
    server: Tagged
    champion_revision: str
    champion_server: Tagged | None
    since: datetime


class Watcher(Protocol):
    """Watches a canary for ``seconds``; a ReleaseError as soon as the candidate answers wrongly."""

    def __call__(self, canary: Canary, seconds: float) -> list[Comparison]: ...


@dataclass
class _Side:
    """What one side answered so far."""

    server: Tagged
    requests: int = 0
    errors: int = 0
    seconds: list[float] = field(default_factory=list)

    def ask(self, state: list[float]) -> tuple[int, Any] | None:
        """Status and body of the answer; None where it failed to give one, which is counted."""
        self.requests += 1
        try:
            seconds, status, body = self.server.timed("POST", "/predict", {"state": state})
        except proof.NO_ANSWER:
            self.errors += 1
            return None
        self.seconds.append(seconds)
        if status < 500:
            return status, body
        self.errors += 1
        return None

    def tally(self) -> Tally:
        return Tally(self.requests, self.errors, percentile(self.seconds, 99))


class Watch:
    """The watcher of Cloud Run."""

    def __init__(
        self,
        monitoring: Callable[[str, datetime], Tally],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._monitoring = monitoring
        self._clock = clock
        self._sleep = sleep

    def __call__(self, canary: Canary, seconds: float) -> list[Comparison]:
        found = [self._questions(canary, seconds)]
        champion = self._monitoring(canary.champion_revision, canary.since) if canary.champion_server else None
        found.append(Comparison("at Cloud Run's front", self._monitoring(canary.revision, canary.since), champion))
        return found

    def _questions(self, canary: Canary, seconds: float) -> Comparison:
        golden = canary.policy.manifest["golden"]
        candidate = _Side(canary.server)
        champion = _Side(canary.champion_server) if canary.champion_server else None
        end, pause, index = self._clock() + seconds, max(seconds / _QUESTIONS, _CLOSEST), 0
        while index < len(golden) or self._clock() < end:
            pair = index % len(golden)
            if champion is not None:
                champion.ask(golden[pair]["state"])
            answer = candidate.ask(golden[pair]["state"])
            if answer is not None:
                proof.check_pair(canary.policy, pair, proof.prediction(canary.policy, *answer))
            index += 1
            if candidate.errors == index == len(golden):
                raise ReleaseError(f"the candidate has not answered one of {index} questions")
            self._sleep(pause)
        return Comparison("our questions", candidate.tally(), champion.tally() if champion else None)


class Monitoring:
    """What Cloud Monitoring counted of one revision at Cloud Run's front."""

    def __init__(
        self,
        target: Target,
        credentials: Any,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
        self._target = target
        self._now = now
        self._sleep = sleep
        root = target.endpoints.monitoring or _MONITORING
        self._address = f"{root}/v3/projects/{target.project}/timeSeries"

    def __call__(self, revision: str, since: datetime) -> Tally:
        """Requests of ``revision`` from ``since`` on, as far as they are known by now.

        Raises
        ------
        SourceError : Cloud Monitoring does not answer or refuses
        """
        counts = self._read(revision, since, "request_count", "REDUCE_SUM", "metric.labels.response_code_class")
        requests = errors = 0
        for series in counts:
            total = sum(int(point["value"].get("int64Value", 0)) for point in series["points"])
            requests += total
            if series["metric"]["labels"]["response_code_class"] == "5xx":
                errors += total
        slowest = self._read(revision, since, "request_latencies", "REDUCE_PERCENTILE_99")
        values = [float(point["value"]["doubleValue"]) for series in slowest for point in series["points"]]
        return Tally(requests, errors, max(values) / 1e3 if values else None)

    def _read(self, revision: str, since: datetime, metric: str, reducer: str, *group: str) -> list[dict[str, Any]]:
        until = self._now()
        period = max(_SHORTEST_PERIOD, int((until - since).total_seconds()) + 1)
        asked = {
            "filter": f'metric.type="run.googleapis.com/{metric}" AND resource.type="cloud_run_revision" AND '
            f'resource.labels.service_name="{self._target.service}" AND resource.labels.revision_name="{revision}"',
            "interval.startTime": since.isoformat(),
            "interval.endTime": until.isoformat(),
            "aggregation.alignmentPeriod": f"{period}s",
            "aggregation.perSeriesAligner": "ALIGN_DELTA",
            "aggregation.crossSeriesReducer": reducer,
            **({"aggregation.groupByFields": list(group)} if group else {}),
        }
        last = ""
        for attempt in range(_ATTEMPTS):
            pause = 2.0**attempt
            try:
                answer = self._session.get(self._address, params=asked, timeout=_CALL_SECONDS)
            except (OSError, GoogleAuthError) as error:
                last = " ".join(str(error).split())
            else:
                if answer.status_code == 200:
                    return list(answer.json().get("timeSeries", []))
                last = f"HTTP {answer.status_code}: {answer.text[:200]}"
                if answer.status_code not in _MAY_PASS:
                    break
                asked_for = retry_after(answer.headers)
                pause = pause if asked_for is None else min(asked_for, LONGEST_PAUSE)
            self._sleep(pause)
        raise SourceError(
            f"Cloud Monitoring does not tell how {revision} fares ({last}): grant this account "
            f"roles/monitoring.viewer on project {self._target.project}, then run the same command again"
        )
