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

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from google.cloud import run_v2

from layer3 import storage
from layer3.champion import Champion, Channel, load_champion, model_folder
from layer3.errors import ConfigurationError, ReleaseError
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
    accounts,
    arrange,
    checks_callers,
    has_failed,
    model_of,
    named,
    revision_name,
    revision_template,
    share,
    short,
)
from serving.platforms.traffic import MANAGED, Traffic, as_asked, base_of, mask_of
from serving.platforms.watch import Canary, Monitoring, Watch, Watcher

__all__ = ["STEPS", "CloudRun"]

#: Percent of the traffic that the candidate gets, one after the other.
STEPS: Final = (10, 50, 100)
#: Seconds that a revision that Cloud Run has started may take until its tag's address answers.
HEALTH_SECONDS: Final = 120.0
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
        self._traffic = Traffic(api, log)
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
            progress.detail = self._traffic.settle(channel, None, allow=False)

    def serves(self, champion: Champion) -> bool:
        service = self._api.service()
        recorded = service and self._traffic.recorded(service, champion.model_id)
        if not service or not recorded:
            return False
        template = self._template(service, champion.model_id)
        if recorded.annotations.get(TEMPLATE) != template.annotations[TEMPLATE]:
            return False
        return not (self._target.allow_unauthenticated and self._traffic.is_shut(service))

    def roll_out(self, stored: StoredPolicy, progress: Progress, switch: Callable[[], Channel]) -> Channel:
        untouched = progress.undo
        with progress.step("revision"):
            trial = self._start(stored.policy.model_id, progress, untouched, None)
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
            progress.detail = self._traffic.settle(channel, trial.revision, self._target.allow_unauthenticated)
        return channel

    def halfway(self, channel: Channel) -> str | None:
        service = self._api.service()
        recorded = service and self._traffic.recorded(service, channel.champion.model_id)
        if not service or not recorded or share(service) == f"{short(recorded.name)} 100 %":
            return None
        return f"a release was cut short, the traffic is {share(service)}"

    def prove(self, champion: Champion) -> None:
        stored = StoredPolicy(
            model_folder(self._store, champion.model_id), load_champion(self._store, champion), copied=False
        )
        service = self._api.service()
        made = self._traffic.recorded(service, champion.model_id) if service else None
        progress = Progress(None, time.monotonic, self._log)
        progress.model_id = champion.model_id
        progress.undo = lambda: ""
        with progress:
            with progress.step("revision"):
                self._require_welcome(service, made)
                trial = self._start(champion.model_id, progress, progress.undo, made)
                progress.detail = trial.revision
            prove(self._tagged(trial.service, CANDIDATE), stored, progress, self._health_seconds, settling=True)

    def describe(self, channel: Channel | None) -> list[str]:
        service = self._api.service()
        if service is None:
            return [f"{self._target.service}: no such service in {self._target.region} yet"]
        who = "the server itself" if service.invoker_iam_disabled else "IAM"
        lines = [f"service   {service.uri}, whose callers are checked by {who}"]
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
            lines.append(f"{found_instead}: make rollback puts {channel.champion.model_id} back, so does a release")
        return lines

    # How.

    def _start(
        self, model_id: str, progress: Progress, untouched: Callable[[], str], made: run_v2.Revision | None
    ) -> _Trial:
        """A revision of the model (``made`` if there is one) under the tag ``candidate`` and without traffic."""
        before = self._api.service()
        service = run_v2.Service(before) if before else self._new_service()
        template = run_v2.RevisionTemplate()
        if made is not None:
            name, is_new = short(made.name), False
        else:
            template = self._template(before, model_id)
            name, is_new = self._name(template)
        checks = checks_callers(made or template)
        if before is not None and not checks:
            self._require_guarded()
        base, is_champion = base_of(service, name)
        progress.undo = lambda: self._traffic.put_back(before, untouched)
        self._traffic.share(service, arrange(service, base, is_champion, name, 0))
        self._traffic.mark(service)
        # Never reachable by anybody while it asks nobody: the check may stay off only if the newcomer checks too.
        service.invoker_iam_disabled = service.invoker_iam_disabled and checks
        if is_new:
            template.revision = name
            service.template = template
        reached = as_asked(service, name if is_new else None)
        if before is None:
            service = self._api.create(service, reached)
        else:
            mask = mask_of(before, service) + ["template"] * is_new
            service = self._api.update(service, mask, reached)
        return _Trial(service, name, base, is_champion)

    def _canary(self, trial: _Trial, stored: StoredPolicy, percent: int, since: datetime) -> str:
        service = trial.service
        self._traffic.share(service, arrange(service, trial.base, trial.is_champion, trial.revision, percent))
        trial.service = self._api.update(service, ("traffic",), as_asked(service, None))
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
                "release once without allow_unauthenticated"
            )
        uri, target = model_folder(self._store, model_id), self._target
        if target.allow_unauthenticated and service is not None:
            # Whoever releases asks the candidate, too.
            emails = {*filter(None, target.id_token_emails.split(",")), self._tokens(service.uri).account()}
            target = replace(target, id_token_emails=",".join(sorted(emails)))
        return revision_template(target, model_id, uri, list(service.urls) if service else [])

    def _require_guarded(self) -> None:
        """Raise where IAM lets everybody in, before a server that asks nobody."""
        target = self._target
        if everybody := self._api.everybody():
            raise ReleaseError(
                f"IAM lets {everybody} call {target.service}, whose server would ask nobody who they are: take that "
                f"back (`gcloud run services remove-iam-policy-binding {target.service} --region={target.region} "
                f"--member={everybody} --role=roles/run.invoker`, and allow_unauthenticated in Terraform), or "
                "release the model anew with allow_unauthenticated in config/cloud.yaml"
            )

    def _require_welcome(self, service: run_v2.Service | None, made: run_v2.Revision | None) -> None:
        """Raise where the server of ``made`` takes other accounts' tokens and not ours: it could prove nothing."""
        welcome = accounts(made) if made else []
        if service and made and welcome and (ours := self._tokens(service.uri).account().lower()) not in welcome:
            raise ReleaseError(
                f"{short(made.name)} answers {', '.join(welcome)} and not {ours}: run the same command as one of them"
            )

    def _new_service(self) -> run_v2.Service:
        return run_v2.Service(labels=MANAGED, ingress=run_v2.IngressTraffic.INGRESS_TRAFFIC_ALL)

    def _tagged(self, service: run_v2.Service, tag: str) -> Tagged:
        for status in service.traffic_statuses:
            if status.tag == tag and status.uri:
                return Tagged(status.uri, self._target.service, self._tokens(service.uri))
        raise ReleaseError(f"Cloud Run gave the tag {tag} of {self._target.service} no address: release again")

    def _tokens(self, audience: str) -> Tokens:
        if self._held is None:
            self._held = Tokens(self._token_source(audience))
        return self._held
