"""A configuration and what is made from it; the engine exchanges it as a whole."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from layer3.breaker import CircuitBreaker
from layer3.errors import ConfigurationError
from layer3.live.configuration import Layer3Config
from layer3.live.sources import Asker, Sources, load_local
from layer3.net.tokens import metadata_tokens
from layer3.remote import PolicyClient
from layer3.types import LOCAL_MODEL

__all__ = ["Active", "Connect", "connect", "prepare"]

#: Makes the client of the served policy; the breaker is the engine's.
Connect = Callable[[Layer3Config, CircuitBreaker], Asker]
_log = logging.getLogger(__name__)


class Active(NamedTuple):
    """The configuration that sizes, its hash, and who is asked; ``breaker`` is ``None`` where no server is."""

    config: Layer3Config
    digest: str
    breaker: CircuitBreaker | None
    sources: Sources


def connect(config: Layer3Config, breaker: CircuitBreaker) -> PolicyClient:
    """The client of the server that ``config`` names; a ConfigurationError where it names none or cannot be used."""
    policy = config.policy
    if policy.endpoint is None:
        raise ConfigurationError("policy.endpoint is not given: there is no server to ask")
    tokens = metadata_tokens(policy.endpoint) if policy.authenticate else None
    return PolicyClient(policy.endpoint, timeout_s=policy.timeout_ms / 1_000.0, breaker=breaker, token_source=tokens)


def prepare(config: Layer3Config, make: Connect, rng: np.random.Generator, before: Active | None) -> Active:
    """Everything that ``config`` asks for, taking over from ``before`` the client and the breaker if they can stay.

    Raises
    ------
    ConfigurationError, PolicyError, ContractError, ReleaseError : a policy cannot be reached or trusted as said
    """
    policy = config.policy
    if not policy.enabled:
        return Active(config, config.digest(), None, Sources(None, None, ("policy.enabled is false",), 1.0))
    local = None if policy.model_path is None else load_local(policy.model_path)
    missing = () if local is not None else (f"{LOCAL_MODEL}: policy.model_path is not given",)
    if config.deployment_mode == "local":
        if local is None:
            _log.warning("the policy is enabled but there is none to ask: every multiplier is the fallback's")
        return Active(config, config.digest(), None, Sources(None, local, missing, policy.fallback_multiplier))
    if before is not None and before.breaker is not None and _call(before.config) == _call(config):
        breaker, client = before.breaker, before.sources.client
    else:
        breaker = CircuitBreaker(config.breaker, rng=rng)
        client = make(config, breaker)
    return Active(config, config.digest(), breaker, Sources(client, local, missing, policy.fallback_multiplier))


def _call(config: Layer3Config) -> tuple[object, ...]:
    """What a client and its breaker are made from."""
    policy = config.policy
    return policy.endpoint, policy.timeout_ms, policy.authenticate, config.breaker
