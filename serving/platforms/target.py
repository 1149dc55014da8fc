"""The Cloud Run service that a release goes to: how big, as whom, from which image. Plain data, checked when built."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Final

from layer3 import settings
from layer3.errors import ConfigurationError
from serving.cloud import Cloud, Endpoints

__all__ = ["Target"]

_PINNED: Final = re.compile(r"[\w.\-/:]+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Target:
    """One Cloud Run service.

    ``image`` is pinned by digest; it may be empty where no revision will be made (status, a rollback).
    ``window_seconds`` is how long each step of the canary is watched. Cloud Monitoring shows what happened about
    three minutes later, so that a shorter window is judged by the release's own questions alone.
    ``allow_unauthenticated`` switches IAM's check of callers off. The server then asks for ID tokens of the accounts
    ``id_token_emails`` (joined by commas) itself, or for one of the keys in the secret ``api_keys_secret``.
    """

    project: str = ""
    region: str = ""
    service: str = ""
    service_account: str = ""
    image: str = ""
    min_instances: int = 0
    max_instances: int = 10
    concurrency: int = 80
    window_seconds: float = 300.0
    allow_unauthenticated: bool = False
    api_keys_secret: str = ""
    id_token_emails: str = ""
    endpoints: Endpoints = field(default_factory=Endpoints)

    def __post_init__(self) -> None:
        settings.within(self, "min_instances", 0, 100, whole=True)
        settings.within(self, "max_instances", max(1, self.min_instances), 100, whole=True)
        settings.within(self, "concurrency", 1, 1000, whole=True)
        settings.within(self, "window_seconds", 0.0, 86_400.0, open_low=True)
        settings.true_or_false(self, "allow_unauthenticated")
        if self.allow_unauthenticated and not (self.id_token_emails or self.api_keys_secret):
            raise ConfigurationError(
                "allow_unauthenticated leaves nobody who says who may call: set id_token_emails (their accounts) or "
                "api_keys_secret (their keys) in config/cloud.yaml"
            )
        if self.image and not _PINNED.fullmatch(self.image):
            raise ConfigurationError(
                f"Target.image is {self.image!r}; it must be pinned by digest, as name@sha256:<64 hex digits>: "
                "a tag may name another image tomorrow"
            )

    @property
    def parent(self) -> str:
        """``projects/…/locations/…``."""
        return f"projects/{self.project}/locations/{self.region}"

    @property
    def name(self) -> str:
        """The service's full name."""
        return f"{self.parent}/services/{self.service}"

    @property
    def cloud(self) -> Cloud:
        """The same project as its configuration, for who we are there."""
        return Cloud(project=self.project, region=self.region, service=self.service, endpoints=self.endpoints)

    @classmethod
    def of(cls, cloud: Cloud) -> Target:
        """The service of a cloud's configuration, as yet without an image."""
        return cls(
            project=cloud.project,
            region=cloud.region,
            service=cloud.service,
            service_account=cloud.serving_service_account,
            max_instances=cloud.max_instances,
            window_seconds=cloud.canary_window_seconds,
            allow_unauthenticated=cloud.allow_unauthenticated,
            api_keys_secret=cloud.api_keys_secret,
            id_token_emails=cloud.id_token_emails,
            endpoints=cloud.endpoints,
        )

    def to_json(self) -> str:
        """As one line, for a pipeline's parameter."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Target:
        """Read :meth:`to_json` back.

        Raises
        ------
        ConfigurationError : not JSON, an unknown key, a wrong value, or no project, region, service or account
        """
        try:
            said = json.loads(text)
        except ValueError as error:
            raise ConfigurationError(f"the target of the release is not JSON: {error}") from error
        target = settings.build(cls(), said, "target")
        for name in ("project", "region", "service", "service_account"):
            if not getattr(target, name):
                raise ConfigurationError(f"target.{name} is missing: say where the model is to serve, and as whom")
        return target
