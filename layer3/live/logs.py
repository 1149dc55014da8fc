"""Structured logs through the standard logging module: one record, one line of JSON, with the decision's id.

Call it as ever, with what varies in fields of its own and not in the message::

    _log.warning("no policy answered", extra={"source": "gcp_api", "waited_ms": 150.2})

Within ``with correlation(id):`` every record carries ``decision_id``, whoever writes it and however deep,
each thread and each asyncio task its own.

    {"time": "2026-01-02T03:04:05.000006Z", "level": "WARNING", "logger": "layer3.engine",
     "message": "no policy answered", "decision_id": "01J…", "source": "gcp_api", "waited_ms": 150.2}
"""

from __future__ import annotations

import json
import logging
import math
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import IO, Any, Final

__all__ = ["JsonFormatter", "configure", "correlation"]

_decision_id: ContextVar[str | None] = ContextVar("decision_id", default=None)

#: What every LogRecord has; whatever else it has came in ``extra``.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@contextmanager
def correlation(decision_id: str) -> Iterator[None]:
    """Give every record that is logged inside this ``decision_id``; the one outside comes back afterwards."""
    token = _decision_id.set(decision_id)
    try:
        yield
    finally:
        _decision_id.reset(token)


class JsonFormatter(logging.Formatter):
    """One record as one line of JSON in ASCII: time in UTC, level, logger, message, decision id, extra fields.

    A field that has one of those names gets an underscore behind it. A number that is not finite becomes
    ``null``, and what JSON does not know its ``repr``. A traceback is text in ``exception``.
    """

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": f"{when:%Y-%m-%dT%H:%M:%S.%f}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        decision_id = fields.pop("decision_id", None) or _decision_id.get()
        if decision_id is not None:
            line["decision_id"] = decision_id
        if record.exc_info:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        if record.stack_info:
            line["stack"] = record.stack_info
        for name, value in fields.items():
            line[f"{name}_" if name in line else name] = _plain(value)
        return json.dumps(line, allow_nan=False, default=repr)


class _Correlate(logging.Filter):
    """Writes the decision id into the record where it is logged: a queue may format it in another thread."""

    def filter(self, record: logging.LogRecord) -> bool:
        found = _decision_id.get()
        if found is not None and not hasattr(record, "decision_id"):
            record.decision_id = found
        return True


def configure(stream: IO[str], level: str = "INFO", logger: str = "layer3") -> logging.Handler:
    """Send what ``logger`` and those below it log to ``stream`` as JSON lines, from ``level`` up.

    Called again it replaces its own handler and no other. Returns the handler.
    """
    target = logging.getLogger(logger)
    for handler in [handler for handler in target.handlers if isinstance(handler.formatter, JsonFormatter)]:
        target.removeHandler(handler)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(_Correlate())
    target.addHandler(handler)
    target.setLevel(level)
    target.propagate = False
    return handler


def _plain(value: Any) -> Any:
    """``value`` as JSON can say it: no NaN at any depth, keys that are text."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
