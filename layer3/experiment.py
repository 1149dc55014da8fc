"""The policy against Kelly only on live decisions: assign, record what was decided, record what came of it.

    experiment = Experiment(Store(Path("ab.sqlite")), Design("policy-against-kelly"))
    decision = experiment.record_sizing(signal, engine.calculate_position(signal, cascade, price))
    ...                                   # hold decision.size_usd
    experiment.record_outcome(decision.id, pnl_usd=..., realised_return=..., duration_s=...)

Who sizes in another way takes ``assign`` and ``record_decision`` one by one.

``python -m layer3.ab.report`` says what may be concluded. Each call that writes waits for the disk.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

import numpy as np

from layer3.ab.assignment import Arm, Assignment, Design, bucket, unit_of
from layer3.ab.guardrails import find_breach
from layer3.ab.records import Decision, Outcome, Stop
from layer3.ab.store import Store
from layer3.errors import ConfigurationError, DataError
from layer3.types import PositionSizingDecision, TacticalSignal

__all__ = ["Assignment", "Experiment"]

#: How far another machine's clock may be ahead.
_AHEAD_NS: Final = 5_000_000_000
#: The engine's stage that cuts a size to what all positions together may be.
_LEVERAGE: Final = "leverage"


class Experiment:
    """One experiment in a store; safe for threads, and for processes that share the file.

    The first one to open a name begins it, with its design and by its clock. ``clock`` gives UTC nanoseconds.

    Raises
    ------
    ConfigurationError : the name is known with another design
    """

    def __init__(self, store: Store, design: Design, *, clock: Callable[[], int] = time.time_ns) -> None:
        self.design = design
        self._store = store
        self._clock = clock
        text, self.started_ns = store.begin(design.name, design.as_text(), clock())
        kept = asdict(Design.from_text(text))
        changed = [f"{name} was {kept[name]!r}" for name, value in asdict(design).items() if kept[name] != value]
        if changed:
            raise ConfigurationError(
                f"experiment {design.name!r} began with another design ({', '.join(changed)}): what is changed on the "
                "way proves nothing, give the new one a name of its own"
            )

    def assign(self, signal: TacticalSignal, *, forced: Arm | None = None) -> Assignment:
        """Whose size ``signal`` gets: the same for its unit for ever, whatever the share has become.

        ``forced`` (for tests) leaves the unit's own arm as it is and this decision out of every analysis.
        Once a guardrail has stopped the policy's arm, its units get Kelly's size.
        """
        name, unit = self.design.name, self.unit_of(signal)
        if forced is not None:
            if forced not in tuple(Arm):
                raise ConfigurationError(f"forced is {forced!r}; it must be {' or '.join(Arm)}")
            return Assignment(name, Arm(forced), "forced", unit, signal.symbol, signal.strategy_id, None)
        if self._store.stopped(name) is not None:
            return Assignment(name, Arm.KELLY, "stopped", unit, signal.symbol, signal.strategy_id, None)
        known = self._store.assigned(name, unit)
        if known is None:
            known = self._store.assign(name, unit, *self.draw(unit), self._clock())
        return Assignment(name, known[0], "assigned", unit, signal.symbol, signal.strategy_id, known[1])

    def unit_of(self, signal: TacticalSignal) -> str:
        """The unit that ``signal`` belongs to."""
        return unit_of(
            self.design.unit, strategy_id=signal.strategy_id, symbol=signal.symbol, timestamp_ns=signal.timestamp_ns
        )

    def draw(self, unit: str) -> tuple[Arm, float]:
        """The arm of a unit that has none yet, and the share of units that get the policy now."""
        share = self.design.share_at(self.started_ns, self._clock())
        return Arm.POLICY if bucket(self.design.name, unit) < share else Arm.KELLY, share

    def record_sizing(
        self, signal: TacticalSignal, sized: PositionSizingDecision, *, forced: Arm | None = None
    ) -> Decision:
        """Assign ``signal``, and record what the engine decided about it: hold the ``size_usd`` of what comes back.

        Kelly's size is the whole chain's, before the policy, under the same limits: nothing where the engine
        refused, no more than what the leverage left where it cut the policy's size.

        Raises
        ------
        DataError : the engine has assigned it already, and as :meth:`record_decision`
        """
        if sized.experiment is not None:
            raise DataError(
                f"decision {sized.decision_id!r} was assigned by the engine's assigner already: append that one's "
                "observe to the engine's observers, which records it"
            )
        kelly = abs(sized.cascade_adjusted_usd) if sized.refusal is None else 0.0
        for stage in sized.stages:
            if stage.name == _LEVERAGE and stage.output < stage.input:
                kelly = min(kelly, stage.output * sized.portfolio_value)
        return self.record_decision(
            self.assign(signal, forced=forced),
            decision_id=sized.decision_id,
            kelly_usd=math.copysign(kelly, sized.direction),
            policy_usd=sized.position_size_usd,
            portfolio_value=sized.portfolio_value,
            source=sized.multiplier_source,
            decided_ns=sized.timestamp_ns,
        )

    def record_decision(
        self,
        assignment: Assignment,
        *,
        decision_id: str,
        kelly_usd: float,
        policy_usd: float,
        portfolio_value: float,
        source: str,
        decided_ns: int,
    ) -> Decision:
        """Record both sizes, in signed dollars after all limits, and give what to hold (``size_usd``).

        Both are needed whoever is chosen: the other one is what would have been. ``source`` says who gave
        the multiplier behind ``policy_usd``. The same call again changes nothing.

        Raises
        ------
        DataError : a value that cannot be used, sizes on different sides, a decision of the future, or
            another decision under this id
        """
        now = self._clock()
        if decided_ns > now + _AHEAD_NS:
            raise DataError(f"decision {decision_id!r} is dated {(decided_ns - now) / 1e9:.1f} s into the future")
        decision = Decision(
            decision_id,
            self.design.name,
            assignment.unit,
            assignment.arm,
            assignment.how,
            assignment.symbol,
            assignment.strategy,
            kelly_usd,
            policy_usd,
            portfolio_value,
            source,
            decided_ns,
        )
        self._store.add_decision(decision, now)
        return decision

    def record_outcome(
        self, decision_id: str, *, pnl_usd: float, realised_return: float, duration_s: float
    ) -> Stop | None:
        """Record what became of a decision once its trade is closed, however late; see
        :class:`~layer3.ab.records.Outcome` for the units. The same call again changes nothing.

        Returns the stop of the policy's arm: one that a guardrail called for just now, or an earlier one.

        Raises
        ------
        DataError : a value that cannot be used, an unknown decision, another outcome for the same decision,
            or a trade that has not closed yet
        """
        now = self._clock()
        outcome = Outcome(decision_id, pnl_usd, realised_return, duration_s)
        decision = self._store.add_outcome(self.design.name, outcome, now, now + _AHEAD_NS)
        stopped = self._store.stopped(self.design.name)
        if stopped is not None or decision.arm is not Arm.POLICY or decision.how != "assigned":
            return stopped
        return self._guard(now)

    def _guard(self, now_ns: int) -> Stop | None:
        """Stop the policy's arm where its trades broke a guardrail."""
        trades = self._store.gains(self.design.name, Arm.POLICY)
        breach = find_breach(
            np.array([closed for closed, _ in trades], dtype=np.int64),
            np.array([gained for _, gained in trades], dtype=np.float64),
            self.design,
        )
        if breach is None:
            return None
        return self._store.stop(self.design.name, f"the policy's arm {breach.words}", now_ns)
