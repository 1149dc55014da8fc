"""The engine of Phase 1: a size in time, every time, and the account of it.

:class:`Layer3Phase1` never raises in the hot path and never hides why it says what it says. A decision runs
through three steps, of which only the second may wait, and without the lock:

1. check the inputs, learn from closed trades and prices, assess the signal (:mod:`layer3.sizing.chain`);
2. ask the policy for its multiplier (:mod:`layer3.live.sources`);
3. apply the multiplier, the caps and the risk limits (:mod:`layer3.live.outcome`).

One chain per symbol: what is learnt of a symbol (closed trades, forecast errors, regime, prices) is shared by
the strategies that trade it; positions are kept apart by strategy and symbol.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from layer3.ab.assignment import Assigner
from layer3.breaker import CircuitBreaker
from layer3.errors import ConfigurationError, DataError
from layer3.live import risk
from layer3.live.active import Active, Connect, connect, prepare
from layer3.live.configuration import Layer3Config, at_start
from layer3.live.draft import Assessed, Draft, Refusal, begin
from layer3.live.figures import SymbolFigures, symbol_figures
from layer3.live.inputs import Inputs, number_or_nan
from layer3.live.logs import correlation
from layer3.live.memory import Memory
from layer3.live.outcome import finish, refused
from layer3.live.risk import KillSwitch
from layer3.live.sources import Answer, Asker, Multipliers
from layer3.live.state import Saver, read_state, write_state
from layer3.live.telling import Observer, Teller
from layer3.types import FALLBACK_KELLY, CascadeIndicators, ClosedTrade, PositionSizingDecision, TacticalSignal

__all__ = ["Layer3Phase1", "Observer"]

_log = logging.getLogger(__name__)
_NOBODY = Answer(1.0, FALLBACK_KELLY)
#: Configurations that are remembered for who looks on; decisions under way are never as many changes old.
_LATELY: Final = 64


class _Begun(NamedTuple):
    """A decision after its first step: ``answer`` is known where nobody is to be asked, an error where it failed."""

    inputs: Inputs
    started: float
    active: Active
    name: str
    draft: Draft | None
    answer: Answer | Exception | None

    @property
    def state(self) -> NDArray[np.float32]:
        """What the policy is to see; only where ``answer`` is ``None``."""
        assert isinstance(self.draft, Assessed)
        return self.draft.state


class Layer3Phase1:
    """Sizes signals; for any number of threads and event loops at once. Close it when done.

    Parameters
    ----------
    config : checked when it was made (:func:`layer3.live.configuration.load_config`)
    clock : UTC nanoseconds; timer : seconds, for latencies and the breaker
    connect : makes the client of the served policy
    multipliers : is asked instead of every policy that a configuration names, for a replay
    assigner : an experiment that says whose size each signal gets (:class:`layer3.ab.live.LiveExperiment`)
    seed : of the breaker's jitter; ``None`` draws one
    state : a snapshot (:meth:`snapshot`) to go on from; ``None`` takes the file ``config.state.path`` if there is one

    Attributes
    ----------
    observers : called in turn after each decision; one that raises is logged and counted, the decision stands
    kill_switch : while it is on every size is zero
    counters : ``decisions``, ``refused.<word>``, ``unauthorised`` (calls whose key or token the server refused),
        ``observer_errors``, ``reloads``

    Raises
    ------
    ConfigurationError, PolicyError, ContractError, ReleaseError : the configuration cannot be used, or names
        a policy file that cannot be trusted
    DataError : the snapshot is damaged or comes of a newer program
    """

    def __init__(
        self,
        config: Layer3Config,
        *,
        clock: Callable[[], int] = time.time_ns,
        timer: Callable[[], float] = time.perf_counter,
        connect: Connect = connect,
        multipliers: Multipliers | None = None,
        assigner: Assigner | None = None,
        seed: int | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(config, Layer3Config):
            raise ConfigurationError(f"config is {config!r}; it must be a Layer3Config, see load_config")
        self._clock, self._timer, self._connect = clock, timer, connect
        self._multipliers, self._assigner = multipliers, assigner
        self._rng = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._instance, self._sequence = secrets.token_hex(4), 0
        self._memory = Memory()
        self._retired: Asker | None = None
        self._saver: Saver | None = None
        self._teller = Teller()
        self.observers, self.counters = self._teller.observers, self._teller.counters
        self.kill_switch = KillSwitch()
        self._active = prepare(config, connect, self._rng, timer, self._teller.count, None, multipliers)
        self._lately = {self._active.digest: config}
        self._aim_kill_switch()
        if config.risk.kill_signal:
            self.kill_switch.listen()
        if state is None and config.state.path is not None:
            state = read_state(Path(config.state.path), or_none=config.state.start_fresh_if_unreadable)
        if state is not None:
            self._restore(state)
        if config.state.path is not None:
            self._saver = Saver(self.save, config.state.every_s)

    @property
    def config(self) -> Layer3Config:
        """The configuration that sizes now."""
        return self._active.config

    @property
    def config_hash(self) -> str:
        """Its hash, which every decision carries."""
        return self._active.digest

    def config_of(self, config_hash: str) -> Layer3Config | None:
        """The configuration that a decision of late was made by."""
        return self._lately.get(config_hash)

    @property
    def breaker(self) -> CircuitBreaker | None:
        """The breaker before the served policy; ``None`` where none is asked."""
        return self._active.breaker

    def calculate_position(
        self,
        signal: TacticalSignal,
        cascade: CascadeIndicators,
        current_price: float,
        current_position_usd: float = 0.0,
        entry_price: float | None = None,
        recent_trades: Sequence[ClosedTrade | Mapping[str, Any] | float] | None = (),
        *,
        price_timestamp_ns: int | None = None,
    ) -> PositionSizingDecision:
        """Size one signal. Never raises, whatever it is given: what cannot be used gives size zero and the reason.

        Parameters
        ----------
        current_price : dollars, above 0; ``price_timestamp_ns`` says of when (UTC), ``None`` means now
        current_position_usd : what this strategy holds of this symbol, worth now, signed
        entry_price : its average entry price; ``None`` or 0 for the first price at which the engine saw it
        recent_trades : closed trades, oldest first; one that was handed over before teaches nothing again. A
            mapping needs ``trade_return`` or ``pnl_usd`` and may say ``closed_at_ns`` and ``trade_id``; a plain
            number is a return. Of a loss without dollars the largest position is assumed for the day's account,
            of such a gain nothing
        """
        begun = self._begin(
            -1, signal, cascade, current_price, current_position_usd, entry_price, recent_trades, price_timestamp_ns
        )
        answer = begun.answer
        with correlation(begun.name):
            if answer is None:
                try:
                    answer = begun.active.sources.ask(begun.state, begun.name)
                except Exception as error:  # noqa: BLE001  # _end tells of it
                    answer = error
            return self._end(begun, answer)

    async def acalculate_position(
        self,
        signal: TacticalSignal,
        cascade: CascadeIndicators,
        current_price: float,
        current_position_usd: float = 0.0,
        entry_price: float | None = None,
        recent_trades: Sequence[ClosedTrade | Mapping[str, Any] | float] | None = (),
        *,
        price_timestamp_ns: int | None = None,
    ) -> PositionSizingDecision:
        """:meth:`calculate_position` for callers in an event loop, which runs on while the policy is asked."""
        begun = self._begin(
            -1, signal, cascade, current_price, current_position_usd, entry_price, recent_trades, price_timestamp_ns
        )
        answer = begun.answer
        with correlation(begun.name):
            if answer is None:
                try:
                    answer = await begun.active.sources.aask(begun.state, begun.name)
                except Exception as error:  # noqa: BLE001  # _end tells of it
                    answer = error
            return self._end(begun, answer)

    def record_residual(self, symbol: str, predicted: float | None, realised: float | None) -> bool:
        """Teach the conformal scale of ``symbol`` one forecast of a one-day price return and what came of it.

        False where either is no number, which is counted, or the symbol was never sized.
        """
        with self._lock:
            memory = self._memory.symbols.get(symbol) if type(symbol) is str else None
            return memory is not None and memory.chain.record_residual(
                number_or_nan(predicted), number_or_nan(realised)
            )

    def figures(self, symbol: str) -> SymbolFigures | None:
        """What is known of a symbol now; ``None`` where it was never sized."""
        with self._lock:
            memory = self._memory.symbols.get(symbol)
            return None if memory is None else symbol_figures(memory)

    def reset_daily_loss(self) -> None:
        """Trade on after the daily loss stopped it: what was lost so far no longer counts."""
        with self._lock:
            self._memory.account.reset()
        _log.warning("the daily loss was reset by hand")

    def reload(self, config: Layer3Config) -> None:
        """Size by another configuration from the next decision on, or raise and keep the present one.

        What was learnt stays: closed trades count on top of the new prior, the latest residuals fill the new
        window, regime, prices (unless bars have another length), positions and the day's account go on. The
        breaker goes on too unless its settings or the endpoint changed. What takes effect at the next start only
        (:func:`layer3.live.configuration.at_start`) is logged.

        Raises
        ------
        As the constructor.
        """
        active = prepare(
            config, self._connect, self._rng, self._timer, self._teller.count, self._active, self._multipliers
        )
        with self._lock:
            before, self._active = self._active, active
            self._lately = dict([*self._lately.items(), (active.digest, config)][-_LATELY:])
            if (config.chain, config.market) != (before.config.chain, before.config.market):
                self._memory = Memory.restored(config.chain, config.market.bar_seconds, self._memory.to_json())
            self._aim_kill_switch()
            self._teller.count("reloads")
        later = at_start(before.config, config)
        if later:
            _log.warning("changed settings that take effect at the next start", extra={"settings": later})
        if before.client is not active.client:
            # A decision under way may still ask the old client; the one before it nobody knows any more.
            retired, self._retired = self._retired, before.client
            if retired is not None:
                retired.close()

    def snapshot(self) -> dict[str, Any]:
        """Everything that was learnt, as plain data for the argument ``state``."""
        with self._lock:
            breaker = self._active.breaker
            return {
                "saved_at_ns": self._clock(),
                "latest": self._id(),
                "config_hash": self._active.digest,
                "memory": self._memory.to_json(),
                "kill_switch": self.kill_switch.engaged,
                "breaker": None if breaker is None else breaker.snapshot(),
            }

    def save(self) -> None:
        """Write the snapshot to ``config.state.path``; nothing where there is none. An OSError if the disk refuses."""
        path = self.config.state.path
        if path is not None:
            write_state(Path(path), self.snapshot())

    def close(self) -> None:
        """Save the state and let go of threads and connections; decisions after it fall back."""
        if self._saver is not None:
            self._saver.stop()
        try:
            self.save()
        finally:
            for client in (self._active.client, self._retired):
                if client is not None:
                    client.close()

    def __enter__(self) -> Layer3Phase1:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, *given: Any) -> _Begun:
        """The first step, for :class:`Inputs` without the time; never raises."""
        started, inputs, active, name = self._timer(), Inputs(*given), self._active, ""
        try:
            inputs = inputs._replace(now_ns=self._clock())
            killed = self.kill_switch.why()
            with self._lock:
                active, name = self._active, self._next_id()
                draft = begin(self._memory, inputs, active.config, killed)
            if isinstance(draft, Assessed):
                return _Begun(inputs, started, active, name, draft, _unasked(active, draft))
            return _Begun(inputs, started, active, name, draft, _NOBODY)
        except Exception as error:  # noqa: BLE001  # _end tells of it
            return _Begun(inputs, started, active, name, None, error)

    def _end(self, begun: _Begun, answer: Answer | Exception) -> PositionSizingDecision:
        """The third step, with the answer that came, or the error; never raises."""
        inputs, started, active, name, draft, _ = begun
        try:
            if isinstance(answer, Exception):
                raise answer
            if isinstance(draft, Assessed):
                decision = self._finish(active, name, draft, answer, inputs, started)
            else:
                assert draft is not None
                decision = self._refused(active, name, draft, inputs, started)
        # Everything is caught: a fault of this program must not leave a caller without a size. It is not hidden:
        # zero, counted, logged with its traceback, named in the reason.
        except Exception as error:  # noqa: BLE001
            decision = self._broken(inputs, error, started)
        self._teller.tell(decision, inputs, self._active.config)
        return decision

    def _finish(
        self, active: Active, name: str, draft: Assessed, answer: Answer, inputs: Inputs, started: float
    ) -> PositionSizingDecision:
        """The size, from the assessed signal and the multiplier."""
        assignment = None if self._assigner is None else self._assigner.assign(draft.checked.signal)
        with self._lock:
            # Here once more: what was turned on while the policy was asked must stop this decision too.
            engaged, stop = self.kill_switch.engaged, draft.stop
            if engaged is not None:
                stop = (risk.KILL_SWITCH, f"the kill switch is on: {engaged}")
            stamp = self._stamp(active, name, inputs, started)
            return finish(self._memory, draft, answer, active.config, stop, assignment, **stamp)

    def _refused(
        self, active: Active, name: str, refusal: Refusal, inputs: Inputs, started: float
    ) -> PositionSizingDecision:
        stamp = self._stamp(active, name, inputs, started)
        return refused(inputs, *refusal, active.config.portfolio_value, **stamp)

    def _broken(self, inputs: Inputs, error: Exception, started: float) -> PositionSizingDecision:
        """Size zero for a decision that ended in a fault of this program."""
        with self._lock:
            active, name = self._active, self._next_id()
        why = f"internal error: {type(error).__name__}: {str(error)[:200]}"
        _log.error("a decision failed: size zero", exc_info=error, extra={"decision_id": name})
        return self._refused(active, name, (risk.INTERNAL_ERROR, why), inputs, started)

    def _stamp(self, active: Active, name: str, inputs: Inputs, started: float) -> dict[str, Any]:
        took = (self._timer() - started) * 1e3
        return {"decision_id": name, "timestamp_ns": inputs.now_ns, "config_hash": active.digest, "latency_ms": took}

    def _id(self) -> str:
        """The id of the latest decision that was begun."""
        return f"{self._instance}-{self._sequence:08x}"

    def _next_id(self) -> str:
        self._sequence += 1
        return self._id()

    def _aim_kill_switch(self) -> None:
        file = self._active.config.risk.kill_file
        self.kill_switch.file = None if file is None else Path(file)

    def _restore(self, state: Mapping[str, Any]) -> None:
        config = self._active.config
        try:
            memory = Memory.restored(config.chain, config.market.bar_seconds, state["memory"])
            engaged, breaker = state["kill_switch"], state["breaker"]
            elapsed = max(0.0, (self._clock() - int(state["saved_at_ns"])) / 1e9)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(f"the state of the engine is not one that it wrote ({error!r}): restore a copy") from error
        if breaker is not None and self._active.breaker is not None:
            self._active.breaker.restore(breaker, elapsed=elapsed)
        self._memory = memory
        if engaged is not None:
            self.kill_switch.engage(str(engaged))


def _unasked(active: Active, draft: Assessed) -> Answer | None:
    """The answer where asking could not change the size; ``None`` where the policy is to be asked."""
    if draft.stop is None:
        return None
    return active.sources.nobody(f"nobody was asked: {draft.stop[0]} makes the size zero")
