"""Put a candidate into service, or leave the champion untouched and say why.

    verify -> store -> start -> health -> smoke -> parity -> stop -> switch

The candidate's own server runs beside the champion's on a loopback port and answers all golden
pairs over HTTP before the channel file is switched, in one atomic write, as the very last step.
A crash at any point therefore leaves the champion serving, and the same command finishes the job.

    python -m serving.release promote --candidate runs/<run id>/policy --store .
    python -m serving.release rollback --store .
    python -m serving.release status --store .
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from layer3 import storage
from layer3.agent.policy import Policy
from layer3.champion import CHANNEL, Champion, Channel, load_folder, model_folder, read
from layer3.errors import HimariError, ReleaseError
from serving import candidate as beside
from serving import channels
from serving.models import store_policy

__all__ = ["HEALTH_SECONDS", "Release", "Step", "main", "release"]

#: Seconds that the candidate's server may take to load its model and pass its self-test.
HEALTH_SECONDS: Final = 60.0
_HINT: Final = "a server that is already running keeps its model until it is restarted"


@dataclass(frozen=True)
class Step:
    """One finished step of a release and how many seconds it took."""

    name: str
    seconds: float
    detail: str


@dataclass(frozen=True)
class Release:
    """What a release did. ``previous`` is the id of the model to which a rollback would return."""

    outcome: Literal["released", "already serving"]
    model_id: str
    policy_sha256: str
    contract: str
    run_id: str
    store: str
    previous: str | None
    steps: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON data."""
        return {**asdict(self), "steps": [asdict(step) for step in self.steps]}


def release(
    candidate: Path,
    *,
    store: str,
    run_id: str,
    port: int | None = None,
    health_seconds: float = HEALTH_SECONDS,
    patience_seconds: float = 0.0,
    command: Sequence[str] = beside.SERVER,
    now: Callable[[], datetime] = channels.utc_now,
    clock: Callable[[], float] = time.monotonic,
    log: Callable[[str], None] = lambda line: None,
) -> Release:
    """Release the policy folder ``candidate`` into ``store`` (a local folder or ``gs://…``).

    ``port`` is the candidate's loopback port (a free one by default), ``now`` dates the release,
    ``clock`` (seconds) times its steps, ``log`` gets a line as each step begins and ends.
    A candidate that already serves is left alone, and the answer says so. Another release into the
    store is waited for at most ``patience_seconds``.

    Raises
    ------
    ReleaseError : a step failed; the message names it, why, and that the champion still serves
    """
    with channels.exclusive(store, patience_seconds=patience_seconds):
        present = read(store)
        progress = _Progress(present, clock, log)
        with progress.step("verify"):
            policy = load_folder(str(candidate))
            progress.detail = f"model {policy.model_id}, contract {policy.manifest['contract']}"
        progress.model_id = policy.model_id
        if present is not None and _serves(store, present, policy):
            log(f"model {policy.model_id} already serves since {present.champion.released_at}: nothing to do")
            return _report("already serving", present, run_id, store, progress)
        with progress.step("store"):
            stored = store_policy(candidate, store)
            progress.detail = f"{'copied to' if stored.copied else 'already at'} {stored.uri}"
        _try_out(stored.policy, stored.uri, port, health_seconds, command, progress)
        with progress.step("switch"):
            champion = _champion(policy, run_id, now())
            published = channels.publish(store, champion, expected=present)
            progress.detail = f"{storage.join(store, *CHANNEL)} names {champion.model_id}"
    return _report("released", published, run_id, store, progress)


class _Progress:
    """Times the steps and turns what stops one into a ReleaseError that names it."""

    def __init__(self, present: Channel | None, clock: Callable[[], float], log: Callable[[str], None]) -> None:
        self._present = present
        self._clock = clock
        self._log = log
        self.steps: list[Step] = []
        self.model_id = "the candidate"
        self.detail = ""

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.detail = ""
        self._log(f"{name} …")
        began = self._clock()
        try:
            yield
        except (HimariError, OSError) as error:
            untouched = (
                f"{self._present.champion.model_id} still serves" if self._present else "nothing serves, as before"
            )
            raise ReleaseError(f"{self.model_id} was not released: step {name!r}: {error}. {untouched}.") from error
        seconds = self._clock() - began
        self.steps.append(Step(name, round(seconds, 4), self.detail))
        self._log(f"{name} ok, {seconds:.2f} s{': ' if self.detail else ''}{self.detail}")


def _try_out(
    policy: Policy, uri: str, port: int | None, health_seconds: float, command: Sequence[str], progress: _Progress
) -> None:
    """Start the candidate's server, ask it everything, and stop it."""
    with contextlib.ExitStack() as stack:
        with progress.step("start"):
            server = stack.enter_context(beside.running(uri, port, command))
            progress.detail = f"process {server.process.pid} on port {server.port}"
        with progress.step("health"):
            server.wait_until_ready(policy, health_seconds)
        with progress.step("smoke"):
            multiplier, confidence = server.predict(policy, policy.manifest["golden"][0]["state"])
            progress.detail = f"multiplier {multiplier:.4f}, confidence {confidence:.4f}"
        with progress.step("parity"):
            worst = server.check_parity(policy)
            progress.detail = f"{len(policy.manifest['golden'])} golden pairs, largest difference {worst:.1e}"
        with progress.step("stop"):
            stack.close()


def _champion(policy: Policy, run_id: str, now: datetime) -> Champion:
    return Champion(
        model_id=policy.model_id,
        policy_sha256=str(policy.manifest["policy_sha256"]),
        contract=str(policy.manifest["contract"]),
        released_at=now.astimezone(UTC).isoformat(timespec="seconds"),
        run_id=run_id,
    )


def _serves(store: str, present: Channel, policy: Policy) -> bool:
    """Whether ``policy`` is in service and its files in ``store`` are whole."""
    serving = present.champion
    if (serving.model_id, serving.policy_sha256) != (policy.model_id, policy.manifest["policy_sha256"]):
        return False
    try:
        load_folder(model_folder(store, serving.model_id))
    except (HimariError, OSError):
        return False  # the full release that follows repairs it, or says what is wrong
    return True


def _report(
    outcome: Literal["released", "already serving"], channel: Channel, run_id: str, store: str, progress: _Progress
) -> Release:
    serving = channel.champion
    return Release(
        outcome=outcome,
        model_id=serving.model_id,
        policy_sha256=serving.policy_sha256,
        contract=serving.contract,
        run_id=run_id,
        store=store,
        previous=channel.previous.model_id if channel.previous else None,
        steps=tuple(progress.steps),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when done, 1 when refused or nothing serves, 2 when it was called wrongly."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except (HimariError, OSError) as error:
        print(f"{chosen.command}: {error}", file=sys.stderr)
        return 1


def _promote(chosen: argparse.Namespace) -> int:
    done = release(
        chosen.candidate,
        store=chosen.store,
        run_id=chosen.run_id,
        port=chosen.port,
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if chosen.json:
        print(json.dumps(done.to_json(), indent=2))
    elif done.outcome == "released":
        print(f"{done.model_id} serves now; a rollback returns to {done.previous or 'nothing: it is the first'}")
        print(_HINT)
    else:
        print(f"{done.model_id} already serves: nothing was changed")
    return 0


def _rollback(chosen: argparse.Namespace) -> int:
    channel = channels.rollback(chosen.store)
    left = channel.previous.model_id if channel.previous else "none"
    print(f"{channel.champion.model_id} serves again; left {left} (another rollback returns to it)")
    print(_HINT)
    return 0


def _status(chosen: argparse.Namespace) -> int:
    channel = read(chosen.store)
    if channel is None:
        print(f"nothing serves in {chosen.store}: there is no {storage.join(chosen.store, *CHANNEL)} yet")
        return 1
    serving = channel.champion
    print(f"champion  {serving.model_id}  since {serving.released_at}  run {serving.run_id}  {serving.contract}")
    print(f"previous  {channel.previous.model_id if channel.previous else 'none'}")
    for event in channel.history[:10]:
        print(f"  {event.at}  {event.event:<8}  {event.model_id}  replaced {event.replaced or 'nothing'}")
    channels.load_model(storage.join(chosen.store, *CHANNEL))
    print("the champion's files are whole and pass their self-test")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.release", description="Release models, and take them back."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    promote = commands.add_parser("promote", help="put a candidate into service once its own server has proven itself")
    promote.add_argument(
        "--candidate", type=Path, required=True, metavar="DIR", help="a policy folder, as training wrote it"
    )
    promote.add_argument("--run-id", default="manual", metavar="ID", help="the run that made it, for the record")
    promote.add_argument(
        "--port", type=int, default=None, help="loopback port of the trial server (default: a free one)"
    )
    promote.add_argument("--json", action="store_true", help="print the release and its steps as JSON")
    promote.set_defaults(run=_promote)
    rollback = commands.add_parser("rollback", help="let the model before the champion serve again")
    rollback.set_defaults(run=_rollback)
    status = commands.add_parser("status", help="show what serves, what came before, and whether its files are whole")
    status.set_defaults(run=_status)
    for command in (promote, rollback, status):
        command.add_argument(
            "--store", required=True, help="root of models/ and channels/: a folder or gs://bucket/path"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
