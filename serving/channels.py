"""Switching which model serves: one atomic write of a store's channel file (:mod:`layer3.champion`).

A rollback exchanges the two: the model it leaves becomes ``previous``, so that a second rollback
returns to it. Rolling back twice changes nothing but the history, and no rollback ever walks
further back than one model: whoever wants an older one releases it again from ``models/<id>``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final, Literal

from layer3 import storage
from layer3.champion import CHANNEL, Champion, Channel, Event, load_champion, read
from layer3.errors import HimariError, ReleaseError

__all__ = [
    "HISTORY",
    "exclusive",
    "promoted",
    "publish",
    "rollback",
    "rolled_back",
    "utc_now",
]

#: Events kept in the channel file.
HISTORY: Final = 50


def utc_now() -> datetime:
    return datetime.now(UTC)


def promoted(channel: Channel | None, champion: Champion) -> Channel:
    """``champion`` serves, and what served before is ``previous``; a champion that stays keeps its ``previous``."""
    if channel is None:
        return Channel(champion, None, (_event("release", champion, None),))
    stays = channel.champion.model_id == champion.model_id
    previous = channel.previous if stays else channel.champion
    return Channel(champion, previous, _remember(_event("release", champion, channel.champion.model_id), channel))


def rolled_back(channel: Channel, at: str) -> Channel:
    """The previous model serves and the present one is ``previous``; a ReleaseError if there is none."""
    if channel.previous is None:
        raise ReleaseError(f"there is no model before {channel.champion.model_id}: nothing to go back to")
    champion = replace(channel.previous, released_at=at)
    history = _remember(_event("rollback", champion, channel.champion.model_id), channel)
    return Channel(champion, channel.champion, history)


def publish(store: str, champion: Champion, *, expected: Channel | None) -> Channel:
    """Switch ``store`` to ``champion`` in one write, unless its channel is no longer the ``expected`` one."""
    return _write(store, promoted(expected, champion), expected)


def rollback(
    store: str, *, now: Callable[[], datetime] = utc_now, prove: Callable[[Champion], object] | None = None
) -> Channel:
    """Let the model before the champion serve again, after it has passed its self-test.

    ``prove`` is asked too, once the model's files are known to be whole: it raises a HimariError where the
    model must not serve.

    Raises
    ------
    ReleaseError : nothing serves, there is no previous model, or it does not prove itself; nothing was changed
    """
    # Looked at before the lock too, whose file would make a store out of a mistyped address.
    _present(store)
    with exclusive(store):
        channel = _present(store)
        target = rolled_back(channel, _iso(now()))
        try:
            load_champion(store, target.champion)
            if prove is not None:
                prove(target.champion)
        except (HimariError, OSError) as error:
            raise ReleaseError(
                f"cannot go back to {target.champion.model_id}: {error}; {channel.champion.model_id} still serves"
            ) from error
        return _write(store, target, channel)


def _present(store: str) -> Channel:
    channel = read(store)
    if channel is None:
        raise ReleaseError(f"nothing serves in {store} yet: there is nothing to roll back")
    return channel


@contextlib.contextmanager
def exclusive(store: str, *, patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold a local store's release lock; the kernel drops it when the process ends, however it ends.

    Another's release is waited for at most ``patience_seconds``. A bucket has no such lock: there the
    write of the channel itself is refused if the object is no longer the version that was read.
    """
    if storage.is_remote(store):
        yield
        return
    path = Path(store, CHANNEL[0], ".release.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        deadline = time.monotonic() + patience_seconds
        while not _locked(file):
            if time.monotonic() >= deadline:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise ReleaseError(
                    f"another release or rollback into {store} is under way (process {holder}): "
                    "wait until it has ended and run the command again"
                )
            time.sleep(0.05)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(store: str, channel: Channel, expected: Channel | None) -> Channel:
    """One write over ``expected`` and nothing else, whoever else writes at this moment."""
    where = storage.join(store, *CHANNEL)
    found: Channel | None = None
    version: str | None = None
    with contextlib.suppress(FileNotFoundError):
        content, version = storage.read_version(where)
        found = Channel.from_json(content, where)
    if found != expected or not storage.replace_bytes(where, channel.to_json().encode(), version):
        raise ReleaseError(f"{where} was changed by someone else meanwhile: look at release-status, then release again")
    return channel


def _event(kind: Literal["release", "rollback"], champion: Champion, replaced: str | None) -> Event:
    return Event(kind, champion.model_id, replaced, champion.released_at, champion.run_id)


def _remember(event: Event, channel: Channel) -> tuple[Event, ...]:
    return (event, *channel.history)[:HISTORY]


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
