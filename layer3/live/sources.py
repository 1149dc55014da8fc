"""Who gives the multiplier: the served champion, else the policy file on this machine, else the fallback."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from layer3 import champion
from layer3.agent.policy import Policy
from layer3.errors import ContractError, PolicyError, RefusedError, SourceError, UnauthorisedError
from layer3.remote import RemoteAnswer
from layer3.types import FALLBACK_KELLY, GCP_API, LOCAL_MODEL

__all__ = ["UNAUTHORISED", "Answer", "Asker", "Multipliers", "Pace", "Sources", "load_local"]

#: Counted when the server refuses the key or the token of a call.
UNAUTHORISED: Final = "unauthorised"
_log = logging.getLogger(__name__)


class Asker(Protocol):
    """What :class:`layer3.remote.PolicyClient` offers; its errors are SourceError and ContractError."""

    def ask(self, state: NDArray[np.float32], request_id: str | None = None) -> RemoteAnswer:
        """The multiplier for ``state`` (16,), in time."""

    async def aask(self, state: NDArray[np.float32], request_id: str | None = None) -> RemoteAnswer:
        """The same for callers in an event loop."""

    def close(self) -> None:
        """Let go of the connections."""


class Answer(NamedTuple):
    """A multiplier in [0, 2] and who gave it; ``passed_over`` is who did not, each with the reason."""

    multiplier: float
    source: str
    confidence: float | None = None
    model_version: str | None = None
    passed_over: tuple[str, ...] = ()


class Multipliers(Protocol):
    """Who the engine asks; never raises. :class:`Sources`, or for a replay what was answered then."""

    def ask(self, state: NDArray[np.float32], request_id: str) -> Answer:
        """The answer for ``state`` (16,)."""

    async def aask(self, state: NDArray[np.float32], request_id: str) -> Answer:
        """:meth:`ask` for callers in an event loop."""

    def nobody(self, why: str) -> Answer:
        """The answer where ``why`` makes the size zero whatever anybody says."""


class Pace:
    """Says yes at most once in ``seconds``; of two threads at one moment both may be told so."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._next = -math.inf

    def due(self) -> bool:
        """Whether it is time."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


class Sources(NamedTuple):
    """In the order in which they are asked; ``None`` where there is no such source.

    ``missing`` says of those that are not there why, ``fallback`` is the multiplier where nobody answers, ``pace`` when
    a server that refuses what we send is to be told of again, and ``tell`` is called with :data:`UNAUTHORISED`.
    """

    client: Asker | None
    policy: Policy | None
    missing: tuple[str, ...]
    fallback: float
    pace: Pace
    tell: Callable[[str], None]

    def ask(self, state: NDArray[np.float32], request_id: str) -> Answer:
        """The first answer for ``state`` (16,); a source that does not answer is named, never an error."""
        if self.client is None:
            return self._here(state, self.missing)
        try:
            return _remote(self.client.ask(state, request_id))
        except (SourceError, ContractError) as error:
            return self._here(state, (self._passed_over(error), *self.missing))

    async def aask(self, state: NDArray[np.float32], request_id: str) -> Answer:
        """:meth:`ask` for callers in an event loop."""
        if self.client is None:
            return self._here(state, self.missing)
        try:
            return _remote(await self.client.aask(state, request_id))
        except (SourceError, ContractError) as error:
            return self._here(state, (self._passed_over(error), *self.missing))

    def nobody(self, why: str) -> Answer:
        """The fallback without asking anybody."""
        return Answer(self.fallback, FALLBACK_KELLY, passed_over=(why,))

    def _passed_over(self, error: SourceError | ContractError) -> str:
        unknown = isinstance(error, UnauthorisedError)
        if unknown:
            self.tell(UNAUTHORISED)
        if isinstance(error, RefusedError) and self.pace.due():
            # The server is well: what we send is wrong, and no waiting mends that.
            what = "the key or token of this program" if unknown else "what this program sends"
            _log.error(f"the policy's server refuses {what}", extra={"error": str(error)})
        return f"{GCP_API}: {error}"

    def _here(self, state: NDArray[np.float32], passed_over: tuple[str, ...]) -> Answer:
        if self.policy is None:
            return Answer(self.fallback, FALLBACK_KELLY, passed_over=passed_over)
        multiplier, confidence = self.policy.act(state)
        return Answer(float(multiplier), LOCAL_MODEL, float(confidence), self.policy.model_id, passed_over)


def load_local(path: str) -> Policy:
    """The verified policy of a policy folder, or the champion of a local store.

    Raises
    ------
    PolicyError, ContractError, ReleaseError : there is none, or it cannot be trusted
    """
    try:
        if Path(path, *champion.CHANNEL).exists():
            found = champion.load(path)
            if found is not None:
                return found
        return champion.load_verified(Path(path))
    except OSError as error:
        raise PolicyError(f"cannot read the policy at {path}: {error.strerror}: {error.filename}") from error


def _remote(answer: RemoteAnswer) -> Answer:
    return Answer(answer.multiplier, GCP_API, answer.confidence, answer.model_version)
