"""A release on Cloud Run: a revision without traffic proves itself, then gets its share step by step.

settle -> revision -> health -> smoke -> parity -> canary 10 % -> canary 50 % -> canary 100 % -> switch -> promote

The store's channel says who is champion, and the service follows it. Until *switch* has written the channel, a
failure puts the traffic back on the champion, and whatever a releaser that died has left is put back by the next
command, whichever it is (*settle*). After it, the next command finishes what is missing: the tag and the labels.
Traffic goes to revisions by name, never to "the latest", so that no revision serves because it was made.

A rollback asks the model before the champion to prove itself in its revision, which is still there, then writes the
channel, then moves the traffic.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from google.cloud import run_v2

from layer3 import storage
from layer3.champion import Champion, Channel, load_champion, model_folder
from layer3.errors import ConfigurationError, HimariError, ReleaseError
from layer3.net.tokens import TokenSource
from serving import canary
from serving.models import StoredPolicy
from serving.platforms.protocol import Progress, prove
from serving.platforms.run_api import RunApi
from serving.platforms.tagged import Tagged, Tokens, identity_tokens
from serving.platforms.target import Target
from serving.platforms.template import (
    CANDIDATE,
    CHAMPION,
    TEMPLATE,
    Shares,
    arrange,
    checks_callers,
    has_failed,
    label,
    model_of,
    named,
    revision_name,
    revision_template,
    share,
    short,
    split,
)
from serving.platforms.watch import Canary, Monitoring, Watch, Watcher

__all__ = ["STEPS", "CloudRun"]

#: Percent of the traffic that the candidate gets, one after the other.
STEPS: Final = (10, 50, 100)
#: Seconds that a revision that Cloud Run has started may take until its tag's address answers.
HEALTH_SECONDS: Final = 120.0
#: Annotation of the service: the release that last changed it, while it is under way.
_RELEASE: Final = "himari-release"
_MANAGED: Final = {"managed-by": "himari"}
_MASK: Final = ("traffic", "labels", "annotations", "invoker_iam_disabled")
_MOST_ATTEMPTS: Final = 20


@dataclass
class _Trial:
    """A candidate's ``revision`` beside ``base``, which is the recorded champion's if ``is_champion``."""

    service: run_v2.Service
    revision: str
    base: str
    is_champion: bool


class CloudRun:
    """The service of ``target``, serving from the bucket ``store``."""

    def __init__(
        self,
        target: Target,
        store: str,
        api: RunApi,
        watcher: Watcher,
        *,
        tokens: Callable[[str], TokenSource] = identity_tokens,
        limits: canary.Limits = canary.Limits(),  # noqa: B008 - frozen
        health_seconds: float = HEALTH_SECONDS,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        if not storage.is_remote(store):
            raise ConfigurationError(f"{store} is on this machine: a service on Cloud Run reads models from gs://…")
        self._target = target
        self._store = store
        self._api = api
        self._watcher = watcher
        self._token_source = tokens
        self._limits = limits
        self._health_seconds = health_seconds
        self._now = now
        self._log = log
        #: Marks what this release changes, so that it takes back nothing of anybody else's.
        self._id = secrets.token_hex(8)
        self._set: list[Shares] = []
        self._held: Tokens | None = None

    @classmethod
    def connect(cls, target: Target, store: str, *, log: Callable[[str], None]) -> CloudRun:
        """With Google's own clients, as whoever this machine's credentials say.

        Raises
        ------
        ConfigurationError : there are no credentials, or ``store`` is no bucket
        """
        credentials = target.cloud.credentials()
        return cls(target, store, RunApi(target, credentials), Watch(Monitoring(target, credentials)), log=log)

    # The steps.

    def settle(self, channel: Channel | None, progress: Progress) -> None:
        with progress.step("settle"):
            progress.detail = self._settle(channel, None)

    def serves(self, champion: Champion) -> bool:
        service = self._api.service()
        recorded = service and self._recorded(service, champion.model_id)
        if not service or not recorded:
            return False
        template = self._template(service, champion.model_id)
        return bool(recorded.annotations.get(TEMPLATE) == template.annotations[TEMPLATE])

    def roll_out(self, stored: StoredPolicy, progress: Progress, switch: Callable[[], Channel]) -> Channel:
        untouched = progress.undo
        with progress.step("revision"):
            trial = self._start(stored.policy.model_id, progress, untouched)
            progress.detail = f"{trial.revision}; the traffic is {share(trial.service)}"
        prove(self._tagged(trial.service, CANDIDATE), stored, progress, self._health_seconds, settling=True)
        since = self._now()
        # Without a champion there is nothing to compare with, and nobody who is served better meanwhile.
        for percent in STEPS if trial.is_champion else STEPS[-1:]:
            with progress.step(f"canary {percent} %"):
                progress.detail = self._canary(trial, stored, percent, since)
        with progress.step("switch"):
            channel = switch()
        progress.done = True
        with progress.step("promote"):
            progress.detail = self._settle(channel, trial.revision)
        return channel

    def halfway(self, channel: Channel) -> str | None:
        service = self._api.service()
        recorded = service and self._recorded(service, channel.champion.model_id)
        if not service or not recorded or share(service) == f"{short(recorded.name)} 100 %":
            return None
        return f"a release was cut short, the traffic is {share(service)}"

    def prove(self, champion: Champion) -> None:
        stored = StoredPolicy(
            model_folder(self._store, champion.model_id), load_champion(self._store, champion), copied=False
        )
        progress = Progress(None, lambda: 0.0, self._log)
        progress.model_id = champion.model_id
        progress.undo = lambda: ""
        with progress.step("revision"):
            trial = self._start(champion.model_id, progress, progress.undo)
            progress.detail = trial.revision
        prove(self._tagged(trial.service, CANDIDATE), stored, progress, self._health_seconds, settling=True)

    def describe(self, channel: Channel | None) -> list[str]:
        service = self._api.service()
        if service is None:
            return [f"{self._target.service}: no such service in {self._target.region} yet"]
        lines = [f"service   {service.uri}"]
        for revision, percent, tag in named(service):
            found = self._api.revision(revision)
            failure = has_failed(found) if found else "it is gone"
            serving = model_of(found) if found else ""
            lines.append(
                f"  {percent:>3} %  {revision}  {serving or 'no model of ours'}"
                + (f"  tag {tag}" if tag else "")
                + (f"  FAILED: {failure}" if failure else "")
            )
        if channel is not None and (found_instead := self.halfway(channel)):
            lines.append(f"{found_instead}: make rollback puts {channel.champion.model_id} back, a release does so too")
        return lines

    # How.

    def _start(self, model_id: str, progress: Progress, untouched: Callable[[], str]) -> _Trial:
        """A revision of the model under the tag ``candidate`` and without traffic; made unless it is there."""
        before = self._api.service()
        service = run_v2.Service(before) if before else self._new_service()
        template = self._template(before, model_id)
        template.revision, is_new = self._name(template)
        base, is_champion = _base(service, template.revision)
        progress.undo = lambda: self._put_back(before, untouched)
        self._share(service, arrange(service, base, is_champion, template.revision, 0))
        service.annotations[_RELEASE] = self._id
        # Never reachable by anybody while it asks nobody: the check may stay off only if the newcomer checks too.
        service.invoker_iam_disabled = service.invoker_iam_disabled and self._target.allow_unauthenticated
        if is_new:
            service.template = template
        reached = _as_asked(service, template.revision if is_new else None)
        if before is None:
            service = self._api.create(service, reached)
        else:
            service = self._api.update(service, (*_MASK, "template") if is_new else _MASK, reached)
        found = self._api.revision(template.revision)
        if found is not None and (failure := has_failed(found)):
            raise ReleaseError(f"revision {template.revision} does not start: {failure}")
        return _Trial(service, template.revision, base, is_champion)

    def _canary(self, trial: _Trial, stored: StoredPolicy, percent: int, since: datetime) -> str:
        service = trial.service
        self._share(service, arrange(service, trial.base, trial.is_champion, trial.revision, percent))
        trial.service = self._api.update(service, ("traffic",), _as_asked(service, None))
        watched = Canary(
            policy=stored.policy,
            revision=trial.revision,
            server=self._tagged(trial.service, CANDIDATE),
            champion_revision=trial.base,
            champion_server=self._tagged(trial.service, CHAMPION) if trial.is_champion else None,
            since=since,
        )
        found = self._watcher(watched, self._target.window_seconds)
        for comparison in found:
            if (why := canary.objection(comparison, self._limits)) is not None:
                raise ReleaseError(why)
        return "; ".join(map(str, found))

    def _settle(self, channel: Channel | None, promoted: str | None) -> str:
        """All traffic, tag and labels to the recorded champion (in the revision ``promoted``, if it was just that)."""
        service = self._api.service()
        if service is None:
            return "there is no service yet"
        champion = channel.champion if channel else None
        recorded = champion and (
            self._api.revision(promoted) if promoted else self._recorded(service, champion.model_id)
        )
        if not channel or not champion or not recorded:
            return self._withdraw_unrecorded(service)
        was, before = share(service), run_v2.Service(service)
        self._share(service, arrange(service, short(recorded.name), True, "", 0))
        service.labels.update(
            {**_MANAGED, "himari-champion": label(champion.model_id), "himari-run": label(champion.run_id)}
        )
        service.annotations.pop(_RELEASE, None)
        service.invoker_iam_disabled = checks_callers(recorded) and (
            service.invoker_iam_disabled or (bool(promoted) and self._target.allow_unauthenticated)
        )
        if service != before:
            service = self._api.update(service, _MASK, _as_asked(service, None))
        self._remove_stale(service, channel)
        now = f"{champion.model_id} has all traffic in {short(recorded.name)}"
        return now if share(service) == was else f"{now}; before that it was {was}"

    def _withdraw_unrecorded(self, service: run_v2.Service) -> str:
        """Take the tag ``candidate`` and its traffic back, where nothing of ours is recorded as champion."""
        base, _ = _base(service, "")
        if not base or all(tag != CANDIDATE for _, _, tag in named(service)):
            return f"no champion is recorded here, the traffic is {share(service) or 'nobody’s'}"
        self._share(service, arrange(service, base, False, "", 0))
        service = self._api.update(service, ("traffic",), _as_asked(service, None))
        return f"took back a release that was cut short, the traffic is {share(service)}"

    def _remove_stale(self, service: run_v2.Service, channel: Channel) -> None:
        """Delete revisions of ours that never came to serve; Cloud Run itself keeps its newest one."""
        served = {event.model_id for event in channel.history} | {channel.champion.model_id}
        routed = {revision for revision, _, _ in named(service)}
        for revision in self._api.revisions():
            if model_of(revision) and model_of(revision) not in served and short(revision.name) not in routed:
                if short(revision.name) == short(service.latest_created_revision):
                    continue
                if self._api.delete_revision(revision):
                    self._log(f"removed revision {short(revision.name)}, which never came to serve")

    def _put_back(self, before: run_v2.Service | None, untouched: Callable[[], str]) -> str:
        """Undo what this release has changed of the service; what serves then, as a sentence."""
        try:
            now = self._api.service()
            if now is None or now.annotations.get(_RELEASE) != self._id:
                return untouched()
            if named(now) not in self._set:
                return f"Someone else has changed the traffic meanwhile, it stays as it is: {share(now)}."
            if before is None:
                self._api.delete(now)
                return f"{untouched()} The service that this release had created is gone again."
            now.traffic, now.annotations = before.traffic, before.annotations
            now.invoker_iam_disabled = before.invoker_iam_disabled
            self._api.update(now, _MASK, _as_asked(now, None))
        except HimariError as error:
            return (
                f"And the traffic could not be put back ({error}): run `make rollback`, which does it and nothing "
                "else; release-status shows the traffic"
            )
        return f"{untouched()} The traffic is back as it was: {share(before)}."

    def _share(self, service: run_v2.Service, shares: Shares) -> None:
        self._set.append(shares)
        service.traffic = split(shares)

    def _name(self, template: run_v2.RevisionTemplate) -> tuple[str, bool]:
        """The revision's name, and whether it has yet to be made. One that failed is left behind for a next attempt."""
        for attempt in range(1, _MOST_ATTEMPTS + 1):
            name = revision_name(self._target.service, template, attempt)
            found = self._api.revision(name)
            if found is None:
                return name, True
            if found.annotations.get(TEMPLATE) == template.annotations[TEMPLATE] and not has_failed(found):
                return name, False
        raise ReleaseError(
            f"{_MOST_ATTEMPTS} revisions of this model have failed to start: read their logs, and delete them with "
            f"`gcloud run revisions delete`, before releasing it again"
        )

    def _template(self, service: run_v2.Service | None, model_id: str) -> run_v2.RevisionTemplate:
        if self._target.allow_unauthenticated and service is None:
            raise ConfigurationError(
                f"{self._target.service} does not exist yet, and so has no URL for which callers' tokens could be: "
                "release once without --allow-unauthenticated"
            )
        uri = model_folder(self._store, model_id)
        return revision_template(self._target, model_id, uri, service.uri if service else "")

    def _new_service(self) -> run_v2.Service:
        return run_v2.Service(labels=_MANAGED, ingress=run_v2.IngressTraffic.INGRESS_TRAFFIC_ALL)

    def _recorded(self, service: run_v2.Service, model_id: str) -> run_v2.Revision | None:
        """The revision that serves the model: with the champion's tag, with traffic, or the newest."""
        routed = {name: (tag == CHAMPION, percent) for name, percent, tag in named(service)}
        found = [each for each in self._api.revisions() if model_of(each) == model_id and not has_failed(each)]
        return max(found, key=lambda each: routed.get(short(each.name), (False, 0)), default=None)

    def _tagged(self, service: run_v2.Service, tag: str) -> Tagged:
        for status in service.traffic_statuses:
            if status.tag == tag and status.uri:
                return Tagged(status.uri, self._target.service, self._tokens(service.uri))
        raise ReleaseError(f"Cloud Run gave the tag {tag} of {self._target.service} no address: release again")

    def _tokens(self, audience: str) -> Tokens:
        if self._held is None:
            self._held = Tokens(self._token_source(audience))
        return self._held


def _base(service: run_v2.Service, candidate: str) -> tuple[str, bool]:
    """The revision that keeps what the candidate does not get, and whether it is the recorded champion."""
    shares = [to for to in named(service) if to[2] != CANDIDATE] or named(service)
    name, _, tag = max(shares, key=lambda to: to[1], default=("", 0, ""))
    return name, tag == CHAMPION and name != candidate


def _as_asked(service: run_v2.Service, revision: str | None) -> Callable[[run_v2.Service], bool]:
    """Whether a service is as ``service`` says, with ``revision`` as its newest if that is asked."""
    wanted, edge = list(service.traffic), service.invoker_iam_disabled

    def reached(now: run_v2.Service) -> bool:
        return (
            list(now.traffic) == wanted
            and now.invoker_iam_disabled == edge
            and revision in (None, now.template.revision)
        )

    return reached
