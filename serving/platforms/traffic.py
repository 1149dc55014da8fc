"""Who of a service's revisions gets what: the champion that is recorded, a candidate for a while, and the way back."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

from google.cloud import run_v2

from layer3.champion import Channel
from layer3.errors import HimariError
from serving.platforms.run_api import RunApi
from serving.platforms.template import (
    CANDIDATE,
    CHAMPION,
    Shares,
    arrange,
    checks_callers,
    has_failed,
    label,
    model_of,
    named,
    share,
    short,
    split,
)

__all__ = ["MANAGED", "Traffic", "as_asked", "base_of", "mask_of"]

#: Labels of the service.
MANAGED: Final = {"managed-by": "himari"}
#: What a release changes of the service beside its template.
_CHANGED: Final = ("traffic", "labels", "annotations", "invoker_iam_disabled")
#: Annotation of the service: the release that last changed it, while it is under way.
_RELEASE: Final = "himari-release"


class Traffic:
    """The traffic of the service behind ``api``, as one release changes it and takes its changes back."""

    def __init__(self, api: RunApi, log: Callable[[str], None]) -> None:
        self._api = api
        self._log = log
        #: Marks what this release changes, so that it takes back nothing of anybody else's.
        self._id = secrets.token_hex(8)
        self._set: list[Shares] = []

    def mark(self, service: run_v2.Service) -> None:
        """Say in ``service`` that this release is at work."""
        service.annotations[_RELEASE] = self._id

    def share(self, service: run_v2.Service, shares: Shares) -> None:
        """Ask ``service`` for ``shares``, once it is written."""
        self._set.append(sorted(shares))
        service.traffic = split(shares)

    def recorded(self, service: run_v2.Service, model_id: str) -> run_v2.Revision | None:
        """The revision that serves the model: with the champion's tag, with traffic, or the newest."""
        routed = {name: (tag == CHAMPION, percent) for name, percent, tag in named(service)}
        found = [each for each in self._api.revisions() if model_of(each) == model_id and not has_failed(each)]
        return max(found, key=lambda each: routed.get(short(each.name), (False, 0)), default=None)

    def is_shut(self, service: run_v2.Service) -> bool:
        """Whether IAM's check keeps callers from a server that would check them itself."""
        # It lets allUsers in as they are, where switching it off takes a role that few have. Of allAuthenticatedUsers
        # it asks a token, whose signature the server then misses, and no key will do.
        return not service.invoker_iam_disabled and self._api.everybody() != "allUsers"

    def settle(self, channel: Channel | None, promoted: str | None, allow: bool) -> str:
        """Give all traffic, tag and labels to the recorded champion; what is so then, as a sentence.

        ``promoted`` is its revision, if this release has just brought it there; ``allow`` then switches IAM's check
        of callers off, if that revision's server checks them.
        """
        service = self._api.service()
        if service is None:
            return "there is no service yet"
        champion = channel.champion if channel else None
        recorded = champion and (
            self._api.revision(promoted) if promoted else self.recorded(service, champion.model_id)
        )
        if not channel or not champion or not recorded:
            return self._withdraw_unrecorded(service)
        was, before = share(service), run_v2.Service(service)
        self.share(service, arrange(service, short(recorded.name), True, "", 0))
        service.labels.update(
            {**MANAGED, "himari-champion": label(champion.model_id), "himari-run": label(champion.run_id)}
        )
        service.annotations.pop(_RELEASE, None)
        service.invoker_iam_disabled = checks_callers(recorded) and (
            service.invoker_iam_disabled or (bool(promoted) and allow and self.is_shut(service))
        )
        if service != before:
            service = self._api.update(service, mask_of(before, service), as_asked(service, None))
        self._remove_stale(service, channel)
        now = f"{champion.model_id} has all traffic in {short(recorded.name)}"
        return now if share(service) == was else f"{now}; before that it was {was}"

    def _withdraw_unrecorded(self, service: run_v2.Service) -> str:
        """Take the tag ``candidate`` and its traffic back, where nothing of ours is recorded as champion."""
        base, _ = base_of(service, "")
        if not base or all(tag != CANDIDATE for _, _, tag in named(service)):
            return f"no champion is recorded here, the traffic is {share(service) or 'nobody’s'}"
        self.share(service, arrange(service, base, False, "", 0))
        service = self._api.update(service, ("traffic",), as_asked(service, None))
        return f"took back a release that was cut short, the traffic is {share(service)}"

    def _remove_stale(self, service: run_v2.Service, channel: Channel) -> None:
        """Delete revisions of ours that never came to serve; Cloud Run itself keeps its newest one."""
        served = {event.model_id for event in channel.history} | {channel.champion.model_id}
        routed = {revision for revision, _, _ in named(service)}
        kept = {*routed, short(service.latest_created_revision)}
        for revision in self._api.revisions():
            stale = bool(model_of(revision)) and (model_of(revision) not in served or has_failed(revision))
            if stale and short(revision.name) not in kept and self._api.delete_revision(revision):
                self._log(f"removed revision {short(revision.name)}, which never came to serve")

    def put_back(self, before: run_v2.Service | None, untouched: Callable[[], str]) -> str:
        """Undo what this release has changed of the service; what serves then, as a sentence."""
        try:
            now = self._api.service()
            if now is None:
                return untouched()
            ours = now.annotations.get(_RELEASE) == self._id
            if not ours and before is not None and named(now) == named(before):
                return untouched()
            if not ours or sorted(named(now)) not in self._set:
                return f"Someone else has changed the traffic meanwhile, it stays as it is: {share(now)}."
            if before is None:
                self._api.delete(now)
                return f"{untouched()} The service that this release had created is gone again."
            found = run_v2.Service(now)
            now.traffic, now.annotations = before.traffic, before.annotations
            now.invoker_iam_disabled = before.invoker_iam_disabled
            self._api.update(now, mask_of(found, now), as_asked(now, None))
        except HimariError as error:
            return (
                f"And the traffic could not be put back ({error}): run `make rollback CLOUD=FILE`, which does it and "
                "nothing else, or release again; `make release-status CLOUD=FILE` shows the traffic"
            )
        return f"{untouched()} The traffic is back as it was: {share(before)}."


def mask_of(before: run_v2.Service, after: run_v2.Service) -> list[str]:
    """The fields in which the two differ: whoever may move traffic need not be allowed to say who may call."""
    return [name for name in _CHANGED if _plain(getattr(before, name)) != _plain(getattr(after, name))]


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    return dict(value) if isinstance(value, Mapping) else list(value)


def base_of(service: run_v2.Service, candidate: str) -> tuple[str, bool]:
    """The revision that keeps what the candidate does not get, and whether it is the recorded champion."""
    shares = [to for to in named(service) if to[2] != CANDIDATE] or named(service)
    name, _, tag = max(shares, key=lambda to: to[1], default=("", 0, ""))
    return name, tag == CHAMPION and name != candidate


def as_asked(service: run_v2.Service, revision: str | None) -> Callable[[run_v2.Service], bool]:
    """Whether a service is as ``service`` says, with ``revision`` as its newest if that is asked."""
    wanted, edge = sorted(named(service)), service.invoker_iam_disabled

    def reached(now: run_v2.Service) -> bool:
        return (
            sorted(named(now)) == wanted
            and now.invoker_iam_disabled == edge
            and revision in (None, now.template.revision)
        )

    return reached
