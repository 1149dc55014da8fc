"""What a server must prove before it may serve: that it is ready, who it is, and that it answers as was trained.

The server may be a process beside this one or a revision on Cloud Run; what is asked is the same.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from layer3 import contract
from layer3.agent.policy import Policy
from layer3.agent.policy_file import PARITY
from layer3.errors import ReleaseError

__all__ = ["NO_ANSWER", "Server", "check_pair", "check_parity", "predict", "prediction", "wait_until_ready"]

#: What asking raises when there is no answer.
NO_ANSWER: Final = (OSError, http.client.HTTPException)
_POLL_SECONDS: Final = 0.05


class Server(Protocol):
    """A server under test. ``where`` names it in errors."""

    @property
    def where(self) -> str: ...

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """One request; status and parsed body. One of :data:`NO_ANSWER` when there is no answer."""

    def require_alive(self, patience_seconds: float = 0.0) -> None:
        """A ReleaseError if it is known to have ended; a fresh silence is given time to show its reason."""

    def log_tail(self) -> str:
        """The end of its log for an error's message, or where to find it."""


def wait_until_ready(
    server: Server,
    policy: Policy,
    seconds: float,
    *,
    settling: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until ``/health`` says that ``policy`` serves; give up at once when it cannot any more.

    ``settling``: the address may still lead to the server that had it before.
    """
    deadline = clock() + seconds
    while True:
        server.require_alive()
        try:
            status, body = server.ask("GET", "/health")
        except NO_ANSWER as error:
            last = f"no answer ({error})"
        else:
            if status == 200:
                stranger = _stranger(server, policy, body)
                if stranger is None:
                    return
                if not settling:
                    raise ReleaseError(stranger)
                last = stranger
            else:
                last = f"HTTP {status}: {body.get('reason') or body}" if isinstance(body, dict) else f"HTTP {status}"
                if isinstance(body, dict) and body.get("status") == "unavailable":
                    raise ReleaseError(f"the candidate's server cannot load the model: {body.get('reason')}")
        if clock() > deadline:
            raise ReleaseError(
                f"the candidate's server was not ready within {seconds:g} s; last: {last}; {server.log_tail()}"
            )
        sleep(_POLL_SECONDS)


def predict(server: Server, policy: Policy, state: Sequence[float]) -> tuple[float, float]:
    """Multiplier and confidence that the server answers to ``state``; a ReleaseError if it is no such answer."""
    try:
        status, body = server.ask("POST", "/predict", {"state": list(state)})
    except NO_ANSWER as error:
        # A dying process drops its connections a moment before its status can be read.
        server.require_alive(patience_seconds=0.5)
        raise ReleaseError(f"/predict gave no answer: {error!r}") from error
    return prediction(policy, status, body)


def prediction(policy: Policy, status: int, body: Any) -> tuple[float, float]:
    """Multiplier and confidence of an answer to ``/predict``; a ReleaseError if ``policy`` gives no such answer."""
    if status != 200:
        detail = body.get("detail", body) if isinstance(body, dict) else body
        raise ReleaseError(f"/predict answered HTTP {status}: {detail}")
    try:
        multiplier, confidence = float(body["position_multiplier"]), float(body["confidence"])
        version = body["model_version"]
    except (KeyError, TypeError, ValueError) as error:
        raise ReleaseError(f"/predict answered {body!r}, which lacks what the API promises ({error!r})") from error
    if version != policy.model_id:
        raise ReleaseError(f"/predict was answered by model {version!r}, expected {policy.model_id}")
    in_range = contract.MULTIPLIER_LOW <= multiplier <= contract.MULTIPLIER_HIGH and 0.0 <= confidence <= 1.0
    if not in_range:
        raise ReleaseError(f"/predict answered multiplier {multiplier}, confidence {confidence}: out of range")
    return multiplier, confidence


def check_pair(policy: Policy, index: int, answer: tuple[float, float]) -> float:
    """The largest difference of an ``answer`` to golden pair ``index``; a ReleaseError above ``PARITY``."""
    pair = policy.manifest["golden"][index]
    worst = 0.0
    for name, got in zip(("multiplier", "confidence"), answer, strict=True):
        difference = abs(got - float(pair[name]))
        if not difference <= PARITY:
            raise ReleaseError(
                f"golden pair {index}: the served {name} is {got!r}, training said {pair[name]!r} "
                f"(allowed difference {PARITY:.0e}): what serves is not the network that was trained"
            )
        worst = max(worst, difference)
    return worst


def check_parity(server: Server, policy: Policy) -> float:
    """Ask all golden pairs; the largest difference, or a ReleaseError that names the first pair above ``PARITY``."""
    worst = 0.0
    for index, pair in enumerate(policy.manifest["golden"]):
        worst = max(worst, check_pair(policy, index, predict(server, policy, pair["state"])))
    server.require_alive()
    return worst


def _stranger(server: Server, policy: Policy, body: Any) -> str | None:
    found = (body.get("model_version"), body.get("contract")) if isinstance(body, dict) else body
    if found == (policy.model_id, contract.VERSION):
        return None
    return (
        f"{server.where} is answered by {found!r}, expected model {policy.model_id} under contract "
        f"{contract.VERSION}: another server holds the address, or the wrong model was loaded"
    )
