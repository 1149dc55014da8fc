"""The champion of a store: ``channels/production.json`` names it, ``models/<model id>/`` holds it.

Who serves, who sizes from the command line and who judges a candidate all read it here. A store is a
local folder or a ``gs://`` address with the same layout below it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from layer3 import storage
from layer3.agent.policy import Policy
from layer3.agent.policy_file import FILES, load_policy, read_policy
from layer3.errors import PolicyError, ReleaseError
from layer3.moments import nanoseconds
from layer3.trials import market_of

__all__ = [
    "CHANNEL",
    "Champion",
    "Channel",
    "Event",
    "Reader",
    "load",
    "load_champion",
    "load_folder",
    "load_verified",
    "model_folder",
    "objection",
    "read",
]

#: Where the channel file lies below a store's root.
CHANNEL: Final = ("channels", "production.json")
#: Returns what an address holds, as :func:`layer3.storage.read_bytes` does.
Reader: TypeAlias = Callable[[str], bytes]
_MODEL_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Champion:
    """A model in service. ``released_at`` (ISO, UTC) is when it last began to serve, ``run_id`` who made it."""

    model_id: str
    policy_sha256: str
    contract: str
    released_at: str
    run_id: str


@dataclass(frozen=True)
class Event:
    """One switch: which model came (``model_id``), which one left (``replaced``), when and by which run."""

    event: Literal["release", "rollback"]
    model_id: str
    replaced: str | None
    at: str
    run_id: str


@dataclass(frozen=True)
class Channel:
    """The content of a channel file: the champion, the one before it, and what happened, newest first."""

    champion: Champion
    previous: Champion | None = None
    history: tuple[Event, ...] = ()

    def to_json(self) -> str:
        body = {
            **asdict(self.champion),
            "previous": asdict(self.previous) if self.previous else None,
            "history": [asdict(event) for event in self.history],
        }
        return json.dumps(body, indent=2) + "\n"

    @classmethod
    def from_json(cls, content: bytes, where: str) -> Channel:
        """Read a channel file; a ReleaseError names ``where`` and the first thing wrong. Unknown keys are ignored."""
        try:
            body = json.loads(content)
            champion = _record(Champion, body)
            previous = None if body.get("previous") is None else _record(Champion, body["previous"])
            history = tuple(_record(Event, event, "replaced") for event in body.get("history", ()))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ReleaseError(
                f"{where} is not a channel file ({error}): restore it, or move it away and release a model again"
            ) from error
        return cls(champion, previous, history)


def read(store: str) -> Channel | None:
    """What serves in ``store``, or None before the first release.

    Raises
    ------
    ReleaseError : the channel file is malformed
    SourceError : the bucket does not answer
    """
    where = storage.join(store, *CHANNEL)
    try:
        content = storage.read_bytes(where)
    except FileNotFoundError:
        return None
    return Channel.from_json(content, where)


def load(store: str) -> Policy | None:
    """The verified policy that serves in ``store``, or None before the first release.

    Raises
    ------
    ReleaseError, SourceError : as :func:`read`
    PolicyError, ContractError : the model does not verify, or is not the one that the channel names
    """
    channel = read(store)
    return None if channel is None else load_champion(store, channel.champion)


def load_champion(store: str, champion: Champion, reader: Reader = storage.read_bytes) -> Policy:
    """The policy of ``champion`` in ``store``; a PolicyError where the files there are another one's."""
    folder = model_folder(store, champion.model_id)
    policy = load_folder(folder, reader)
    found = policy.manifest["policy_sha256"]
    if found != champion.policy_sha256:
        raise PolicyError(
            f"{folder} has sha256 {str(found)[:12]}…, its channel names {champion.policy_sha256[:12]}…: "
            "it is not the model that was released; release again"
        )
    return policy


def model_folder(store: str, model_id: str) -> str:
    """Address of a model in ``store``; a PolicyError if ``model_id`` cannot be a folder's name."""
    if not _MODEL_ID.fullmatch(model_id):
        raise PolicyError(f"model id {model_id!r}: expected letters, digits, '.', '_' and '-' only")
    return storage.join(store, "models", model_id)


def load_folder(uri: str, reader: Reader = storage.read_bytes) -> Policy:
    """Load and verify (hash, contract, golden pairs) the policy folder at ``uri``, in a bucket by ``reader``.

    Raises
    ------
    PolicyError, ContractError : as :func:`layer3.agent.policy_file.load_policy`
    SourceError : the bucket does not answer
    """
    if not storage.is_remote(uri):
        return load_verified(Path(uri))
    contents = {}
    for name in FILES:
        try:
            contents[name] = reader(storage.join(uri, name))
        except FileNotFoundError as error:
            raise PolicyError(f"no policy at {uri}: {error.filename} is missing") from error
    folder = uri.rstrip("/")
    with _malformed(f"{folder}/{FILES[1]}"):
        return read_policy(contents[FILES[1]], contents[FILES[0]], folder)


def load_verified(folder: Path) -> Policy:
    """:func:`layer3.agent.policy_file.load_policy` of a manifest that may hold anything."""
    with _malformed(str(folder / FILES[1])):
        return load_policy(folder)


@contextmanager
def _malformed(manifest: str) -> Iterator[None]:
    """A manifest is whatever lies in the store: its values may have any JSON type."""
    try:
        yield
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise PolicyError(f"{manifest} is malformed ({error!r}): release or train it again") from error


def objection(policy: Policy, info: Mapping[str, Any], interval_seconds: int, first: np.int64) -> str | None:
    """Why ``policy`` cannot be walked beside a candidate over held-out bars, as a sentence; ``None`` where it can.

    ``info`` is what ingest knows of the candidate's data, ``first`` the open of the first held-out bar in UTC
    nanoseconds. A champion that was trained on those bars would be no fair match. Simulated markets have
    nothing in common but their dates, so that only one's own history counts there; and what happens on one, or on
    another real market, says nothing of a champion of a real market.
    """
    try:
        data = policy.manifest["data"]
        theirs, end = int(data["interval_seconds"]), nanoseconds(data["end"])
        simulated, symbol = policy.manifest["synthetic"], str(policy.manifest["symbol"])
        strangers = data["sha256"] != info["data_sha256"] and (simulated or info["synthetic"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        return f"champion {policy.model_id} does not say what it was trained on ({error!r}): release another one"
    if info["synthetic"] and not simulated:
        return (
            f"champion {policy.model_id} was trained on a real market and these bars are simulated: whoever is better "
            "here is not fit to take its place; release into another store"
        )
    if not simulated and market_of(symbol) != market_of(info["symbol"]):
        return (
            f"champion {policy.model_id} was trained on {symbol}, these bars are of {info['symbol']}: whoever is "
            "better here need not be better there; release into another store"
        )
    if theirs != interval_seconds:
        return (
            f"champion {policy.model_id} was trained on bars of {theirs:,} seconds, these have {interval_seconds:,}: "
            "compare on bars of its own length, or release into another store"
        )
    if end >= int(first) and not strangers:
        held = f"{np.datetime64(int(first), 'ns').astype('datetime64[s]')}+00:00"
        return (
            f"champion {policy.model_id} was trained on data up to {data['end']}, which reach into the held-out bars "
            f"from {held} on: it knows them and the candidate does not; choose data that end later"
        )
    return None


def _record(kind: Callable[..., Any], body: dict[str, Any], *optional: str) -> Any:
    """A dataclass from the keys of ``body`` that it knows, all of them strings (``optional`` ones may be null)."""
    values = {}
    for name in kind.__dataclass_fields__:  # type: ignore[attr-defined]
        value = body[name]
        if not isinstance(value, str) and not (value is None and name in optional):
            raise TypeError(f"{name} is {value!r}, expected a string")
        values[name] = value
    return kind(**values)
