"""One message after the other: what it is, its decision, the log, the answer, the acknowledgement, in this order."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from layer3.ab.live import LiveExperiment
from layer3.live.inputs import read_back
from layer3.live.log_file import DECISION, files, read
from layer3.live.messages import MessageError, arguments, decoded, named
from layer3.live.phase1 import Layer3Phase1
from layer3.live.recorder import RESIDUAL, Recorder
from layer3.live.streams import Message, Sink, Source
from layer3.live.table import DecisionTable
from layer3.live.tally import Tally
from layer3.types import PositionSizingDecision

__all__ = ["Runner", "SignalClock", "decisions"]

_log = logging.getLogger(__name__)
#: Seconds between two lines that say how far it is, where there is no table.
_PROGRESS: Final = 10.0


class SignalClock:
    """The latest time of any signal: the clock for a recorded stream, which would be stale by the machine's."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def see(self, time_ns: object) -> None:
        """Turn to a signal's time, if it is one and not earlier."""
        if type(time_ns) is int and self.now_ns < time_ns < 2**63:
            self.now_ns = time_ns


class Runner:
    """Answers messages one after the other, and counts them in ``tally``.

    ``clock`` is told the time of each signal where it is not the machine's. Each answer waits ``wait_s`` at most until
    ``experiment`` has recorded what it is about.
    """

    def __init__(
        self,
        engine: Layer3Phase1,
        source: Source,
        sink: Sink,
        *,
        tally: Tally,
        recorder: Recorder | None = None,
        table: DecisionTable | None = None,
        clock: SignalClock | None = None,
        experiment: LiveExperiment | None = None,
        wait_s: float = 0.0,
    ) -> None:
        self._engine, self._source, self._sink, self.tally = engine, source, sink, tally
        self._recorder, self._table, self._clock = recorder, table, clock
        self._experiment, self._wait_s = experiment, wait_s
        self._said = time.monotonic()

    def run(self, limit: int | None) -> None:
        """Until the source ends, is told to stop, or ``limit`` messages are answered.

        Raises
        ------
        OSError, SourceError, DataError : log or output cannot be written; the message in hand is not acknowledged
        """
        unfinished = self._source.unfinished()
        logged = self._logged({message.entry for message in unfinished})
        for message in unfinished:
            if limit is not None and self.tally.answered >= limit:
                return
            self._out(message, logged.get(message.entry) or self.answer(message))
        if limit is not None and self.tally.answered >= limit:
            return
        for message in self._source.messages():
            self._out(message, self.answer(message))
            if limit is not None and self.tally.answered >= limit:
                return

    def answer(self, message: Message) -> dict[str, Any]:
        """What to say to one message, which is logged when this returns."""
        origin: dict[str, Any] = {"line": message.number}
        if message.entry is not None:
            origin["entry"] = message.entry
        if self._recorder is not None:
            self._recorder.log.roll()
            self._recorder.origin = origin
        try:
            if message.data is None:
                raise MessageError("", "longer than a MiB")
            document = decoded(message.data)
            if "residual" in document:
                return {**origin, "residual": self._residual(document)}
            if "outcome" in document:
                return {**origin, "outcome": self._outcome(document)}
            decision = self._decide(arguments(document))
        except MessageError as error:
            self.tally.rejected += 1
            if self._recorder is not None:
                self._recorder.reject(error.field, str(error))
            _log.warning("a message is no signal", extra={**origin, "field": error.field, "error": str(error)})
            return {**origin, "error": str(error), "field": error.field, "position_size_usd": 0.0}
        self.tally.add(decision)
        if self._table is not None:
            self._table.add(decision)
        return {**origin, **decision.to_json()}

    def _decide(self, given: Mapping[str, Any]) -> PositionSizingDecision:
        if self._clock is not None:
            self._clock.see(getattr(given["signal"], "timestamp_ns", None))
        decision = self._engine.calculate_position(**given)
        if self._recorder is not None and self._recorder.failure is not None:
            raise self._recorder.failure
        if self._experiment is not None and decision.experiment is not None:
            self.tally.late += not self._experiment.settle(self._wait_s)
        return decision

    def _residual(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Teach a residual and say whether it was learnt."""
        symbol, *numbers = named(document, "residual", "symbol", ("predicted", "realised"), missing=True)
        self.tally.others["residual"] += 1
        teach = self._engine if self._recorder is None else self._recorder
        return {"symbol": symbol, "learnt": teach.record_residual(symbol, *numbers)}

    def _outcome(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Join what became of a decision to it, and say whether that is on the disk."""
        numbers = ("pnl_usd", "realised_return", "duration_s")
        name, pnl, gained, seconds = named(document, "outcome", "decision_id", numbers, missing=False)
        if self._experiment is None:
            raise MessageError("outcome", "no experiment runs that could take it: name its store in experiment.path")
        self.tally.others["outcome"] += 1
        ticket = self._experiment.record_outcome(name, pnl_usd=pnl, realised_return=gained, duration_s=seconds)
        recorded = ticket.wait(self._wait_s)
        if ticket.error is not None:
            raise MessageError("outcome", str(ticket.error))
        self.tally.late += not recorded
        stop = self._experiment.stopped
        return {"decision_id": name, "recorded": recorded, "stopped": None if stop is None else stop.reason}

    def _out(self, message: Message, answer: Mapping[str, Any]) -> None:
        self._sink.write(json.dumps(answer, allow_nan=False))
        self._source.done(message)
        self.tally.answered += 1
        if self._table is None and time.monotonic() - self._said >= _PROGRESS:
            self._said = time.monotonic()
            self.say("sizing")

    def say(self, text: str) -> None:
        """One log line with the counts."""
        _log.info(text, extra=self.tally.as_json())

    def _logged(self, entries: set[str | None]) -> dict[str | None, dict[str, Any]]:
        """The answers to those of a stream's ``entries`` that the two latest files of the log hold."""
        found: dict[str | None, dict[str, Any]] = {}
        if not entries or self._recorder is None:
            return found
        for record in _latest(self._recorder.log.path):
            origin = record.get("origin", {})
            if origin.get("entry") not in entries:
                continue
            if record["kind"] == DECISION:
                found[origin["entry"]] = {**origin, **record["decision"]}
            elif record["kind"] == RESIDUAL:
                # An older program did not record whether it was learnt: null.
                told = {"symbol": read_back(record["symbol"]), "learnt": record.get("learnt")}
                found[origin["entry"]] = {**origin, "residual": told}
        return found


def decisions(log: Path) -> Iterator[dict[str, Any]]:
    """The records of decisions in the two latest files of a log."""
    return (record for record in _latest(log) if record["kind"] == DECISION)


def _latest(log: Path) -> Iterator[dict[str, Any]]:
    for file in files(log)[-2:]:
        yield from read(file)
