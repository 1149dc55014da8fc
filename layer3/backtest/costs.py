"""Where a record's money went, and what would be left of it if trading cost more."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from layer3 import ledger
from layer3.agent.bars import Bars, concatenate
from layer3.agent.environment import Account, EnvironmentConfig
from layer3.backtest.engine import Decide
from layer3.backtest.metrics import periods_per_year, sharpe
from layer3.backtest.record import CostLine, Costs, Track
from layer3.errors import EvaluationError

__all__ = ["MULTIPLES", "check_track", "cost_evidence", "fixed_exposure_return"]

Floats = NDArray[np.float64]

#: What every cost is multiplied by in the lines.
MULTIPLES: Final = (0.5, 1.0, 2.0, 4.0)
#: Largest multiple that a break-even is looked for at.
_MOST: Final = 100
_HALVINGS: Final = 50
_FUNDING_SECONDS: Final = 8 * 3_600
#: As in the ledger: what is smaller than this is rounding and trades nothing.
_DUST: Final = 1e-12


@dataclass(frozen=True, slots=True)
class _Rates(ledger.Costs):
    """Costs of accounts side by side, each number (n,), and beyond what is sensible for one account."""

    commission: Any
    slippage: Any

    def __post_init__(self) -> None:
        """Nothing to check: multiples of rates that were checked."""


def check_track(track: Track) -> None:
    """Raise :class:`EvaluationError` at the first column of ``track`` that holds a number that is not finite."""
    for field in fields(Track):
        wrong = np.flatnonzero(~np.isfinite(getattr(track, field.name)))
        if wrong.size:
            value = getattr(track, field.name)[wrong[0]]
            raise EvaluationError(f"the policy's {field.name} is {value} at decision {wrong[0]:,}: check the data")


def cost_evidence(
    bars: Bars, window: range, decide: Decide, track: Track, environment: EnvironmentConfig | None = None
) -> Costs:
    """Tell the costs of ``track`` apart, and walk ``bars[window]`` again under others.

    ``track`` is what ``decide`` came to on these bars under ``environment``. The lines at other
    multiples than 1 are walked anew with every cost (commission, slippage, funding) so many times
    as high: the decisions are those that ``decide`` takes then, because what it sees depends on the
    account. The break-even is of the decisions on record, exposures held fixed: the first multiple
    at which :func:`fixed_exposure_return` is 0, looked for in steps of 1 and then halved. Finding it
    by walks would meet jumps, where a decision tips over.

    Raises
    ------
    EvaluationError : the track holds numbers that are not finite, or ``decide`` answers one
    """
    environment = environment or EnvironmentConfig()
    check_track(track)
    periods, capital = periods_per_year(bars.interval_seconds), float(track.equity[0])
    notional = track.turnover * track.equity[:-1]
    slippage = environment.costs.slippage * float(notional.sum()) / capital
    commission = float(track.cost.sum()) / capital - slippage
    funding = float(track.funding.sum()) / capital
    net = float(track.equity[-1]) / capital - 1.0
    others = [multiple for multiple in MULTIPLES if multiple != 1.0]
    walked = _walk(bars, window, decide, others, environment)
    equities = {1.0: track.equity, **dict(zip(others, walked.T, strict=True))}
    return Costs(
        gross=net + commission + slippage + funding,
        commission=commission,
        slippage=slippage,
        funding=funding,
        net=net,
        lines=tuple(_line(multiple, equities[multiple], periods) for multiple in MULTIPLES),
        break_even=_break_even(bars, window, track.exposure, environment.costs),
    )


def fixed_exposure_return(
    bars: Bars, window: range, exposure: Floats, costs: ledger.Costs, multiple: float = 1.0
) -> float:
    """Total return of holding ``exposure`` (w - 2,), signed fractions of equity, whatever it costs.

    The ledger's own arithmetic, without the account: the fraction held before a trade depends on
    the exposures and the prices alone, so that equity is a product over the bars. -1 where it is
    used up on the way. ``multiple`` is that of every cost.
    """
    opens = bars.open[window.start + 1 : window.stop]
    per_bar = bars.funding_rate[window.start + 1 : window.stop - 1] * (bars.interval_seconds / _FUNDING_SECONDS)
    x = np.where(np.abs(exposure) <= _DUST, 0.0, exposure)
    moved = opens[1:] / opens[:-1]
    growth = 1.0 + x * (moved - 1.0 - multiple * per_bar)
    if np.any(growth <= 0.0):
        return -1.0
    held = np.concatenate(([0.0], (x * moved / growth)[:-1]))
    gap = np.where(np.abs(x - held) <= _DUST, 0.0, x - held)
    side = np.sign(gap)
    slippage, commission = multiple * costs.slippage, multiple * costs.commission
    rate = slippage + commission * (1.0 + side * slippage)
    # A sale whose costs exceed what it brings has no solution: nothing is left of such an account.
    share = 1.0 + side * x * rate
    if np.any(share <= 0.0):
        return -1.0
    kept = 1.0 - rate * np.abs(gap) / share
    return float(np.expm1(np.log(growth * kept).sum())) if np.all(kept > 0.0) else -1.0


def _break_even(bars: Bars, window: range, exposure: Floats, costs: ledger.Costs) -> float | None:
    """The multiple at which the first gain of ``exposure`` is used up, in (0, 100]; ``None`` where there is none."""

    def left(multiple: float) -> float:
        return fixed_exposure_return(bars, window, exposure, costs, multiple)

    if left(0.0) <= _DUST:
        return None
    high = next((float(multiple) for multiple in range(1, _MOST + 1) if left(multiple) <= 0.0), None)
    if high is None:
        return None
    low = high - 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if left(middle) > 0.0 else (low, middle)
    return high


def _walk(
    bars: Bars, window: range, decide: Decide, multiples: list[float], environment: EnvironmentConfig
) -> NDArray[np.float64]:
    """Equity (w - 1, n) of one account per multiple, as :func:`layer3.backtest.engine.run` walks one."""
    n, steps, width = len(multiples), len(window) - 2, len(window)
    part = Bars(**{field.name: getattr(bars, field.name)[window.start : window.stop] for field in fields(Bars)})
    # Each account walks its own copy of the bars, in which funding is its multiple.
    copies = concatenate([replace(part, funding_rate=multiple * part.funding_rate) for multiple in multiples])
    times = np.array(multiples)
    rates = _Rates(times * environment.costs.commission, times * environment.costs.slippage)
    account = Account(copies, n, replace(environment, costs=rates))
    equity = np.full((steps + 1, n), environment.capital)
    at = np.arange(n) * width
    for t in range(steps):
        multiplier = np.array([decide(state, t) for state in account.observe(at)])
        if not np.isfinite(multiplier).all():
            raise EvaluationError(
                f"at {multiples[int(np.argmin(np.isfinite(multiplier)))]:g} times the costs the policy answered no "
                f"finite multiplier at bar {window.start + t}: check the data and the policy"
            )
        account.trade(at, account.target(at, multiplier))
        equity[t + 1] = account.ledger.equity(copies.open[at + 2])
        at = at + 1
    return equity


def _line(multiple: float, equity: Floats, periods: float) -> CostLine:
    """Ratios to equity that was lost mean nothing; what the account came to does."""
    lost = bool(np.any(equity <= 0.0))
    ratio = None if lost else sharpe(equity[1:] / equity[:-1] - 1.0, periods)
    return CostLine(multiple, ratio, float(equity[-1] / equity[0] - 1.0))
