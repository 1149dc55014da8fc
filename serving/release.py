"""Put a candidate into service, or leave the champion untouched and say why.

    verify -> store -> the platform's own steps, of which the last that matters switches the channel

On this machine (:mod:`serving.platforms.local`) the candidate's own server answers all golden pairs beside the
champion's before the channel switches; on Cloud Run (:mod:`serving.platforms.cloud_run`) it is a revision that gets
its share of the traffic step by step. The channel is written once, over the version that was read. A crash before
that leaves the champion recorded; the same command first puts right what was left behind, then finishes the job.

    python -m serving.release promote --candidate runs/<run id>/policy --store .
    python -m serving.release promote --candidate runs/<run id>/policy --cloud config/cloud.yaml
    python -m serving.release rollback|status --store . (or --cloud config/cloud.yaml)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from layer3 import storage
from layer3.agent.policy import Policy
from layer3.champion import CHANNEL, Champion, Channel, load_champion, load_folder, model_folder, read
from layer3.errors import HimariError
from serving import channels
from serving.models import store_policy
from serving.platforms.connect import connect
from serving.platforms.local import Local
from serving.platforms.protocol import Platform, Progress, Step
from serving.platforms.target import Target

__all__ = ["Release", "main", "release", "rollback"]


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

    def to_markdown(self) -> str:
        """The same for a reader, without a line's end at its end."""
        lines = [
            f"# {self.outcome.capitalize()}: {self.model_id}",
            "",
            f"Run {self.run_id}. Before it: {self.previous or 'nothing'}.",
            "",
            *(f"- {step.name}: {step.seconds:.2f} s {step.detail}".rstrip() for step in self.steps),
        ]
        return "\n".join(lines)


def release(
    candidate: Path,
    *,
    store: str,
    run_id: str,
    platform: Platform | None = None,
    patience_seconds: float = 0.0,
    now: Callable[[], datetime] = channels.utc_now,
    clock: Callable[[], float] = time.monotonic,
    log: Callable[[str], None] = lambda line: None,
) -> Release:
    """Release the policy folder ``candidate`` into ``store`` (a local folder or ``gs://…``).

    ``platform`` is where it is to serve (this machine by default), ``now`` dates the release,
    ``clock`` (seconds) times its steps, ``log`` gets a line as each step begins and ends.
    A candidate that already serves is left alone, and the answer says so. Another release into the
    store is waited for at most ``patience_seconds``.

    Raises
    ------
    ReleaseError : a step failed; the message names it, why, and that the champion still serves
    """
    place = platform or Local()
    with contextlib.ExitStack() as stack:
        stack.enter_context(channels.exclusive(store, patience_seconds=patience_seconds))
        present = read(store)
        progress = stack.enter_context(Progress(present, clock, log))
        with progress.step("verify"):
            policy = load_folder(str(candidate))
            progress.detail = f"model {policy.model_id}, contract {policy.manifest['contract']}"
        progress.model_id = policy.model_id
        place.settle(present, progress)
        if present is not None and _serves(store, present, policy) and place.serves(present.champion):
            log(f"model {policy.model_id} already serves since {present.champion.released_at}: nothing to do")
            return _report("already serving", present, run_id, store, progress)
        with progress.step("store"):
            stored = store_policy(candidate, store)
            progress.detail = f"{'copied to' if stored.copied else 'already at'} {stored.uri}"

        def switch() -> Channel:
            champion = _champion(policy, run_id, now())
            published = channels.publish(store, champion, expected=present)
            progress.detail = f"{storage.join(store, *CHANNEL)} names {champion.model_id}"
            return published

        published = place.roll_out(stored, progress, switch)
    return _report("released", published, run_id, store, progress)


def rollback(
    store: str,
    *,
    platform: Platform | None = None,
    now: Callable[[], datetime] = channels.utc_now,
    log: Callable[[str], None] = lambda line: None,
) -> Channel:
    """Let the model before the champion serve again; where a release was cut short, let the champion serve alone.

    The record is written first and the platform follows: whatever stops this half-way, the same command finishes it.

    Raises
    ------
    ReleaseError : nothing serves, there is no model to go back to, or it does not prove itself
    """
    place = platform or Local()
    present = read(store)
    if present is not None and (found := place.halfway(present)) is not None:
        log(f"{found}: putting {present.champion.model_id} back, run it again to go back further")
        place.settle(present, Progress(present, time.monotonic, log))
        return present
    channel = channels.rollback(store, now=now, prove=place.prove)
    progress = Progress(channel, time.monotonic, log)
    progress.model_id, progress.done = channel.champion.model_id, True
    place.settle(channel, progress)
    return channel


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
    outcome: Literal["released", "already serving"], channel: Channel, run_id: str, store: str, progress: Progress
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


def _place(chosen: argparse.Namespace) -> tuple[str, Platform]:
    """The store that was chosen, and the platform that follows it."""
    if chosen.cloud is None:
        return chosen.store, Local(port=chosen.port if chosen.command == "promote" else None)
    from serving.cloud import load_cloud

    cloud = load_cloud(chosen.cloud)
    cloud.use_storage()
    if not cloud.service:  # releases only name the champion in the store
        return cloud.store, Local(port=chosen.port if chosen.command == "promote" else None)
    target = Target.of(cloud)
    if chosen.command == "promote" and chosen.allow_unauthenticated:
        target = replace(target, allow_unauthenticated=True)
    if chosen.command == "promote" or (chosen.command == "rollback" and Path(cloud.images_file).exists()):
        target = replace(target, image=cloud.images().serving)
    return cloud.store, connect(target, cloud.store, log=_say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _promote(chosen: argparse.Namespace) -> int:
    store, platform = _place(chosen)
    done = release(chosen.candidate, store=store, run_id=chosen.run_id, platform=platform, log=_say)
    if chosen.json:
        print(json.dumps(done.to_json(), indent=2))
    elif done.outcome == "released":
        print(f"{done.model_id} serves now; a rollback returns to {done.previous or 'nothing: it is the first'}")
    else:
        print(f"{done.model_id} already serves: nothing was changed")
    _tell_registry(chosen)
    return 0


def _rollback(chosen: argparse.Namespace) -> int:
    store, platform = _place(chosen)
    before = read(store)
    channel = rollback(store, platform=platform, log=_say)
    left = before.champion.model_id if before and before.champion.model_id != channel.champion.model_id else None
    what = f"; left {left} (another rollback returns to it)" if left else ""
    print(f"{channel.champion.model_id} serves again{what}")
    _tell_registry(chosen)
    return 0


def _tell_registry(chosen: argparse.Namespace) -> None:
    """Let the model registry name what serves now."""
    if chosen.cloud is None:
        return
    from serving.champion_alias import follow, told
    from serving.cloud import load_cloud

    _say(told(lambda: follow(load_cloud(chosen.cloud))))


def _status(chosen: argparse.Namespace) -> int:
    store, platform = _place(chosen)
    channel = read(store)
    if channel is None:
        print(f"nothing serves in {store}: there is no {storage.join(store, *CHANNEL)} yet")
        for line in platform.describe(None):
            print(line)
        return 1
    serving = channel.champion
    print(f"champion  {serving.model_id}  since {serving.released_at}  run {serving.run_id}  {serving.contract}")
    print(f"previous  {channel.previous.model_id if channel.previous else 'none'}")
    for event in channel.history[:10]:
        print(f"  {event.at}  {event.event:<8}  {event.model_id}  replaced {event.replaced or 'nothing'}")
    load_champion(store, serving)
    print("the champion's files are whole and pass their self-test")
    for line in platform.describe(channel):
        print(line)
    return 1 if platform.halfway(channel) else 0


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
    promote.add_argument(
        "--allow-unauthenticated",
        action="store_true",
        help="on Cloud Run: switch IAM's check of callers off, the server then checks their ID tokens and keys itself",
    )
    promote.add_argument("--json", action="store_true", help="print the release and its steps as JSON")
    promote.set_defaults(run=_promote)
    back = commands.add_parser("rollback", help="let the model before the champion serve again")
    back.set_defaults(run=_rollback)
    status = commands.add_parser("status", help="show what serves, what came before, and whether its files are whole")
    status.set_defaults(run=_status)
    for command in (promote, back, status):
        where = command.add_mutually_exclusive_group(required=True)
        where.add_argument("--store", help="this machine: root of models/ and channels/, a folder or gs://bucket/path")
        where.add_argument("--cloud", type=Path, metavar="FILE", help="Cloud Run: a file like config/cloud.yaml")
    return parser


if __name__ == "__main__":
    sys.exit(main())
