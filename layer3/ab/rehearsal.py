"""A simulated world played through the real experiment and its store, by a clock of its own."""

from __future__ import annotations

from typing import Final

import numpy as np

from layer3.ab.assignment import DAY_NS, Design
from layer3.ab.simulate import World, draw
from layer3.ab.store import Store
from layer3.experiment import Experiment
from layer3.types import Action, Regime, TacticalSignal

__all__ = ["START_NS", "rehearse"]

#: 2026-01-01 00:00 UTC.
START_NS: Final = 1_767_225_600_000_000_000
_PORTFOLIO: Final = 100_000.0
_SYMBOLS: Final = ("BTC-USDT", "ETH-USDT", "SOL-USDT")
_SECOND_NS: Final = 1_000_000_000


class _Clock:
    now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns


def rehearse(store: Store, design: Design, world: World, seed: int) -> Experiment:
    """Run ``world`` as experiment ``design`` into ``store``.

    Decisions are evenly spread over each day and turn over the symbols; their trades last one to eight hours, and
    what is still open when the world ends has no outcome.
    """
    rng = np.random.default_rng(seed)
    drawn, _ = draw(world, 1, rng)
    clock = _Clock()
    experiment = Experiment(store, design, clock=clock)
    step = DAY_NS // world.decisions
    multipliers = np.clip(drawn.multiplier[0].ravel(), 0.0, 2.0)
    lasting = rng.integers(3_600, 8 * 3_600, multipliers.size)
    events: list[tuple[int, str, float | None, float]] = []
    for number, (base, multiplier, seconds) in enumerate(zip(drawn.base[0].ravel(), multipliers, lasting, strict=True)):
        events.append((START_NS + number * step, f"d{number:06}", float(base), float(multiplier)))
        events.append((START_NS + number * step + int(seconds) * _SECOND_NS, f"d{number:06}", None, 0.0))
    followed = drawn.followed[0].ravel()
    sizes: dict[str, float] = {}
    for at, name, base_or_close, multiplier in sorted(events, key=lambda event: event[0]):
        number = int(name[1:])
        if at > START_NS + world.days * DAY_NS:
            break
        clock.now_ns = at
        if base_or_close is None:
            size, gained = sizes[name], float(followed[number])
            seconds = float(lasting[number])
            experiment.record_outcome(name, pnl_usd=size * gained, realised_return=gained, duration_s=seconds)
            continue
        signal = TacticalSignal(
            "rehearsal", _SYMBOLS[number % len(_SYMBOLS)], Action.BUY, 0.8, 0.2, Regime.RANGING, timestamp_ns=at
        )
        kelly = base_or_close * _PORTFOLIO
        decision = experiment.record_decision(
            experiment.assign(signal),
            decision_id=name,
            kelly_usd=kelly,
            policy_usd=kelly * multiplier,
            portfolio_value=_PORTFOLIO,
            source="local_model",
            decided_ns=at,
        )
        sizes[name] = decision.size_usd
    return experiment
