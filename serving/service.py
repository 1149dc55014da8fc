"""The model that this process serves: loaded beside the requests, verified, and swapped in one assignment.

``MODEL_URI`` names a policy folder, which never changes, or a channel file, which is looked at again and
again. One thread looks, loads, verifies and warms; whoever answers requests only reads
:attr:`Service.current`. What is offered and bad is refused, what cannot be reached is waited for; both are
counted, logged once and shown by :meth:`Service.status`, and what serves goes on serving.
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from math import ceil
from pathlib import Path
from typing import Any, Final

from layer3 import contract
from layer3.agent.policy import Policy
from layer3.champion import CHANNEL, Champion, Channel, load_champion, load_folder
from layer3.errors import ConfigurationError, HimariError, PolicyError, ReleaseError, SourceError
from serving.problems import Problem
from serving.source import Source

__all__ = ["Refusal", "Service", "Serving"]

#: What was refused is tried again after this many seconds at the latest.
_LONGEST_PAUSE: Final = 60.0
#: Seconds between two lines of the log that say that the source does not answer.
_QUIET: Final = 60.0
#: Answers that a new model gives before the first that counts.
_WARMING: Final = 64
#: Seconds that another thread may hold the interpreter while a request waits; by default they are 5 ms.
_SWITCH: Final = 0.0005
#: What /status tells of the data; where they came from may be somebody's path.
_TRAINED_ON: Final = ("start", "end", "sha256", "interval_seconds")
#: Before anything was offered.
_NOTHING: Final = object()
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
class Refusal:
    """Why the last offer was refused: ``reason`` in a sentence, ``kind`` of error, ``at`` which time (ISO, UTC)."""

    reason: str
    kind: str
    at: str


class Service:
    """One model, or the reason why there is none.

    ``clock`` is monotonic seconds, ``wall`` seconds since 1970. :attr:`current` is None until a model
    serves; it and the counters may be read from any thread. ``swaps`` counts models taken up in place of
    another, ``refusals`` offers that were refused, ``unreachable`` looks that the source did not answer.
    """

    def __init__(
        self,
        model_uri: str,
        *,
        watch_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.current: Serving | None = None
        self.draining = False
        self.swaps = 0
        self.refusals = 0
        self.unreachable = 0
        self.refused: Refusal | None = None
        self._uri = model_uri
        self._source = Source()
        self._watches = model_uri.endswith(".json")
        self._watch_seconds = watch_seconds
        self._clock, self._wall = clock, wall
        self._started = clock()
        self._absence = "the model is being loaded"
        self._looked = False
        self._taken: object = _NOTHING
        self._offered: object = _NOTHING
        self._attempts = 0
        self._retry_at = 0.0
        self._quiet_until = -_QUIET
        self._interval = _SWITCH
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def uptime(self) -> float:
        """Seconds since this object was made."""
        return self._clock() - self._started

    def start(self) -> None:
        """Begin to load, and to look at a channel, in a thread of its own."""
        # While a model is loaded its thread computes; a request that comes then waits for the interpreter.
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH)
        # A daemon, because a bucket that never answers must not keep SIGTERM from ending the server.
        self._thread = threading.Thread(target=self._follow, name="model", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking; a load under way is not waited for longer than a second."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(1.0)
            sys.setswitchinterval(self._interval)

    def drain(self) -> None:
        """Say "draining" at /health from now on; predictions are still answered."""
        self.draining = True

    def require(self) -> Serving:
        """The model that serves, or a Problem 503 that says why there is none."""
        if (serving := self.current) is not None:
            return serving
        wait = str(ceil(self._watch_seconds) if self._looked else 1)
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE, f"no model serves: {self._absence}", headers={"Retry-After": wait}
        )

    def health(self) -> tuple[HTTPStatus, dict[str, Any]]:
        """Status and body of /health."""
        serving = self.current
        status = "ready" if serving else "unavailable" if self._looked else "loading"
        body: dict[str, Any] = {
            "status": "draining" if self.draining else status,
            "model_version": serving.model_version if serving else None,
            "contract": contract.VERSION,
            "uptime_seconds": round(self.uptime, 3),
        }
        if serving and not self.draining:
            return HTTPStatus.OK, body
        reason = "the server is being stopped" if self.draining else self._absence
        return HTTPStatus.SERVICE_UNAVAILABLE, {**body, "reason": reason}

    def status(self) -> dict[str, Any]:
        """Body of /status, without the requests, which are counted elsewhere."""
        serving, refused = self.current, self.refused
        return {
            **self.health()[1],
            "model": None if serving is None else _describe(serving),
            "watching": "a channel" if self._watches else "nothing: a policy folder never changes",
            "swaps": self.swaps,
            "refusals": self.refusals,
            "unreachable": self.unreachable,
            "refused": None if refused is None else {"reason": refused.reason, "at": refused.at},
        }

    def look(self) -> float | None:
        """Look at the source once and take up what is new; seconds until the next look, or None for never again.

        Never raises: it is the outermost frame of its thread, and an unready server beats a silent one.
        """
        content: bytes | None = None
        try:
            if not self._uri:
                raise ConfigurationError("MODEL_URI is not set: name a policy folder or a channel file, local or gs://")
            content = self._source.follow(self._uri) if self._watches else None
            if content == self._taken:
                self._offered, self._attempts, self.refused = _NOTHING, 0, None
                return self._pause()
            if content == self._offered and self._clock() < self._retry_at:
                return self._pause()
            self._take(content)
        except ConfigurationError as error:
            self._refuse(error, content, self._nameless(str(error)))
            return None
        except (SourceError, OSError) as error:
            self._miss(error)
        except HimariError as error:
            self._refuse(error, content, self._nameless(str(error)))
        except Exception as error:  # noqa: BLE001  # _refuse logs it with its traceback
            self._refuse(error, content, f"{type(error).__name__}, which nobody expected: see the server's log")
        else:
            self._taken, self._offered, self._attempts, self.refused = content, _NOTHING, 0, None
            return self._pause() if self._watches else None
        finally:
            self._looked = True
        return self._pause() if self._watches else max(self._pause(), self._retry_at - self._clock())

    def _follow(self) -> None:
        while not self._ended.is_set():
            pause = self.look()
            if pause is None:
                break
            self._ended.wait(pause)
        self._source.close()

    def _pause(self) -> float:
        # Servers that started together need not ask together.
        return self._watch_seconds * random.uniform(0.9, 1.1)

    def _take(self, content: bytes | None) -> None:
        """Let the model serve that ``content`` of the channel names, or the folder's."""
        if content is None:
            self._serve(load_folder(self._uri, self._source.read), None)
            return
        store, champion = _store_of(self._uri), Channel.from_json(content, self._uri).champion
        serving = self.current
        named = (champion.model_id, champion.policy_sha256)
        if serving is not None and (serving.model_version, serving.sha256) == named:
            self.current = replace(serving, released_at=champion.released_at, run_id=champion.run_id)
            return
        policy = load_champion(store, champion, self._source.read)
        if policy.model_id != champion.model_id:
            raise PolicyError(
                f"the channel names model {champion.model_id}, the files there say that they are {policy.model_id}: "
                "release again"
            )
        self._serve(policy, champion)

    def _serve(self, policy: Policy, champion: Champion | None) -> None:
        manifest = policy.manifest
        state = manifest["golden"][0]["state"]
        for _ in range(_WARMING):
            policy.act(state)
        data = manifest["data"]
        before = self.current
        self.current = Serving(
            policy,
            policy.model_id,
            manifest["policy_sha256"],
            {
                **{name: data[name] for name in _TRAINED_ON if name in data},
                **{name: manifest[name] for name in ("symbol", "synthetic") if name in manifest},
            },
            self._now(),
            champion.released_at if champion else None,
            champion.run_id if champion else None,
        )
        instead = "" if before is None else f" in place of {before.model_version}"
        self.swaps += before is not None
        logger.info("model %s is ready%s, state contract %s", policy.model_id, instead, contract.VERSION)

    def _refuse(self, error: Exception, content: bytes | None, reason: str) -> None:
        """Keep what serves, and why the offer is none; the same one is tried again at growing intervals."""
        if content != self._offered:
            self.refusals += 1
            self._attempts = 0
            logger.error("%s: %s", self._standing(), error, exc_info=not isinstance(error, HimariError))
        self._offered = content
        self.refused = Refusal(reason, type(error).__name__, self._now())
        self._absence = reason
        self._attempts += 1
        self._retry_at = self._clock() + min(self._watch_seconds * 2.0**self._attempts, _LONGEST_PAUSE)

    def _miss(self, error: Exception) -> None:
        """Keep what serves, and look again."""
        self.unreachable += 1
        if isinstance(error, FileNotFoundError):
            self._absence = f"there is nothing at {self._nameless(str(error.filename))}"
        else:
            self._absence = "the store of models cannot be read"
        self._retry_at = 0.0
        if self._clock() >= self._quiet_until:
            self._quiet_until = self._clock() + _QUIET
            logger.error("%s: %s", self._standing(), error)

    def _standing(self) -> str:
        serving = self.current
        return f"not ready, {self._uri}" if serving is None else f"{serving.model_version} stays, {self._uri}"

    def _nameless(self, text: str) -> str:
        """``text`` for a caller's eyes, who need not know where our files lie."""
        folder = self._uri.rstrip("/").rpartition("/")[0].removesuffix(f"/{CHANNEL[0]}")
        spellings = {folder} if "://" in folder else {folder, str(Path(folder))}
        for spelling in spellings - {"", "."}:
            text = text.replace(f"{spelling}/", "")
        return text

    def _now(self) -> str:
        return datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="seconds")


def _describe(serving: Serving) -> dict[str, Any]:
    return {
        "id": serving.model_version,
        "sha256": serving.sha256,
        "contract": contract.VERSION,
        "members": serving.policy.members,
        "trained_on": dict(serving.trained_on),
        "released_at": serving.released_at,
        "run_id": serving.run_id,
        "loaded_at": serving.loaded_at,
    }


def _store_of(channel_uri: str) -> str:
    suffix = "/".join(CHANNEL)
    if channel_uri == suffix:
        return "."
    root = channel_uri.removesuffix("/" + suffix)
    if root == channel_uri:
        raise ReleaseError(f"{channel_uri}: expected a policy folder or …/{suffix}, which lies beside models/")
    return root or "/"
