"""The state contract: the 16 numbers a policy sees, the one number it answers, and their bounds.

This is the only definition. Environment, backtest, live decisions and server call
:func:`build_state`; every policy file carries :data:`VERSION`, and whoever meets another
version refuses (:class:`layer3.errors.ContractError`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ACCOUNT_COLUMNS",
    "FEATURES",
    "HEADER",
    "MAX_EXPOSURE",
    "MULTIPLIER_HIGH",
    "MULTIPLIER_LOW",
    "NEUTRAL_WIN_RATE",
    "STATE_DIM",
    "VERSION",
    "VOLATILITY_WINDOW",
    "WIN_RATE_TRADES",
    "account_part",
    "build_state",
    "tier_of",
]

VERSION: Final = "himari-state-16/1"
#: The HTTP header in which a caller and a server tell each other their VERSION.
HEADER: Final = "X-Contract"
MULTIPLIER_LOW: Final = 0.0
MULTIPLIER_HIGH: Final = 2.0
#: Largest |exposure|, as a fraction of equity; also the scale of state number 8.
MAX_EXPOSURE: Final = 0.5
#: Closed trades that the win rate looks back on; before any trade it is NEUTRAL_WIN_RATE.
WIN_RATE_TRADES: Final = 10
NEUTRAL_WIN_RATE: Final = 0.5
#: Hours of closes behind the volatility feature.
VOLATILITY_WINDOW: Final = 48

FEATURES: Final = (
    "signal_confidence",
    "action_sell",
    "action_hold",
    "action_buy",
    "tier_1",
    "tier_2",
    "tier_3",
    "tier_4",
    "position_size",
    "position_side",
    "unrealised_pnl",
    "return_1h",
    "return_4h",
    "volatility",
    "win_rate",
    "cascade_risk",
)
STATE_DIM: Final = len(FEATURES)
#: Where :func:`account_part` goes; the other columns depend on market and signal alone.
ACCOUNT_COLUMNS: Final = (8, 9, 10, 14)

_TIER_EDGES = np.array([0.2, 0.4, 0.6])
_PLAIN: Final = frozenset({float, int})


def tier_of(risk_score: ArrayLike) -> NDArray[np.int64]:
    """Tier 1..4 of a risk score in [0, 1]: T1 up to 0.2, T2 up to 0.4, T3 up to 0.6, T4 above."""
    return np.asarray(np.searchsorted(_TIER_EDGES, np.asarray(risk_score, dtype=np.float64), side="left") + 1)


def build_state(
    *,
    confidence: ArrayLike,
    side: ArrayLike,
    tier: ArrayLike,
    exposure: ArrayLike,
    unrealised_pnl: ArrayLike,
    return_1h: ArrayLike,
    return_4h: ArrayLike,
    volatility: ArrayLike,
    win_rate: ArrayLike,
    cascade_risk: ArrayLike,
) -> NDArray[np.float32]:
    """Build the state of one decision, or of many at once.

    All arguments broadcast against each other to a common shape ``(...)``.

    Parameters
    ----------
    confidence : the signal's confidence, in [0, 1]
    side : the signal's side: -1 SELL, 0 HOLD, +1 BUY (the STRONG_ actions map to their side)
    tier : 1..4, see :func:`tier_of`
    exposure : position held now, signed fraction of equity; the scale is ``MAX_EXPOSURE``
    unrealised_pnl : gain of the open position since its average entry, as a fraction
    return_1h, return_4h : return of the close over one and four hours, as fractions
    volatility : standard deviation of the daily return, as a fraction
    win_rate : share of winners among the last ``WIN_RATE_TRADES`` closed trades
    cascade_risk : in [0, 1]

    Returns
    -------
    float32 array of shape ``(..., 16)``, every number within its documented bounds. A NaN
    in an argument comes out as NaN: whoever takes data from outside checks it first.
    """
    arguments = (
        confidence, side, tier, exposure, unrealised_pnl, return_1h, return_4h, volatility, win_rate, cascade_risk
    )  # fmt: skip
    if {value.__class__ for value in arguments} <= _PLAIN:
        return _one_state(*arguments)
    columns = np.broadcast_arrays(*arguments)
    conf, sgn, tr, held, pnl, r1, r4, vol, wins, risk = columns
    state = np.empty((*conf.shape, STATE_DIM), dtype=np.float32)
    state[..., 0] = np.clip(conf, 0.0, 1.0)
    for offset, value in enumerate((-1, 0, 1)):
        state[..., 1 + offset] = sgn == value
    for offset in range(4):
        state[..., 4 + offset] = tr == offset + 1
    for column, values in zip(ACCOUNT_COLUMNS, account_part(held, pnl, wins), strict=True):
        state[..., column] = values
    state[..., 11] = np.clip(r1, -0.1, 0.1) * (100.0 / 10.0)
    state[..., 12] = np.clip(r4, -0.2, 0.2) * (100.0 / 20.0)
    state[..., 13] = np.clip(vol, 0.0, 0.1) / 0.1
    state[..., 15] = np.clip(risk, 0.0, 1.0)
    return state


def _one_state(
    confidence: Any, side: Any, tier: Any, exposure: Any, unrealised_pnl: Any, return_1h: Any, return_4h: Any,
    volatility: Any, win_rate: Any, cascade_risk: Any,
) -> NDArray[np.float32]:  # fmt: skip
    """The same of plain numbers, to the bit, without the tenfold overhead of arrays without axes."""
    numbers = [0.0] * STATE_DIM
    numbers[0] = _clip(confidence, 0.0, 1.0)
    if side in (-1, 0, 1):
        numbers[2 + int(side)] = 1.0
    if tier in (1, 2, 3, 4):
        numbers[3 + int(tier)] = 1.0
    numbers[8] = _clip(abs(exposure), 0.0, MAX_EXPOSURE) / MAX_EXPOSURE
    numbers[9] = exposure if exposure != exposure else float((exposure > 0.0) - (exposure < 0.0))
    numbers[10] = _clip(unrealised_pnl, -0.5, 0.5) * 2.0
    numbers[11] = _clip(return_1h, -0.1, 0.1) * (100.0 / 10.0)
    numbers[12] = _clip(return_4h, -0.2, 0.2) * (100.0 / 20.0)
    numbers[13] = _clip(volatility, 0.0, 0.1) / 0.1
    numbers[14] = _clip(win_rate, 0.0, 1.0)
    numbers[15] = _clip(cascade_risk, 0.0, 1.0)
    return np.array(numbers, dtype=np.float32)


def _clip(x: float, low: float, high: float) -> float:
    # NaN stays NaN: both comparisons are false.
    return low if x < low else high if x > high else x


def account_part(exposure: Any, unrealised_pnl: Any, win_rate: Any, xp: Any = np) -> tuple[Any, Any, Any, Any]:
    """The state's ``ACCOUNT_COLUMNS``, float64 of the arguments' shape: size, side, unrealised P&L, win rate.

    Arguments as for :func:`build_state`; ``xp`` is the module whose arrays they are, numpy or torch,
    so that a training on a GPU sees the state that is served.
    """
    return (
        # Clipped before it is scaled, so that no finite number overflows.
        xp.clip(xp.abs(exposure), 0.0, MAX_EXPOSURE) / MAX_EXPOSURE,
        xp.sign(exposure),
        xp.clip(unrealised_pnl, -0.5, 0.5) * 2.0,
        xp.clip(win_rate, 0.0, 1.0),
    )
