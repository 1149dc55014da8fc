"""Cascade risk: how near a chain of forced liquidations is, and how much to hold then.

Each warning sign x has a score, and a share of the scale [0, 1] that grows with it::

    score = 0                                   up to normal
            0 -> 0.5                            normal to trigger, linear
            0.5 -> 1                            trigger to extreme, linear
    share = weight * score                      up to extreme
            weight + (1 - weight) * overshoot   beyond; overshoot 0 -> 1 from extreme to saturation x extreme

    risk  = min(sum of the shares, 1)

so the risk never falls when a sign gets worse, and one sign far beyond its scale reaches EXIT
alone (funding at 1.75 %, open interest down by 52 %, volume 17.6 times usual, netflow at 7.1 sd;
whale pressure ends at its extreme and cannot). Weights are renormalised over the feeds that
are present, so that missing ones do not make the scale unreachable; without any feed the risk is
0 and the reason says so. Liquidations are optional: they come on top of the others' sum and never
dilute it, and alone they carry the whole scale.

The risk is blind to the position's side, because a cascade empties the book for everyone:
funding counts by its magnitude (crowded shorts are squeezed too), while only *falls* of open
interest and only flows *into* exchanges count.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from layer3.sizing.config import CascadeConfig, ComponentConfig
from layer3.types import CascadeIndicators

__all__ = ["EXIT", "NORMAL", "REDUCE_50", "REDUCE_75", "Component", "action", "components", "describe", "risk"]

NORMAL: Final = "NORMAL"
REDUCE_50: Final = "REDUCE_50"
REDUCE_75: Final = "REDUCE_75"
EXIT: Final = "EXIT"


class Component(NamedTuple):
    """One feed that is present: its name, its value as it came, and its share of the risk in [0, 1]."""

    name: str
    value: float
    share: float


def _share(config: ComponentConfig, saturation: float, weight: float, x: float) -> float:
    if x <= config.normal:
        return 0.0
    if x <= config.trigger:
        return weight * 0.5 * (x - config.normal) / (config.trigger - config.normal)
    if x <= config.extreme:
        return weight * (0.5 + 0.5 * (x - config.trigger) / (config.extreme - config.trigger))
    overshoot = min((x - config.extreme) / ((saturation - 1.0) * config.extreme), 1.0)
    return weight + (1.0 - weight) * overshoot


def components(config: CascadeConfig, indicators: CascadeIndicators) -> list[Component]:
    """The feeds that are present, with their shares of the risk. All values are finite."""
    funding, interest = indicators.funding_rate, indicators.oi_change_pct
    signs = (
        ("funding", config.funding, funding, None if funding is None else abs(funding)),
        ("open interest", config.open_interest, interest, None if interest is None else -interest),
        ("volume", config.volume, indicators.volume_ratio, indicators.volume_ratio),
        ("whale", config.whale, indicators.onchain_whale_pressure, indicators.onchain_whale_pressure),
        ("netflow", config.netflow, indicators.exchange_netflow_zscore, indicators.exchange_netflow_zscore),
    )
    total = 0.0
    for _, sign, _, x in signs:
        if x is not None:
            total += sign.weight
    found = [
        Component(name, value, _share(sign, config.saturation, sign.weight / total, x))
        for name, sign, value, x in signs
        if value is not None and x is not None
    ]
    dollars = indicators.liquidation_volume_24h
    if dollars is not None:
        weight = config.liquidation.weight if found else 1.0
        found.append(Component("liquidations", dollars, _share(config.liquidation, config.saturation, weight, dollars)))
    return found


def risk(config: CascadeConfig, indicators: CascadeIndicators) -> float:
    """Cascade risk in [0, 1]; 0 when no feed is present."""
    total = 0.0
    for component in components(config, indicators):
        total += component.share
    return min(total, 1.0)


def action(config: CascadeConfig, level: float) -> tuple[str, float]:
    """What a risk ``level`` in [0, 1] asks for, and the factor on the size."""
    if level > config.exit_above:
        return EXIT, 0.0
    if level > config.reduce_75_above:
        return REDUCE_75, config.reduce_75_factor
    if level > config.reduce_50_above:
        return REDUCE_50, config.reduce_50_factor
    return NORMAL, 1.0


def describe(config: CascadeConfig, indicators: CascadeIndicators) -> str:
    """The risk in words, for a decision's reason: what contributes, the largest share first."""
    found = components(config, indicators)
    if not found:
        return "no feeds: risk taken as 0"
    level = min(sum(component.share for component in found), 1.0)
    text = f"risk {level:.2f}: {action(config, level)[0]}"
    parts = sorted((c for c in found if c.share > 0.0), key=lambda c: -c.share)
    if parts:
        text += " (" + ", ".join(f"{c.name} {c.value:g} gives {c.share:.2f}" for c in parts) + ")"
    return text
