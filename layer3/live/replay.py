"""Make every decision of a log again and show what differs: ``python -m layer3.live.replay --log FILE``.

An engine is set up as the log's head says (configuration and what was learnt), its clock is what the clock was,
and it is given what was given then. The multiplier and who gave it, and whose size an experiment held, are taken
from the log; with ``--policy`` a policy on this machine is asked again. Each field of each decision is compared, but
for how long it took and its id; numbers must be the same to the last bit. Exit status 0: nothing differs; 1:
something does; 2: the log cannot be replayed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from layer3.ab.assignment import Arm, Assignment
from layer3.agent.policy import Policy
from layer3.errors import ConfigurationError, DataError, HimariError
from layer3.live import logs, risk
from layer3.live.configuration import Layer3Config, digest_of, load_config
from layer3.live.inputs import read_back
from layer3.live.log_file import DECISION, HEAD, read_all
from layer3.live.messages import arguments
from layer3.live.phase1 import Layer3Phase1
from layer3.live.recorder import CONFIGURATION, REJECTED, RESET, RESIDUAL
from layer3.live.sources import Answer, load_local
from layer3.types import LOCAL_MODEL, Arms, TacticalSignal

__all__ = ["KILLED", "Difference", "Outcome", "main", "replay"]

#: Not compared: how long it took, and what is counted anew in each process.
_SKIPPED: Final = ("latency_ms", "decision_id")
#: How the reason of a decision begins that the kill switch stopped; why it was on follows.
KILLED: Final = "not sized: the kill switch is on: "
_MISSING: Final = "(no such field)"


class Difference(NamedTuple):
    """One field of a decision, dotted, as it was recorded and as it came out now."""

    decision_id: str
    field: str
    recorded: Any
    now: Any


class Outcome(NamedTuple):
    """How many decisions were made again, what differs, and what the engine knew after the last one (a snapshot)."""

    decisions: int
    differences: list[Difference]
    state: dict[str, Any]


class _Recorded:
    """Says to the engine what was recorded: the multiplier (unless ``policy`` says it) and whose size is held."""

    def __init__(self, policy: Policy | None) -> None:
        self.policy = policy
        self.answer = Answer(1.0, "")
        self.arms: Arms | None = None

    def ask(self, state: NDArray[np.float32], request_id: str) -> Answer:
        if self.policy is None:
            return self.answer
        multiplier, confidence = self.policy.act(state)
        return Answer(float(multiplier), LOCAL_MODEL, float(confidence), self.policy.model_id)

    async def aask(self, state: NDArray[np.float32], request_id: str) -> Answer:
        return self.ask(state, request_id)

    def nobody(self, why: str) -> Answer:
        return self.answer

    def assign(self, signal: TacticalSignal) -> Assignment | None:
        arms = self.arms
        if arms is None:
            return None
        whose = Arm(arms.arm), arms.how, arms.unit
        return Assignment(arms.experiment, *whose, signal.symbol, signal.strategy_id, arms.share)

    def turn_to(self, then: Mapping[str, Any]) -> None:
        """From now on say what was said in the decision ``then``."""
        self.answer = Answer(
            then["multiplier"],
            then["multiplier_source"],
            then["multiplier_confidence"],
            then["model_version"],
            tuple(then["passed_over"]),
        )
        arms = then.get("experiment")  # an older program's decisions have none
        self.arms = None if arms is None else Arms(**arms)


class _Clock:
    now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def replay(
    records: Iterable[Mapping[str, Any]],
    *,
    config: Layer3Config | None = None,
    policy: Policy | None = None,
    say: Callable[[Difference], None] = lambda difference: None,
) -> Outcome:
    """Make the decisions of ``records`` (a log, oldest first) again.

    ``config`` replaces the recorded one, ``policy`` the recorded multipliers; ``say`` is told of each difference
    as it is found.

    Raises
    ------
    DataError : a record is not one that the engine wrote, or the first is no head
    """
    replayed, clock, told = None, _Clock(), _Recorded(policy)
    configs, active = dict[str, Layer3Config](), ""
    decisions, found = 0, []
    for record in _in_order(records):
        try:
            kind = record["kind"]
            if kind == HEAD:
                clock.now_ns, active = int(record["state"]["saved_at_ns"]), record["config_hash"]
                configs = {active: config or _config(record)}
                replayed = _engine(configs[active], record["state"], clock, told)
            elif replayed is None:
                raise DataError("the log does not begin with a head: name its first file, or the whole log")
            elif kind == CONFIGURATION:
                configs[record["config_hash"]] = config or _config(record)
            elif kind == RESIDUAL:
                replayed.record_residual(*(read_back(record[name]) for name in ("symbol", "predicted", "realised")))
            elif kind == RESET:
                replayed.reset_daily_loss()
            elif kind == DECISION:
                decisions += 1
                wanted = record["decision"]["config_hash"]
                if wanted != active and wanted in configs:
                    replayed.reload(_harmless(configs[wanted]))
                    active = wanted
                for difference in _again(replayed, record, clock, told):
                    found.append(difference)
                    say(difference)
            elif kind != REJECTED:
                raise DataError(f"a record of the unknown kind {kind!r}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"a record is not one that the engine wrote ({error!r}): {str(record)[:200]}") from error
    return Outcome(decisions, found, {} if replayed is None else replayed.snapshot())


def _in_order(records: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Between two heads by the engine's own count, the configurations first: threads may have written in another
    order."""
    segment: list[tuple[int, Mapping[str, Any]]] = []
    count = 0
    for record in records:
        if record.get("kind") == HEAD:
            yield from (entry for _, entry in sorted(segment, key=lambda entry: entry[0]))
            segment, count = [], 0
            yield record
            continue
        if record.get("kind") == DECISION:
            number = int(record["decision"]["decision_id"].rpartition("-")[2], 16)
            segment.append((number, record))
            count = max(count, number)
        else:
            segment.append((-1 if record.get("kind") == CONFIGURATION else count, record))
    yield from (entry for _, entry in sorted(segment, key=lambda entry: entry[0]))


def _engine(config: Layer3Config, state: Mapping[str, Any], clock: _Clock, told: _Recorded) -> Layer3Phase1:
    learnt = {**state, "breaker": None, "kill_switch": None}
    return Layer3Phase1(_harmless(config), clock=clock, multipliers=told, assigner=told, state=learnt)


def _harmless(config: Layer3Config) -> Layer3Config:
    """``config`` without all that reaches beyond the numbers: servers, policies, files, signals."""
    changes: Mapping[str, Mapping[str, Any]] = {
        "policy": {"enabled": False},
        "state": {"path": None},
        "risk": {"kill_file": None, "kill_signal": False},
    }
    sections = {name: getattr(config, name).model_copy(update=update) for name, update in changes.items()}
    return config.model_copy(update=sections)


def _config(record: Mapping[str, Any]) -> Layer3Config:
    if digest_of(record["configuration"]) != record["config_hash"]:
        raise DataError("the recorded configuration has not the recorded hash: it was changed, or another program's")
    # What an older program did not know has its default.
    return Layer3Config(**record["configuration"])


def _again(engine: Layer3Phase1, record: Mapping[str, Any], clock: _Clock, told: _Recorded) -> Iterator[Difference]:
    """What differs between a recorded decision and the same one made now."""
    then = record["decision"]
    given = dict(record["inputs"])
    clock.now_ns = given.pop("now_ns")
    told.turn_to(then)
    if then["refusal"] == risk.KILL_SWITCH:
        engine.kill_switch.engage(then["reason"].removeprefix(KILLED))
    now = engine.calculate_position(**read_back(arguments(given))).to_json()
    engine.kill_switch.release()
    now["config_hash"] = then["config_hash"]  # of the configuration as it was; the engine's reaches for nothing
    for field, recorded, value in _compare("", then, {name: now[name] for name in now if name in then}):
        if field not in _SKIPPED:
            yield Difference(then["decision_id"], field, recorded, value)


def _compare(where: str, recorded: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(recorded, Mapping) and isinstance(now, Mapping):
        for key in {**recorded, **now}:
            yield from _compare(f"{where}.{key}" if where else key, recorded.get(key, _MISSING), now.get(key, _MISSING))
    elif isinstance(recorded, list) and isinstance(now, list):
        for i, (before, after) in enumerate(itertools.zip_longest(recorded, now, fillvalue=_MISSING)):
            yield from _compare(f"{where}[{i}]", before, after)
    elif recorded != now:
        yield where, recorded, now


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m layer3.live.replay",
        description="Make every decision of a log again from what was recorded, and show what differs.",
        epilog="Exit status 0: nothing differs; 1: something does; 2: the log cannot be replayed.",
    )
    parser.add_argument("--log", type=Path, required=True, metavar="FILE", help="a decision log, with its rolled files")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="decide by this configuration, not the recorded one"
    )
    parser.add_argument("--policy", metavar="DIR", help="ask this policy (a model's folder or a store) for multipliers")
    parser.add_argument("--show", type=int, default=20, metavar="N", help="differences to show (default: 20)")
    return parser


def main(given: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = _parser().parse_args(given)
    shown = 0
    logs.configure(sys.stderr, "ERROR")  # what was refused then is refused again, and said so then

    def say(difference: Difference) -> None:
        nonlocal shown
        shown += 1
        if shown <= options.show:
            print(f"{difference.decision_id}  {difference.field}")
            print(f"    recorded  {difference.recorded!r}")
            print(f"    now       {difference.now!r}")

    try:
        config = None if options.config is None else load_config(options.config)
        policy = None if options.policy is None else load_local(options.policy)
        outcome = replay(read_all(options.log), config=config, policy=policy, say=say)
        if not outcome.decisions:
            raise ConfigurationError(f"{options.log} holds no decision")
    except HimariError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    found = outcome.differences
    if shown > options.show:
        print(f"... and {shown - options.show:,} more")
    differing = len({difference.decision_id for difference in found})
    print(f"{outcome.decisions:,} decisions made again, {differing:,} differ ({len(found):,} fields)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
