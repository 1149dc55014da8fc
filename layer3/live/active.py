"""A configuration and what is made from it; the engine exchanges it as a whole."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from layer3.breaker import CircuitBreaker, State
from layer3.errors import ConfigurationError
from layer3.live.configuration import Layer3Config
from layer3.live.sources import Asker, Multipliers, Pace, Sources, load_local
from layer3.net.tokens import metadata_tokens
from layer3.remote import PolicyClient
from layer3.types import LOCAL_MODEL

__all__ = ["Active", "Connect", "connect", "prepare"]

#: Makes the client of the served policy; the breaker is the engine's.
Connect = Callable[[Layer3Config, CircuitBreaker], Asker]
#: Seconds between two lines about a server that refuses what we send.
_TOLD_AGAIN_S: Final = 60.0
_log = logging.getLogger(__name__)


class Active(NamedTuple):
    """The configuration that sizes, its hash, and who is asked; ``client`` is ``None`` where no server is, and so
    is its ``breaker``."""

    config: Layer3Config
    digest: str
    sources: Multipliers
    client: Asker | None = None
    breaker: CircuitBreaker | None = None


def connect(config: Layer3Config, breaker: CircuitBreaker) -> PolicyClient:
    """The client of the server that ``config`` names; a ConfigurationError where it names none or cannot be used."""
    policy = config.policy
    if policy.endpoint is None:
        raise ConfigurationError("policy.endpoint is not given: there is no server to ask")
    tokens = metadata_tokens(policy.endpoint) if policy.authenticate else None
    return PolicyClient(
        policy.endpoint,
        timeout_s=policy.timeout_ms / 1_000.0,
        breaker=breaker,
        token_source=tokens,
        api_key_file=None if policy.api_key_file is None else Path(policy.api_key_file),
    )


def prepare(
    config: Layer3Config,
    make: Connect,
    rng: np.random.Generator,
    timer: Callable[[], float],
    count: Callable[[str], None],
    before: Active | None,
    instead: Multipliers | None = None,
) -> Active:
    """Everything that ``config`` asks for, taking over from ``before`` the client and the breaker if they can stay.

    ``rng`` and ``timer`` (seconds) are the breaker's; ``count`` is told of each refused key or token, by the word
    :data:`layer3.live.sources.UNAUTHORISED`; ``instead`` is asked in the place of all that ``config`` names.

    Raises
    ------
    ConfigurationError, PolicyError, ContractError, ReleaseError : a policy cannot be reached or trusted as said
    """
    policy, digest, pace = config.policy, config.digest(), Pace(_TOLD_AGAIN_S)
    if instead is not None:
        return Active(config, digest, instead)
    if not policy.enabled:
        return Active(config, digest, Sources(None, None, ("policy.enabled is false",), 1.0, pace, count))
    local = None if policy.model_path is None else load_local(policy.model_path)
    missing = () if local is not None else (f"{LOCAL_MODEL}: policy.model_path is not given",)
    if config.deployment_mode == "local":
        if local is None:
            _log.warning("the policy is enabled but there is none to ask: every multiplier is the fallback's")
        return Active(config, digest, Sources(None, local, missing, policy.fallback_multiplier, pace, count))
    if before is not None and before.breaker is not None and _call(before.config) == _call(config):
        breaker, client = before.breaker, before.client
    else:
        # A probe that may still be answered is not given up: there would be two.
        lease = max(config.breaker.lease, 1.0 + policy.timeout_ms / 1_000.0)
        breaker = CircuitBreaker(dataclasses.replace(config.breaker, lease=lease), clock=timer, rng=rng)
        breaker.listeners.append(_say)
        client = make(config, breaker)
    sources = Sources(client, local, missing, policy.fallback_multiplier, pace, count)
    return Active(config, digest, sources, client, breaker)


def _say(before: State, now: State, why: str) -> None:
    _log.log(
        logging.INFO if now == "closed" else logging.WARNING,
        "the breaker before the served policy has turned",
        extra={"before": before, "now": now, "why": why},
    )


def _call(config: Layer3Config) -> tuple[object, ...]:
    """What a client and its breaker are made from."""
    policy = config.policy
    return policy.endpoint, policy.timeout_ms, policy.authenticate, policy.api_key_file, config.breaker
