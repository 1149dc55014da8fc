"""What an engine knew when it was killed: the last snapshot, or the decision log made again where that says more.

Snapshots are taken now and then; the log holds every decision that was told. So after ``kill -9`` the next process
goes on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from layer3.errors import HimariError
from layer3.live import risk
from layer3.live.configuration import Layer3Config
from layer3.live.log_file import DECISION, HEAD, files, read
from layer3.live.recorder import REJECTED
from layer3.live.replay import KILLED, replay
from layer3.live.state import read_state

__all__ = ["recovered"]

_log = logging.getLogger(__name__)


def recovered(config: Layer3Config) -> dict[str, Any] | None:
    """The state to begin with; ``None`` where ``state.path`` is not given, or there is no snapshot: who moves it away
    begins without what was learnt, whatever the log holds.

    A log that cannot be made again is an error in the log of this program, and the snapshot is what there is.

    Raises
    ------
    DataError : the snapshot cannot be read, and ``state.start_fresh_if_unreadable`` is not set
    """
    if config.state.path is None:
        return None
    state = read_state(Path(config.state.path), or_none=config.state.start_fresh_if_unreadable)
    if state is None or config.decision_log.path is None:
        return state
    try:
        records = _since_head(Path(config.decision_log.path))
        if not _says_more(records, state):
            return state
        with _quiet():
            outcome = replay(records)
    except HimariError as error:
        _log.error("the decision log cannot be made again: the last snapshot counts", extra={"error": str(error)})
        return state
    # As a file would hold it; the rest of the snapshot, of its own time, stays.
    found = {**state, "memory": json.loads(json.dumps(outcome.state["memory"])), **_switch(records)}
    if found == state:
        return state
    details = {"decisions": outcome.decisions, "differing": len({each.decision_id for each in outcome.differences})}
    _log.log(
        logging.ERROR if outcome.differences else logging.WARNING,
        "the process before ended without saving: what it knew is made again from the decision log",
        extra=details,
    )
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What was refused then is refused again, and was said so then."""
    telling = logging.getLogger("layer3.live.telling")
    level = telling.level
    telling.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        telling.setLevel(level)


def _since_head(log: Path) -> list[dict[str, Any]]:
    """The latest head of the log's latest file, and what follows it; [] where there is no file."""
    found: list[dict[str, Any]] = []
    latest = files(log)[-1]  # a rolled one, where a process was killed before it began the next
    if not latest.exists():
        return found
    for record in read(latest):
        if record["kind"] == HEAD:
            found.clear()
        found.append(record)
    return found


def _told(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((record for record in reversed(records) if record["kind"] == DECISION), None)


def _says_more(records: Sequence[Mapping[str, Any]], state: Mapping[str, Any]) -> bool:
    """Whether the snapshot ``state`` may lack something of ``records``, a head and what follows it."""
    if not records:
        return False
    if records[0]["kind"] != HEAD:  # somebody cut the file: the replay says so
        return True
    told = _told(records)
    if told is None:
        head = records[0]["state"]
        name, time_ns = head.get("latest", ""), head["saved_at_ns"]
    else:
        name, time_ns = told["decision"]["decision_id"], told["inputs"]["now_ns"]
    latest = str(state.get("latest", ""))
    if str(name).partition("-")[0] != latest.partition("-")[0]:
        return bool(time_ns > state["saved_at_ns"])  # of two processes: the later one
    # A snapshot of the last decision may be from before the residual, or the reset, that followed it.
    last = next(record["kind"] for record in reversed(records) if record["kind"] != REJECTED)
    return bool(name != latest) or last != DECISION


def _switch(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The kill switch, if a call or a signal had turned it on: a file speaks for itself."""
    told = _told(records)
    if told is None:
        engaged = records[0]["state"].get("kill_switch")
        return {} if engaged is None else {"kill_switch": engaged}
    reason = str(told["decision"]["reason"])
    refusal = told["decision"]["refusal"]
    if refusal != risk.KILL_SWITCH or reason.startswith((f"{KILLED}the file ", f"{KILLED}the kill file ")):
        return {}
    return {"kill_switch": reason.removeprefix(KILLED)}
