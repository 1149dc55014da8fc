"""An experiment beside an engine that may not wait: who gets what is said at once, and written by a thread.

    live = LiveExperiment(Store(path), Store(path, read_only=True), Design("policy-against-kelly"))
    engine = Layer3Phase1(config, assigner=live)
    engine.observers.append(live.observe)

A unit's arm is known from memory, from the file, or from its hash; decisions and outcomes are written in the order
in which they came, many with one wait for the disk. What cannot be written now is kept and tried again, and as long
as that lasts every decision gets Kelly's size and is no part of the experiment: without a record no guardrail sees
what the policy does.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from layer3.ab.assignment import Arm, Assignment, Design
from layer3.ab.records import Decision, Stop
from layer3.ab.store import Store
from layer3.errors import DataError, StoreError
from layer3.experiment import Experiment
from layer3.types import Arms, How, PositionSizingDecision, TacticalSignal

__all__ = ["LiveExperiment", "Ticket"]

_log = logging.getLogger(__name__)
#: Records that wait for the disk at most, how many are written at once, and units whose arm is in memory.
_MOST_WAITING: Final = 10_000
_BATCH: Final = 500
_MOST_UNITS: Final = 50_000
#: Seconds between two looks for a stop by another process; between two attempts, the first and the longest.
_LOOK_S: Final = 1.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
_FIELDS: Final = ("decision_id", "symbol", "strategy_id", "portfolio_value", "multiplier_source", "timestamp_ns")


class Ticket:
    """One record on its way: ``error`` says why it was refused, once :meth:`wait` says that it is through."""

    def __init__(self, write: Callable[[], object]) -> None:
        self.write = write
        self.error: DataError | None = None
        self._through = threading.Event()

    def wait(self, seconds: float) -> bool:
        """Whether it is on the disk, or refused, within so many seconds."""
        return self._through.wait(seconds)

    def settle(self) -> None:
        """It is through."""
        self._through.set()


class LiveExperiment:
    """Assigns without waiting and records behind; for any number of threads. Close it when done.

    ``store`` is written, ``reads`` the same file opened for reading: it does not wait for writers. ``forced`` gives
    every decision that arm, for tests. It closes both stores.

    Attributes
    ----------
    counters : ``policy`` and ``kelly`` decisions held at either size; ``unrecorded`` ones that had to be Kelly's;
        ``refused`` records that contradict the store; ``store_errors`` attempts that the disk refused

    Raises
    ------
    As :class:`~layer3.experiment.Experiment` and :class:`~layer3.ab.store.Store`.
    """

    def __init__(
        self,
        store: Store,
        reads: Store,
        design: Design,
        *,
        forced: Arm | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._store, self._reads, self._forced, self._clock = store, reads, forced, clock
        self._experiment = Experiment(store, design, clock=clock)
        self._units: OrderedDict[str, tuple[Arm, float]] = OrderedDict()
        self._stop: Stop | None = store.stopped(design.name)
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._failing = self._over = False
        self._thread = threading.Thread(target=self._run, name="himari-experiment", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._experiment.design.name

    @property
    def waiting(self) -> int:
        """Records that are not on the disk yet."""
        return len(self._waiting)

    @property
    def stopped(self) -> Stop | None:
        """When and why the policy's arm was stopped; ``None`` while it was not."""
        return self._stop

    def assign(self, signal: TacticalSignal) -> Assignment:
        """Whose size ``signal`` gets; never raises, and waits for no writer."""
        unit = self._experiment.unit_of(signal)
        arm, how, share = self._choose(unit)
        return Assignment(self.name, arm, how, unit, signal.symbol, signal.strategy_id, share)

    def _choose(self, unit: str) -> tuple[Arm, How, float | None]:
        if self._forced is not None:
            return self._forced, "forced", None
        if self._stop is not None:
            return Arm.KELLY, "stopped", None
        if self._failing or len(self._waiting) >= _MOST_WAITING:
            return Arm.KELLY, "unrecorded", None
        with self._changed:
            known = self._units.get(unit)
            if known is None:
                try:
                    known = self._reads.assigned(self.name, unit)
                except StoreError as error:
                    _log.error("an experiment's store cannot be read", extra={"error": str(error)})
                    return Arm.KELLY, "unrecorded", None
                known = self._units[unit] = known or self._experiment.draw(unit)
                if len(self._units) > _MOST_UNITS:
                    self._units.popitem(last=False)
        return known[0], "assigned", known[1]

    def observe(self, decision: PositionSizingDecision, inputs: object) -> None:
        """Record one decision of the engine, later."""
        arms = decision.experiment
        if arms is None:
            return
        with self._changed:
            self.counters["unrecorded" if arms.how == "unrecorded" else arms.arm] += 1
        self._record(arms, {name: getattr(decision, name) for name in _FIELDS})

    def record_again(self, decision: Mapping[str, Any]) -> None:
        """Record a decision of the decision log (:meth:`~layer3.types.PositionSizingDecision.to_json`), which a
        process that was killed may have told without recording it; a StoreError where the file cannot be read."""
        if decision.get("experiment") is not None and not self._reads.has_decision(decision["decision_id"]):
            self._record(Arms(**decision["experiment"]), decision)

    def record_outcome(self, decision_id: str, *, pnl_usd: float, realised_return: float, duration_s: float) -> Ticket:
        """Record what became of a decision, later; the ticket says whether it was taken."""

        def write() -> None:
            stop = self._experiment.record_outcome(
                decision_id, pnl_usd=pnl_usd, realised_return=realised_return, duration_s=duration_s
            )
            self._see(stop)

        return self._queue(write)

    def settle(self, seconds: float) -> bool:
        """Whether everything so far is on the disk within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting or self._failing, seconds) and not self._waiting

    def close(self) -> None:
        """Write what waits, if the disk takes it now, and close both stores."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._thread.join()
        if self._waiting:
            lost = {"experiment": self.name, "records": len(self._waiting)}
            _log.error("records of an experiment are lost: its store cannot be written", extra=lost)
        self._store.close()
        self._reads.close()

    def __enter__(self) -> LiveExperiment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _record(self, arms: Arms, values: Mapping[str, Any]) -> None:
        if arms.how == "unrecorded" or arms.experiment != self.name:
            return
        decision = Decision(
            values["decision_id"],
            arms.experiment,
            arms.unit,
            Arm(arms.arm),
            arms.how,
            values["symbol"],
            values["strategy_id"],
            arms.kelly_usd,
            arms.policy_usd,
            values["portfolio_value"],
            values["multiplier_source"],
            values["timestamp_ns"],
        )

        def write() -> None:
            try:
                self._store.add_decision(decision, self._clock(), arms.share)
            except StoreError:
                raise
            except DataError:
                with self._changed:
                    self._units.pop(arms.unit, None)  # another process has assigned it otherwise
                raise

        self._queue(write)

    def _queue(self, write: Callable[[], object]) -> Ticket:
        ticket = Ticket(write)
        with self._changed:
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def _run(self) -> None:
        wait = _FIRST_WAIT_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._over, _LOOK_S)
                batch = list(itertools.islice(self._waiting, _BATCH))
                if not batch and self._over:
                    return
            try:
                if batch:
                    self._write(batch)
                self._see(self._reads.stopped(self.name))  # another process may have called for it
            except StoreError as error:
                self._failed(error)
                with self._changed:
                    if self._over:
                        return
                    self._changed.wait_for(lambda: self._over, wait)
                wait = min(2.0 * wait, _LONGEST_WAIT_S)
            else:
                self._worked()
                wait = _FIRST_WAIT_S

    def _write(self, batch: list[Ticket]) -> None:
        """Write ``batch`` as a whole, but for what contradicts the store."""
        with self._store.together():
            for ticket in batch:
                ticket.error = None
                try:
                    ticket.write()
                except StoreError:
                    raise
                except DataError as error:
                    ticket.error = error
                # What nobody foresaw must not end the thread: without records no guardrail sees the policy.
                except Exception as error:  # noqa: BLE001
                    ticket.error = DataError(f"it cannot be written: {error!r}")
        for ticket in batch:
            if ticket.error is not None:
                self.counters["refused"] += 1
                _log.error("an experiment's store refuses a record", extra={"error": str(ticket.error)})
            ticket.settle()
        with self._changed:
            for _ in batch:
                self._waiting.popleft()
            self._changed.notify_all()

    def _failed(self, error: StoreError) -> None:
        self.counters["store_errors"] += 1
        with self._changed:
            first, self._failing = not self._failing, True
            self._changed.notify_all()
        if first:
            why = {"experiment": self.name, "error": str(error)}
            _log.error("an experiment's store fails: until it works every decision gets Kelly's size", extra=why)

    def _worked(self) -> None:
        if self._failing:
            self._failing = False
            _log.warning("an experiment's store works again", extra={"experiment": self.name})

    def _see(self, stop: Stop | None) -> None:
        if stop is not None and self._stop is None:
            self._stop = stop
            _log.error("an experiment's policy was stopped", extra={"experiment": self.name, "why": stop.reason})
