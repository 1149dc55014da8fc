"""What an engine knew when it was killed: the last snapshot, or the decision log made again where that says more.

Snapshots are taken now and then; the log holds every decision that was told. So after ``kill -9`` the next process
goes on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from layer3.errors import HimariError
from layer3.live import risk
from layer3.live.configuration import Layer3Config
from layer3.live.log_file import DECISION, HEAD, read
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
        told = [record for record in records if record["kind"] == DECISION]
        if not told or not _is_behind(state, told[-1]):
            return state
        with _quiet():
            outcome = replay(records)
    except HimariError as error:
        _log.error("the decision log cannot be made again: the last snapshot counts", extra={"error": str(error)})
        return state
    details = {"decisions": outcome.decisions, "differing": len({each.decision_id for each in outcome.differences})}
    _log.log(
        logging.ERROR if outcome.differences else logging.WARNING,
        "the process before ended without saving: what it knew is made again from the decision log",
        extra=details,
    )
    newer = {name: outcome.state[name] for name in ("memory", "saved_at_ns")}
    return {**state, **newer, **_switch(told[-1]["decision"])}


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
    """The latest head of the file that is written now, and what follows it; [] where there is none."""
    found: list[dict[str, Any]] = []
    if not log.exists():
        return found
    for record in read(log):
        if record["kind"] == HEAD:
            found.clear()
        found.append(record)
    return found


def _is_behind(state: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether a snapshot lacks the decision that was ``told`` last."""
    name, latest = str(told["decision"]["decision_id"]), str(state.get("latest", ""))
    if name.partition("-")[0] == latest.partition("-")[0]:
        return name != latest
    return bool(told["inputs"]["now_ns"] > state["saved_at_ns"])  # of two processes: the later one


def _switch(told: Mapping[str, Any]) -> dict[str, Any]:
    """The kill switch, if a call or a signal had turned it on: a file speaks for itself."""
    reason = str(told["reason"])
    if told["refusal"] != risk.KILL_SWITCH or reason.startswith((f"{KILLED}the file ", f"{KILLED}the kill file ")):
        return {}
    return {"kill_switch": reason.removeprefix(KILLED)}
