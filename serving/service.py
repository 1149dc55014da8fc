"""The model that this process serves: loaded beside the requests, verified, and swapped in one assignment.

``MODEL_URI`` names a policy folder, which never changes, or a channel file, which is watched. A
thread looks, loads, verifies and warms; the event loop only reads :attr:`Service.current`. What is
new and bad is refused, what cannot be reached is waited for, and both are visible in
:meth:`Service.status` while the model that serves goes on serving.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from layer3 import contract, storage
from layer3.agent.policy import Policy
from layer3.champion import CHANNEL, Champion, Channel, load_champion, load_folder
from layer3.errors import PolicyError, ReleaseError
from serving.problems import Problem

__all__ = ["Service", "Serving"]

#: A failed attempt is made again after this many looks, then twice as many, up to the second number.
_LONGEST_PAUSE: Final = 60.0
logger = logging.getLogger("serving")


@dataclass(frozen=True, slots=True)
class Serving:
    """A verified model. Times are ISO, UTC; ``released_at`` and ``run_id`` are known of a channel's champion."""

    policy: Policy
    model_version: str
    sha256: str
    trained_on: Mapping[str, Any]
    loaded_at: str
    released_at: str | None = None
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why the last attempt failed, as one who calls may read it (``reason``) and as it is logged (``detail``)."""

    reason: str
    detail: str
    at: str
    model_version: str | None = None


class Service:
    """One model, or the reason why there is none.

    ``clock`` is monotonic seconds, ``wall`` seconds since 1970. :attr:`current` may be read from any
    thread; nothing else here is meant for a hot path.
    """

    def __init__(
        self,
        model_uri: str,
        *,
        watch_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.model_uri = model_uri
        self.watch_seconds = watch_seconds
        self.current: Serving | None = None
        self.draining = False
        self.swaps = 0
        self.refusals = 0
        self.unreachable = 0
        self.refused: _Trouble | None = None
        self._loading = True
        self._clock, self._wall = clock, wall
        self._started = clock()
        self._failures = 0
        self._seen: object = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def watches(self) -> bool:
        """Whether the model may change while the server runs."""
        return self.model_uri.endswith(".json")

    @property
    def uptime(self) -> float:
        """Seconds since this object was made."""
        return self._clock() - self._started

    def start(self) -> None:
        """Begin to load, and to watch a channel, in a thread of its own."""
        # A daemon, because a bucket that never answers must not keep SIGTERM from ending the server.
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching; a load under way is not waited for longer than a second."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def drain(self) -> None:
        """Say "draining" at /health from now on; predictions are still answered."""
        self.draining = True

    def require(self) -> Serving:
        """The model that serves, or a Problem 503 that says why there is none."""
        serving = self.current
        if serving is None:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE, f"no model serves: {self._reason()}", headers={"Retry-After": "1"}
            )
        return serving

    def health(self) -> tuple[HTTPStatus, dict[str, Any]]:
        """Status and body of /health."""
        serving = self.current
        status = "ready" if serving else "loading" if self._loading else "unavailable"
        body: dict[str, Any] = {
            "status": "draining" if self.draining else status,
            "model_version": serving.model_version if serving else None,
            "contract": contract.VERSION,
            "uptime_seconds": round(self.uptime, 3),
        }
        if serving and not self.draining:
            return HTTPStatus.OK, body
        reason = "the server is being stopped" if self.draining else self._reason()
        return HTTPStatus.SERVICE_UNAVAILABLE, {**body, "reason": reason}

    def status(self) -> dict[str, Any]:
        """Body of /status, without the requests that were counted elsewhere."""
        serving, refused = self.current, self.refused
        return {
            **self.health()[1],
            "model": None
            if serving is None
            else {
                "id": serving.model_version,
                "sha256": serving.sha256,
                "contract": contract.VERSION,
                "members": serving.policy.members,
                "trained_on": dict(serving.trained_on),
                "released_at": serving.released_at,
                "run_id": serving.run_id,
                "loaded_at": serving.loaded_at,
            },
            "watching": "a channel" if self.watches else "nothing: a model folder never changes",
            "swaps": self.swaps,
            "refusals": self.refusals,
            "unreachable": self.unreachable,
            "refused": None
            if refused is None
            else {"reason": refused.reason, "at": refused.at, "model_version": refused.model_version},
        }

    def _reason(self) -> str:
        return self.refused.reason if self.refused else "the model is being loaded"

    def _run(self) -> None:
        while not self._ended.is_set():
            pause = self._look()
            if pause is None:
                return
            self._ended.wait(pause)

    def _look(self) -> float | None:
        """One look at the source; seconds until the next one, or None where there is nothing more to look for."""
        try:
            self._take()
        except Exception as error:
            self._loading = False
            self._fail(error)
            return min(self.watch_seconds * 2.0**self._failures, _LONGEST_PAUSE)
        self._loading = False
        self._failures = 0
        return self.watch_seconds * random.uniform(0.9, 1.1) if self.watches else None

    def _take(self) -> None:
        if not self.model_uri:
            raise PolicyError("MODEL_URI is not set: name a policy folder or a channel file, local or gs://")
        if not self.watches:
            self._install(load_folder(self.model_uri), None)
            return
        content = storage.read_bytes(self.model_uri)
        if content == self._seen:
            return
        champion = Channel.from_json(content, self.model_uri).champion
        serving = self.current
        if serving and (serving.model_version, serving.sha256) == (champion.model_id, champion.policy_sha256):
            self.current = replace(serving, released_at=champion.released_at, run_id=champion.run_id)
        else:
            self._install(load_champion(_store_of(self.model_uri), champion), champion)
        self._seen, self.refused = content, None

    def _install(self, policy: Policy, champion: Champion | None) -> None:
        swapped = self.current is not None
        self.current = Serving(
            policy,
            policy.model_id,
            policy.manifest["policy_sha256"],
            policy.manifest.get("data", {}),
            self._now(),
            champion.released_at if champion else None,
            champion.run_id if champion else None,
        )
        self.swaps += swapped
        logger.info("model %s is ready, state contract %s", policy.model_id, contract.VERSION)

    def _fail(self, error: Exception) -> None:
        self._failures += 1
        self.refusals += 1
        self.refused = _Trouble(str(error), str(error), self._now())
        logger.error("not ready: %s", error)

    def _now(self) -> str:
        return datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="seconds")


def _store_of(channel_uri: str) -> str:
    suffix = "/".join(CHANNEL)
    root = channel_uri.removesuffix("/" + suffix)
    if root == channel_uri and channel_uri != suffix:
        raise ReleaseError(f"{channel_uri}: expected a policy folder or …/{suffix}, which lies beside models/")
    return "." if channel_uri == suffix else root or "/"
