"""The last step of a decision: the multiplier, the caps and the risk limits on what was assessed, or a refusal."""

from __future__ import annotations

from typing import Any, NamedTuple

from layer3.ab.assignment import Arm, Assignment
from layer3.live.configuration import Layer3Config
from layer3.live.draft import Assessed, Refusal, book_name
from layer3.live.inputs import Inputs, is_title
from layer3.live.memory import Memory
from layer3.live.sources import Answer
from layer3.sizing import cascade
from layer3.sizing.chain import decide
from layer3.types import (
    FALLBACK_KELLY,
    Action,
    Arms,
    Explanation,
    PositionSizingDecision,
    Stage,
    TacticalSignal,
    Written,
)

__all__ = ["Limits", "finish", "refused"]


class Limits(NamedTuple):
    """What the limits say now, as fractions of the portfolio.

    ``others`` is what all other positions hold together, ``max_leverage`` the most that all may; ``day`` is the
    day's result, ``max_daily_loss`` the loss at which the day ends; ``stop`` is a refusal's word and sentence.
    ``base`` is what the chain would hold without the policy, and ``assignment`` who may say how much, where an
    experiment asks.
    """

    others: float
    max_leverage: float
    day: float
    max_daily_loss: float
    stop: Refusal | None
    base: float = 0.0
    assignment: Assignment | None = None

    def apply(self, wanted: float, before: Explanation) -> tuple[float, Explanation]:
        """What of the fraction ``wanted`` may be held, never more, and the account of it."""
        if self.assignment is not None:
            asked, wanted = wanted, self.base if self.assignment.arm is Arm.KELLY else wanted
            before = _Chosen(before, asked, wanted, self.assignment)
        held = self._room(wanted)
        return held if self.stop is None else 0.0, _Limited(before, wanted, held, self)

    def arms(self, wanted: float, signed_worth: float) -> Arms | None:
        """Both sizes under these limits, where there is an experiment; ``wanted`` is the policy's fraction, and
        ``signed_worth`` the portfolio's value times the direction."""
        chosen = self.assignment
        if chosen is None:
            return None
        kelly, policy = (
            0.0 if self.stop is not None else signed_worth * self._room(size) + 0.0 for size in (self.base, wanted)
        )
        return Arms(chosen.experiment, chosen.unit, chosen.arm.value, chosen.how, chosen.share, kelly, policy)

    def _room(self, wanted: float) -> float:
        return min(wanted, max(0.0, self.max_leverage - self.others))


class _Chosen(NamedTuple):
    before: Explanation
    asked: float
    wanted: float
    assignment: Assignment

    @property
    def _words(self) -> str:
        whose = "Kelly's" if self.assignment.arm is Arm.KELLY else "the policy's"
        return f"{self.assignment.experiment} holds {whose} size ({self.assignment.how})"

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (*self.before.stages, Stage("experiment", self.asked, self.wanted, self._words))

    @property
    def reason(self) -> str:
        return f"{self.before.reason}; {self._words}: {self.wanted:.2%}"


class _Limited(NamedTuple):
    before: Explanation
    wanted: float
    held: float
    limits: Limits

    @property
    def stages(self) -> tuple[Stage, ...]:
        limits = self.limits
        room = f"other positions hold {limits.others:.2f} x the portfolio, all may hold {limits.max_leverage:g} x"
        stopped = self.held if limits.stop is None else 0.0
        why = f"no stop; the day's result is {limits.day:+.2%}, it ends at {-limits.max_daily_loss:.2%}"
        return (
            *self.before.stages,
            Stage("leverage", self.wanted, self.held, room),
            Stage("risk", self.held, stopped, why if limits.stop is None else limits.stop[1]),
        )

    @property
    def reason(self) -> str:
        if self.limits.stop is not None:
            return f"not sized: {self.limits.stop[1]}"
        if self.held < self.wanted:
            return f"{self.before.reason}; cut to {self.held:.2%} by the leverage of {self.limits.max_leverage:g}"
        return self.before.reason


def finish(
    memory: Memory,
    draft: Assessed,
    answer: Answer,
    config: Layer3Config,
    stop: Refusal | None,
    assignment: Assignment | None,
    **stamp: Any,
) -> PositionSizingDecision:
    """Size an assessed signal by the multiplier of ``answer``; ``memory`` keeps what is to be held then.

    ``stop`` makes the size zero, ``assignment`` is an experiment's. ``stamp`` are the decision's id, time, latency and
    configuration.
    """
    signal, assessment = draft.checked.signal, draft.assessment
    book, worth = book_name(signal), config.portfolio_value
    limits = Limits(
        memory.gross_of_others(book) / worth,
        config.risk.max_leverage,
        memory.account.result / worth,
        config.risk.max_daily_loss,
        stop,
        assessment.base_fraction,
        assignment,
    )
    wanted = min(assessment.base_fraction * answer.multiplier, config.chain.max_exposure)
    decision = decide(
        signal,
        assessment,
        multiplier=answer.multiplier,
        multiplier_source=answer.source,
        portfolio_value=worth,
        max_exposure=config.chain.max_exposure,
        limit=limits.apply,
        refusal=None if stop is None else stop[0],
        passed_over=answer.passed_over,
        multiplier_confidence=answer.confidence,
        model_version=answer.model_version,
        experiment=limits.arms(wanted, assessment.direction * worth),
        state=draft.state,
        **stamp,
    )
    memory.books[book] = memory.books[book]._replace(target=decision.position_size_usd)
    return decision


def refused(inputs: Inputs, word: str, why: str, portfolio_value: float, **more: Any) -> PositionSizingDecision:
    """Size zero for inputs that were not assessed, however unusable: cascade risk 1 stands for not known, and "" for a
    name that none is."""
    signal = inputs.signal if type(inputs.signal) is TacticalSignal else None
    strategy_id, symbol = (_name(getattr(signal, name, None)) for name in ("strategy_id", "symbol"))
    action = getattr(signal, "action", None)
    return PositionSizingDecision(
        strategy_id=strategy_id,
        symbol=symbol,
        action=action if type(action) is Action else Action.HOLD,
        direction=0,
        kelly_fraction=0.0,
        conformal_scale=1.0,
        sentiment_multiplier=1.0,
        regime_multiplier=1.0,
        cascade_risk=1.0,
        cascade_action=cascade.EXIT,
        base_fraction=0.0,
        multiplier=1.0,
        multiplier_source=FALLBACK_KELLY,
        exposure=0.0,
        position_size_usd=0.0,
        portfolio_value=portfolio_value,
        explanation=Written((Stage("validate", 0.0, 0.0, why),), f"not sized: {why}"),
        refusal=word,
        passed_over=(f"nobody was asked: {word}",),
        **more,
    )


def _name(value: object) -> str:
    return str(value) if is_title(value) else ""
