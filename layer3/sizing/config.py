"""Every number of the Phase 1 sizing chain, with its default, unit and range, and their strict loader.

``config/sizing.yaml`` holds the same defaults with comments. A wrong value never gets as far as
a decision: each dataclass checks itself when it is built, and the loader refuses unknown keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from layer3 import contract, settings
from layer3.settings import true_or_false, within

__all__ = [
    "CascadeConfig",
    "ChainConfig",
    "ComponentConfig",
    "ConformalConfig",
    "KellyConfig",
    "RegimeConfig",
    "SentimentConfig",
    "chain_config_text",
    "load_chain_config",
    "parse_chain_config",
]

_INF = math.inf
_WHAT = "the sizing configuration"


@dataclass(frozen=True, slots=True)
class KellyConfig:
    """Bayesian Kelly; returns and variance are all over ``horizon_hours``, as fractions."""

    #: Beta prior of the probability that a trade wins; each > 0.
    prior_alpha: float = 10.0
    prior_beta: float = 10.0
    #: Return of following a signal, over the horizon, before that signal is known: mean and sd.
    prior_mean_return: float = 0.05
    prior_sd_return: float = 0.03
    #: Weight of confidence x expected return in the edge, in [0, 1]; the prior mean has the rest.
    signal_weight: float = 0.7
    #: Below this posterior probability of a win, or below this edge, the size is zero.
    min_win_probability: float = 0.45
    min_edge: float = 0.02
    #: Share of the full Kelly fraction that is used, in (0, 1].
    kelly_share: float = 0.25
    #: Largest Kelly fraction, in (0, 0.5].
    max_fraction: float = 0.5
    #: The one horizon of expected return, prior and variance, in hours: 30 days.
    horizon_hours: float = 720.0
    #: Standard deviation of the daily return: assumed where a signal has none, and the least believed.
    default_daily_volatility: float = 0.04
    min_daily_volatility: float = 0.005
    #: A risk score r in [0, 1] scales the fraction by 1 - risk_weight * r.
    risk_weight: float = 0.5

    def __post_init__(self) -> None:
        for name in ("prior_alpha", "prior_beta", "horizon_hours"):
            within(self, name, 0.0, _INF, open_low=True)
        for name in ("signal_weight", "min_win_probability", "risk_weight"):
            within(self, name, 0.0, 1.0)
        within(self, "prior_mean_return", -1.0, 10.0)
        within(self, "prior_sd_return", 0.0, 10.0)
        within(self, "min_edge", 0.0, 10.0)
        within(self, "kelly_share", 0.0, 1.0, open_low=True)
        within(self, "max_fraction", 0.0, contract.MAX_EXPOSURE, open_low=True)
        within(self, "min_daily_volatility", 0.0, 5.0, open_low=True)
        within(self, "default_daily_volatility", self.min_daily_volatility, 5.0)


@dataclass(frozen=True, slots=True)
class ConformalConfig:
    """Split conformal prediction over the errors of one-day forecasts."""

    #: Share of future errors that the quantile is to cover, in (0, 1).
    coverage: float = 0.90
    #: Number of latest residuals kept.
    window: int = 200
    #: Residuals needed before the scale leaves 1.0; enough that the quantile is finite.
    min_residuals: int = 20

    def __post_init__(self) -> None:
        within(self, "coverage", 0.0, 1.0, open_low=True, open_high=True)
        # Below this many residuals the (1 + 1/n)-corrected rank exceeds n and the quantile is infinite.
        needed = math.ceil(self.coverage / (1.0 - self.coverage) - 1e-9)
        within(self, "min_residuals", needed, _INF, whole=True)
        within(self, "window", self.min_residuals, _INF, whole=True)


@dataclass(frozen=True, slots=True)
class SentimentConfig:
    """Sentiment tilts the size by at most ``weight`` either way."""

    #: Largest change of the multiplier, in [0, 1).
    weight: float = 0.15
    #: Between these scores, 0 <= low <= high <= 1, sentiment says nothing.
    neutral_low: float = 0.4
    neutral_high: float = 0.6

    def __post_init__(self) -> None:
        within(self, "weight", 0.0, 1.0, open_high=True)
        within(self, "neutral_low", 0.0, 1.0)
        within(self, "neutral_high", self.neutral_low, 1.0)


@dataclass(frozen=True, slots=True)
class RegimeConfig:
    """One multiplier per regime, each in [0, 2], and how many bars it takes to believe a calmer one."""

    trending_up: float = 1.2
    trending_down: float = 0.8
    ranging: float = 1.0
    high_volatility: float = 0.6
    crisis: float = 0.2
    #: Consecutive bars of calmer regimes before the size may grow; tightening takes one.
    confirmations: int = 3

    def __post_init__(self) -> None:
        for name in ("trending_up", "trending_down", "ranging", "high_volatility", "crisis"):
            within(self, name, 0.0, 2.0)
        within(self, "confirmations", 1, _INF, whole=True)


@dataclass(frozen=True, slots=True)
class ComponentConfig:
    """One warning sign of a cascade, in its own unit: normal < trigger < extreme.

    Its score is 0 up to ``normal``, 0.5 at ``trigger``, 1 at ``extreme``; ``weight`` in (0, 1].
    """

    normal: float
    trigger: float
    extreme: float
    weight: float

    def __post_init__(self) -> None:
        within(self, "normal", 0.0, _INF)
        within(self, "trigger", self.normal, _INF, open_low=True)
        within(self, "extreme", self.trigger, _INF, open_low=True)
        within(self, "weight", 0.0, 1.0, open_low=True)


@dataclass(frozen=True, slots=True)
class CascadeConfig:
    """Warning signs of a liquidation cascade and what to do at which risk."""

    #: |funding rate| per 8 hours, as a fraction.
    funding: ComponentConfig = ComponentConfig(normal=0.0005, trigger=0.003, extreme=0.01, weight=0.20)
    #: Fall of open interest, as a fraction (0.10 is a fall of 10 %).
    open_interest: ComponentConfig = ComponentConfig(normal=0.0, trigger=0.10, extreme=0.30, weight=0.25)
    #: Volume over its usual level.
    volume: ComponentConfig = ComponentConfig(normal=1.0, trigger=5.0, extreme=10.0, weight=0.15)
    #: On-chain whale pressure in [0, 1]: its extreme is the end of its scale.
    whale: ComponentConfig = ComponentConfig(normal=0.5, trigger=0.7, extreme=1.0, weight=0.25)
    #: Net flow into exchanges, in standard deviations.
    netflow: ComponentConfig = ComponentConfig(normal=0.0, trigger=2.0, extreme=4.0, weight=0.15)
    #: Liquidations of the last 24 hours, in dollars. Optional: comes on top of the five above.
    liquidation: ComponentConfig = ComponentConfig(normal=2e8, trigger=1e9, extreme=3e9, weight=0.10)
    #: A component at this multiple of its extreme carries the whole scale alone; > 1.
    saturation: float = 2.0
    #: Above these risks the size is multiplied by reduce_50_factor, reduce_75_factor, and 0.
    reduce_50_above: float = 0.4
    reduce_75_above: float = 0.6
    exit_above: float = 0.8
    reduce_50_factor: float = 0.5
    reduce_75_factor: float = 0.25

    def __post_init__(self) -> None:
        within(self, "saturation", 1.0, _INF, open_low=True)
        within(self, "reduce_50_above", 0.0, 1.0)
        within(self, "reduce_75_above", self.reduce_50_above, 1.0)
        # At 1.0 no risk would be above it: the EXIT level must be reachable.
        within(self, "exit_above", self.reduce_75_above, 1.0, open_high=True)
        within(self, "reduce_50_factor", 0.0, 1.0)
        within(self, "reduce_75_factor", 0.0, self.reduce_50_factor)


@dataclass(frozen=True, slots=True)
class ChainConfig:
    """The whole chain."""

    #: A SELL sizes to a short; with shorts off it sizes to zero.
    allow_shorts: bool = True
    #: Largest |exposure| and largest base fraction, as a fraction of equity, in (0, 0.5].
    max_exposure: float = contract.MAX_EXPOSURE
    kelly: KellyConfig = field(default_factory=KellyConfig)
    conformal: ConformalConfig = field(default_factory=ConformalConfig)
    sentiment: SentimentConfig = field(default_factory=SentimentConfig)
    regime: RegimeConfig = field(default_factory=RegimeConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)

    def __post_init__(self) -> None:
        true_or_false(self, "allow_shorts")
        within(self, "max_exposure", 0.0, contract.MAX_EXPOSURE, open_low=True)


def load_chain_config(path: Path) -> ChainConfig:
    """Read a YAML file of the shape of ``config/sizing.yaml``; what it leaves out keeps its default.

    Raises
    ------
    ConfigurationError : no such file, or as :func:`parse_chain_config`
    """
    return settings.load(ChainConfig(), path, _WHAT)


def chain_config_text(path: Path | None) -> str:
    """The file's text, checked (:func:`layer3.settings.text_of`); "" for none."""
    return settings.text_of(ChainConfig(), path, _WHAT)


def parse_chain_config(text: str, origin: str) -> ChainConfig:
    """The configuration that a YAML document gives, as :func:`layer3.settings.parse` says."""
    return settings.parse(ChainConfig(), text, origin)
