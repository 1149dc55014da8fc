"""Layer 3, Phase 1, in production: what a trading server imports.

:class:`Layer3Phase1` takes a whole configuration; :class:`Layer3Phase1RL` takes the arguments, and the names in
:meth:`~Layer3Phase1RL.calculate_position`, that the system before this one had.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry

from layer3.errors import ConfigurationError
from layer3.live.configuration import load_config
from layer3.live.inputs import position_worth
from layer3.live.metrics import Metrics
from layer3.live.phase1 import Layer3Phase1, Observer
from layer3.live.reload import ConfigWatcher, fingerprint
from layer3.types import CascadeIndicators, ClosedTrade, PositionSizingDecision, TacticalSignal

__all__ = ["Layer3Phase1", "Layer3Phase1RL", "Observer"]

_DEVICES: Final = ("cpu", "cuda")
_log = logging.getLogger(__name__)


class Layer3Phase1RL(Layer3Phase1):
    """:class:`Layer3Phase1` by single arguments; one that is ``None`` is what the file says, or the default.

    Parameters
    ----------
    portfolio_value : dollars (100,000)
    kelly_fraction : share of the full Kelly fraction, in (0, 1] (0.25)
    config_path : a YAML file, ``config/layer3.yaml`` or ``gcp_deployment.yaml``
    enable_hot_reload : follow changes of that file (true)
    enable_metrics : whether metrics are kept, in ``registry`` (true)
    enable_sentiment : whether sentiment tilts the size (true)
    enable_rl : whether a policy is asked at all (true)
    rl_model_path : a policy folder, or a store whose champion is taken; asked where the server does not answer
    rl_api_endpoint : the prediction server, with or without ``/predict``
    rl_timeout_ms : for a whole call of the server (150)
    device : ``cpu`` or ``cuda``; one state through this small a network is faster on a CPU, where it always runs
    engine : arguments of :class:`Layer3Phase1` (clock, timer, connect, multipliers, assigner, seed, state)

    Attributes
    ----------
    registry : its metrics for Prometheus, ``None`` without them; :class:`layer3.live.metrics.MetricsServer` exposes it
    watcher : follows ``config_path``, ``None`` where nothing does

    Raises
    ------
    As :class:`Layer3Phase1`, and TypeError for an argument that nobody knows.
    """

    def __init__(
        self,
        portfolio_value: float | None = None,
        kelly_fraction: float | None = None,
        config_path: str | Path | None = None,
        enable_hot_reload: bool | None = None,
        enable_metrics: bool | None = None,
        enable_sentiment: bool | None = None,
        enable_rl: bool | None = None,
        rl_model_path: str | Path | None = None,
        rl_api_endpoint: str | None = None,
        rl_timeout_ms: float | None = None,
        device: str = "cpu",
        **engine: Any,
    ) -> None:
        if not isinstance(device, str) or device.split(":")[0] not in _DEVICES:
            raise ConfigurationError(f"device is {device!r}; it must be {' or '.join(_DEVICES)}")
        if enable_sentiment is not None and not isinstance(enable_sentiment, bool):
            raise ConfigurationError(f"enable_sentiment is {enable_sentiment!r}; it must be true or false")
        if device != "cpu":
            _log.warning("the policy runs on the CPU, which is faster for one state than %s", device)
        policy: dict[str, Any] = {
            "enabled": enable_rl,
            "model_path": None if rl_model_path is None else str(rl_model_path),
            "endpoint": rl_api_endpoint,
            "timeout_ms": rl_timeout_ms,
        }
        overrides = {
            "portfolio_value": portfolio_value,
            "hot_reload": enable_hot_reload,
            "deployment_mode": _mode(rl_api_endpoint, rl_model_path),
            "metrics": {"enabled": enable_metrics},
            "policy": policy,
            "chain": {
                "kelly": {"kelly_share": kelly_fraction},
                "sentiment": {"weight": 0.0 if enable_sentiment is False else None},
            },
        }
        given = _given(overrides)
        seen = None if config_path is None else fingerprint(Path(config_path))
        super().__init__(load_config(config_path, given), **engine)
        self.watcher: ConfigWatcher | None = None
        if config_path is not None and self.config.hot_reload:
            path = Path(config_path)
            self.watcher = ConfigWatcher(path, lambda: load_config(path, given), self, seen)
        self.registry: CollectorRegistry | None = None
        if self.config.metrics.enabled:
            self.registry = CollectorRegistry()
            self.observers.append(Metrics(self.registry, self, watcher=self.watcher).observe)

    def calculate_position(  # type: ignore[override]  # the older names, by which its callers call
        self,
        signal: TacticalSignal,
        cascade_indicators: CascadeIndicators,
        current_price: float,
        current_position_usd: float = 0.0,
        current_position_qty: float = 0.0,
        entry_price: float | None = 0.0,
        recent_trades: Sequence[ClosedTrade | Mapping[str, Any] | float] | None = None,
        *,
        price_timestamp_ns: int | None = None,
    ) -> PositionSizingDecision:
        """:meth:`Layer3Phase1.calculate_position`; ``current_position_qty`` counts where the dollars are 0."""
        worth = position_worth(current_position_usd, current_position_qty, current_price)
        return super().calculate_position(
            signal,
            cascade_indicators,
            current_price,
            worth,
            entry_price,
            recent_trades,
            price_timestamp_ns=price_timestamp_ns,
        )

    async def acalculate_position(  # type: ignore[override]
        self,
        signal: TacticalSignal,
        cascade_indicators: CascadeIndicators,
        current_price: float,
        current_position_usd: float = 0.0,
        current_position_qty: float = 0.0,
        entry_price: float | None = 0.0,
        recent_trades: Sequence[ClosedTrade | Mapping[str, Any] | float] | None = None,
        *,
        price_timestamp_ns: int | None = None,
    ) -> PositionSizingDecision:
        """:meth:`calculate_position` for callers in an event loop."""
        worth = position_worth(current_position_usd, current_position_qty, current_price)
        return await super().acalculate_position(
            signal,
            cascade_indicators,
            current_price,
            worth,
            entry_price,
            recent_trades,
            price_timestamp_ns=price_timestamp_ns,
        )

    def close(self) -> None:
        """:meth:`Layer3Phase1.close`, and the configuration file is no longer followed."""
        if self.watcher is not None:
            self.watcher.stop()
        super().close()


def _mode(endpoint: str | None, model_path: str | Path | None) -> str | None:
    if endpoint is not None:
        return "cloud"
    return None if model_path is None else "local"


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` without what is ``None``, and without sections that then say nothing."""
    found = {key: _given(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: value for key, value in found.items() if value is not None and value != {}}
