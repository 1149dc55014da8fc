"""Phase 1: from a signal to the fraction of equity that it deserves, one stage after the other.

``validate -> Kelly -> conformal -> sentiment -> regime -> cascade -> base cap`` is
:meth:`SizingChain.assess`, the same for training, backtest and production; ``multiplier -> cap``
is :func:`decide`. Stages carry unsigned fractions of equity; the side is applied at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from layer3 import contract
from layer3.errors import ConfigurationError
from layer3.sizing import cascade as cascade_stage
from layer3.sizing import conformal as conformal_stage
from layer3.sizing import kelly as kelly_stage
from layer3.sizing import regime as regime_stage
from layer3.sizing import sentiment as sentiment_stage
from layer3.sizing.config import ChainConfig
from layer3.sizing.conformal import ConformalWindow
from layer3.sizing.kelly import KellyEstimate, KellyPosterior
from layer3.sizing.regime import RegimeHysteresis
from layer3.sizing.validation import find_problem
from layer3.types import CascadeIndicators, Explanation, PositionSizingDecision, Regime, Stage, TacticalSignal

__all__ = ["Assessment", "Limit", "SizingChain", "decide"]

#: From the fraction that would be held, and the account of it, to a smaller one and its account.
Limit = Callable[[float, Explanation], tuple[float, Explanation]]


class _Facts(NamedTuple):
    """What the reasons are written from; kept as numbers because most assessments are never read."""

    config: ChainConfig
    signal: TacticalSignal
    cascade: CascadeIndicators
    kelly: KellyEstimate
    residuals: int
    quantile: float | None
    regime: Regime
    pending: int
    cascade_factor: float


@dataclass(frozen=True, slots=True)
class Assessment:
    """What the Phase 1 chain makes of one signal.

    ``direction`` is the side that the chain would take (0 for a HOLD, for a SELL with shorts off,
    and for a signal that cannot be used); ``base_fraction`` in [0, 0.5] is how much of equity.
    ``stages`` and ``reason`` are written when they are asked for.
    """

    direction: int
    kelly_fraction: float
    conformal_scale: float
    sentiment_multiplier: float
    regime_multiplier: float
    cascade_risk: float
    cascade_action: str
    base_fraction: float
    #: What is wrong with the input; ``None`` when it could be used.
    problem: str | None
    _facts: _Facts | None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage with what came in, what went out, and why."""
        facts = self._facts
        if facts is None:
            return (Stage("validate", contract.MAX_EXPOSURE, 0.0, self.problem or ""),)
        config, signal = facts.config, facts.signal
        start = config.max_exposure
        if self.direction == 0:
            side = "HOLD" if signal.action.side == 0 else "SELL while shorts are off"
            kelly_reason = f"{side}: nothing to hold"
        else:
            kelly_reason = kelly_stage.describe(config.kelly, facts.kelly)
        steps = (
            (
                "conformal",
                self.conformal_scale,
                conformal_stage.describe(config.conformal, facts.residuals, facts.quantile),
            ),
            (
                "sentiment",
                self.sentiment_multiplier,
                sentiment_stage.describe(config.sentiment, signal.sentiment_score, self.direction),
            ),
            (
                "regime",
                self.regime_multiplier,
                regime_stage.describe(config.regime, signal.regime, facts.regime, facts.pending),
            ),
            ("cascade", facts.cascade_factor, cascade_stage.describe(config.cascade, facts.cascade)),
        )
        fraction = self.kelly_fraction
        stages = [
            Stage("validate", start, start, "every field within its range"),
            Stage("kelly", start, fraction, kelly_reason),
        ]
        for name, factor, why in steps:
            stages.append(Stage(name, fraction, fraction * factor, f"x {factor:.3f}: {why}"))
            fraction *= factor
        within = f"above {start:g} of equity, cut" if fraction > start else f"within {start:g} of equity"
        stages.append(Stage("base cap", fraction, self.base_fraction, within))
        return tuple(stages)

    @property
    def reason(self) -> str:
        """One sentence: what the base fraction is, or which stage made it zero."""
        if self.problem is not None:
            return f"not sized: {self.problem}"
        if self.base_fraction == 0.0:
            stage = next(s for s in self.stages if s.output == 0.0)
            return f"nothing to hold: {stage.name}: {stage.reason}"
        return (
            f"{'long' if self.direction > 0 else 'short'} {self.base_fraction:.2%} of equity: "
            f"Kelly {self.kelly_fraction:.2%}, conformal x {self.conformal_scale:.3f}, "
            f"sentiment x {self.sentiment_multiplier:.3f}, regime x {self.regime_multiplier:.2f}, "
            f"cascade risk {self.cascade_risk:.2f} ({self.cascade_action})"
        )


class SizingChain:
    """The chain and what it remembers: closed trades, forecast errors, and the regime.

    Not thread-safe: one chain per symbol and thread. Bars are assessed in the order of time.
    """

    def __init__(self, config: ChainConfig | None = None) -> None:
        self.config = ChainConfig() if config is None else config
        self.posterior = KellyPosterior(self.config.kelly)
        self.residuals = ConformalWindow(self.config.conformal)
        self.regime = RegimeHysteresis(self.config.regime)

    def record_trade(self, trade_return: float | None) -> bool:
        """Learn from one closed trade: its return after costs, as a fraction. False if that is no number."""
        return self.posterior.record(trade_return)

    def record_residual(self, predicted: float | None, realised: float | None) -> bool:
        """Learn from one forecast of a one-day price return, as fractions. False if either is no number."""
        return self.residuals.record(predicted, realised)

    def to_json(self) -> dict[str, Any]:
        """What the chain remembers, as plain data for :meth:`restored`."""
        return {
            "posterior": self.posterior.to_json(),
            "residuals": self.residuals.to_json(),
            "regime": self.regime.to_json(),
        }

    @classmethod
    def restored(cls, config: ChainConfig, data: Mapping[str, Any]) -> SizingChain:
        """A chain that goes on where :meth:`to_json` was taken: to the bit under the same configuration.

        Under another one what was learnt stays: trades count on top of the new prior, the latest residuals
        fill the new window, the regime that holds goes on holding.

        Raises
        ------
        KeyError, TypeError, ValueError : ``data`` is not such a thing
        """
        chain = cls(config)
        chain.posterior.restore(data["posterior"])
        chain.residuals.restore(data["residuals"])
        chain.regime.restore(data["regime"])
        return chain

    def assess(self, signal: TacticalSignal, cascade: CascadeIndicators, *, new_bar: bool = True) -> Assessment:
        """Size one signal. Bad values never raise: they size to zero with a reason that names them.

        Advances the regime's hysteresis by one bar, unless the input cannot be used: that teaches nothing.
        ``new_bar`` is False for a further signal within one bar, which counts for no calmer regime.
        """
        problem = find_problem(signal)
        feed_problem = find_problem(cascade)
        if problem is not None or feed_problem is not None:
            return self._refuse(problem, feed_problem, cascade)
        config = self.config
        side = signal.action.side
        direction = side if side > 0 or config.allow_shorts else 0
        kelly = kelly_stage.estimate(
            config.kelly,
            self.posterior.mean,
            signal.confidence,
            signal.risk_score,
            signal.expected_return,
            signal.predicted_volatility,
        )
        kelly_fraction = kelly.fraction if direction else 0.0
        residuals = self.residuals
        mood = sentiment_stage.multiplier(config.sentiment, signal.sentiment_score, direction)
        regime_multiplier = self.regime.observe(signal.regime, new_bar=new_bar)
        risk = cascade_stage.risk(config.cascade, cascade)
        action, cascade_factor = cascade_stage.action(config.cascade, risk)
        fraction = kelly_fraction * residuals.scale * mood * regime_multiplier * cascade_factor
        return Assessment(
            direction,
            kelly_fraction,
            residuals.scale,
            mood,
            regime_multiplier,
            risk,
            action,
            min(fraction, config.max_exposure),
            None,
            _Facts(
                config,
                signal,
                cascade,
                kelly,
                len(residuals),
                residuals.quantile,
                self.regime.regime or signal.regime,
                self.regime.pending,
                cascade_factor,
            ),
        )

    def _refuse(self, problem: str | None, feed_problem: str | None, cascade: CascadeIndicators) -> Assessment:
        """Zero size. Feeds that cannot be trusted are taken as the worst case, not as a calm market."""
        risk = 1.0 if feed_problem is not None else cascade_stage.risk(self.config.cascade, cascade)
        action, _ = cascade_stage.action(self.config.cascade, risk)
        return Assessment(0, 0.0, 1.0, 1.0, 1.0, risk, action, 0.0, problem or feed_problem, None)


def decide(
    signal: TacticalSignal,
    assessment: Assessment,
    *,
    multiplier: float,
    multiplier_source: str,
    portfolio_value: float,
    max_exposure: float = contract.MAX_EXPOSURE,
    limit: Limit | None = None,
    **details: Any,
) -> PositionSizingDecision:
    """Apply the policy's multiplier in [0, 2] and the cap: the position in dollars, with every stage.

    ``limit`` may make it smaller still, and adds to the account; ``details`` are further fields of the decision.

    Raises
    ------
    ConfigurationError : the multiplier, the portfolio value (> 0, dollars) or the cap is out of range
    """
    if not contract.MULTIPLIER_LOW <= multiplier <= contract.MULTIPLIER_HIGH:
        raise ConfigurationError(f"multiplier is {multiplier!r}; it must be a number in [0, 2]")
    if not 0.0 < portfolio_value < math.inf:
        raise ConfigurationError(f"portfolio_value is {portfolio_value!r}; it must be a finite number above 0")
    if not 0.0 < max_exposure <= contract.MAX_EXPOSURE:
        raise ConfigurationError(
            f"max_exposure is {max_exposure!r}; it must be a number in (0, {contract.MAX_EXPOSURE}]"
        )
    held = min(assessment.base_fraction * multiplier, max_exposure)
    explanation: Explanation = _Decided(assessment, multiplier, multiplier_source, max_exposure, held)
    if limit is not None:
        held, explanation = limit(held, explanation)
    exposure = assessment.direction * held + 0.0  # + 0.0: no negative zero
    return PositionSizingDecision(
        strategy_id=signal.strategy_id,
        symbol=signal.symbol,
        action=signal.action,
        direction=assessment.direction,
        kelly_fraction=assessment.kelly_fraction,
        conformal_scale=assessment.conformal_scale,
        sentiment_multiplier=assessment.sentiment_multiplier,
        regime_multiplier=assessment.regime_multiplier,
        cascade_risk=assessment.cascade_risk,
        cascade_action=assessment.cascade_action,
        base_fraction=assessment.base_fraction,
        multiplier=multiplier,
        multiplier_source=multiplier_source,
        exposure=exposure,
        position_size_usd=exposure * portfolio_value,
        portfolio_value=portfolio_value,
        explanation=explanation,
        **details,
    )


class _Decided(NamedTuple):
    """The account of a decision, written when it is read (:class:`layer3.types.Explanation`)."""

    assessment: Assessment
    multiplier: float
    source: str
    max_exposure: float
    held: float

    @property
    def stages(self) -> tuple[Stage, ...]:
        base, most = self.assessment.base_fraction, self.max_exposure
        wanted = base * self.multiplier
        capped = f"above {most:g} of equity, cut" if wanted > most else f"within {most:g} of equity"
        return (
            *self.assessment.stages,
            Stage("multiplier", base, wanted, f"x {self.multiplier:.3f} from {self.source}"),
            Stage("cap", wanted, self.held, capped),
        )

    @property
    def reason(self) -> str:
        text = self.assessment.reason
        if self.assessment.base_fraction > 0.0:
            exposure = self.assessment.direction * self.held
            text += f"; multiplier x {self.multiplier:.3f} from {self.source}: exposure {exposure:+.2%}"
        return text
