"""One message after the other: what it is, its decision, the log, the answer, the acknowledgement, in this order."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

from layer3.live.log_file import DECISION, files, read
from layer3.live.messages import MessageError, arguments, decoded
from layer3.live.phase1 import Layer3Phase1
from layer3.live.recorder import Recorder
from layer3.live.streams import Message, Sink, Source
from layer3.live.table import DecisionTable
from layer3.types import PositionSizingDecision

__all__ = ["Runner", "SignalClock"]

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
    """Answers messages one after the other; ``clock`` is told the time of each signal where it is not the machine's."""

    def __init__(
        self,
        engine: Layer3Phase1,
        source: Source,
        sink: Sink,
        recorder: Recorder | None,
        table: DecisionTable | None,
        clock: SignalClock | None,
    ) -> None:
        self._engine, self._source, self._sink = engine, source, sink
        self._recorder, self._table, self._clock = recorder, table, clock
        self.answered = self.refused = self.rejected = 0
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
            if limit is not None and self.answered >= limit:
                return
            self._out(message, logged.get(message.entry) or self.answer(message))
        if limit is not None and self.answered >= limit:
            return
        for message in self._source.messages():
            self._out(message, self.answer(message))
            if limit is not None and self.answered >= limit:
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
            decision = self._decide(arguments(document))
        except MessageError as error:
            self.rejected += 1
            if self._table is not None:
                self._table.reject()
            if self._recorder is not None:
                self._recorder.reject(error.field, str(error))
            _log.warning("a message is no signal", extra={**origin, "field": error.field, "error": str(error)})
            return {**origin, "error": str(error), "field": error.field, "position_size_usd": 0.0}
        self.refused += decision.refusal is not None
        if self._table is not None:
            self._table.add(decision)
        return {**origin, **decision.to_json()}

    def _decide(self, given: Mapping[str, Any]) -> PositionSizingDecision:
        if self._clock is not None:
            self._clock.see(getattr(given["signal"], "timestamp_ns", None))
        decision = self._engine.calculate_position(**given)
        if self._recorder is not None and self._recorder.failure is not None:
            raise self._recorder.failure
        return decision

    def _residual(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Teach a residual and say whether it was learnt."""
        given = document["residual"]
        names = ("symbol", "predicted", "realised")
        if set(document) != {"residual"} or not isinstance(given, Mapping) or set(given) != set(names):
            raise MessageError("residual", f"expected an object of {', '.join(names)}, and nothing beside it")
        symbol, *numbers = (given[name] for name in names)
        if not isinstance(symbol, str):
            raise MessageError("residual.symbol", f"it is {symbol!r}, expected a name")
        for name, number in zip(names[1:], numbers, strict=True):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
                raise MessageError(f"residual.{name}", f"it is {number!r}, expected a number or null")
        teach = self._engine if self._recorder is None else self._recorder
        return {"symbol": symbol, "learnt": teach.record_residual(symbol, *numbers)}

    def _out(self, message: Message, answer: Mapping[str, Any]) -> None:
        self._sink.write(json.dumps(answer, allow_nan=False))
        self._source.done(message)
        self.answered += 1
        if self._table is None and time.monotonic() - self._said >= _PROGRESS:
            self._said = time.monotonic()
            self.say("sizing")

    def say(self, text: str) -> None:
        """One log line with the counts."""
        counts = {"answered": self.answered, "refused": self.refused, "no_signals": self.rejected}
        _log.info(text, extra=counts)

    def _logged(self, entries: set[str | None]) -> dict[str | None, dict[str, Any]]:
        """The answers to those of a stream's ``entries`` whose decision the two latest files of the log hold."""
        found: dict[str | None, dict[str, Any]] = {}
        if not entries or self._recorder is None:
            return found
        for file in files(self._recorder.log.path)[-2:]:
            for record in read(file):
                entry = record.get("origin", {}).get("entry")
                if record["kind"] == DECISION and entry in entries:
                    found[entry] = {**record["origin"], **record["decision"]}
        return found
