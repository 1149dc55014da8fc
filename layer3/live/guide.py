"""The older ``gcp_deployment.yaml``, accepted as it stands: what each of its keys means here.

=================================  =====================================================================================
``layer3_rl.enable_rl``            ``policy.enabled``
``layer3_rl.deployment_mode``      ``deployment_mode``
``layer3_rl.rl_api_endpoint``      ``policy.endpoint``
``layer3_rl.rl_timeout_ms``        ``policy.timeout_ms``
``layer3_rl.fallback_multiplier``  ``policy.fallback_multiplier``
``layer3_rl.fallback_on_timeout``  false: nothing is traded without an answer, ``policy.fallback_multiplier: 0``
``layer3_rl.rl_model_path``        ``policy.model_path``; only where deployment_mode is local, as its file says
``layer3_rl.log_rl_predictions``   ``logging.policy_answers``
``layer3_rl.log_level``            ``logging.level``
``portfolio.initial_value``        ``portfolio_value``
``portfolio.max_position_pct``     ``chain.max_exposure``
``portfolio.kelly_fraction``       ``chain.kelly.kelly_share``
``risk.max_daily_loss_pct``        ``risk.max_daily_loss``
``risk.max_leverage``              ``risk.max_leverage``
=================================  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from layer3 import settings
from layer3.errors import ConfigurationError

__all__ = ["is_guide", "translate"]

_KEYS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "layer3_rl": {
        "enable_rl": ("policy", "enabled"),
        "deployment_mode": ("deployment_mode",),
        "rl_api_endpoint": ("policy", "endpoint"),
        "rl_timeout_ms": ("policy", "timeout_ms"),
        "fallback_multiplier": ("policy", "fallback_multiplier"),
        "fallback_on_timeout": (),
        "rl_model_path": ("policy", "model_path"),
        "log_rl_predictions": ("logging", "policy_answers"),
        "log_level": ("logging", "level"),
    },
    "portfolio": {
        "initial_value": ("portfolio_value",),
        "max_position_pct": ("chain", "max_exposure"),
        "kelly_fraction": ("chain", "kelly", "kelly_share"),
    },
    "risk": {"max_daily_loss_pct": ("risk", "max_daily_loss"), "max_leverage": ("risk", "max_leverage")},
}


def is_guide(document: Mapping[str, Any]) -> bool:
    """Whether a decoded file has the older shape."""
    return "layer3_rl" in document


def translate(document: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The same settings in the shape of ``config/layer3.yaml``, not yet checked.

    Raises
    ------
    ConfigurationError : an unknown key, a section that is no mapping, or ``fallback_on_timeout`` no truth value
    """
    found: dict[str, Any] = {}
    for section, values in document.items():
        if section not in _KEYS:
            raise ConfigurationError(f"{origin}: {settings.unknown(str(section), str(section), tuple(_KEYS))}")
        if not isinstance(values, Mapping):
            raise ConfigurationError(f"{origin}: {section} is {values!r}; it must be a mapping of keys to values")
        for key, value in values.items():
            if key not in _KEYS[section]:
                known = tuple(_KEYS[section])
                raise ConfigurationError(f"{origin}: {settings.unknown(f'{section}.{key}', str(key), known)}")
            _put(found, _KEYS[section][key], value)
    policy = document["layer3_rl"]
    fallback = policy.get("fallback_on_timeout", True)
    if not isinstance(fallback, bool):
        raise ConfigurationError(f"{origin}: layer3_rl.fallback_on_timeout is {fallback!r}; it must be true or false")
    if not fallback:
        _put(found, ("policy", "fallback_multiplier"), 0.0)
    if found.get("deployment_mode") == "cloud":
        found["policy"].pop("model_path", None)
    return found


def _put(into: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    if not path:
        return
    for name in path[:-1]:
        into = into.setdefault(name, {})
    into[path[-1]] = value
