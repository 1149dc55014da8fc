"""Which cloud this project uses: ``config/cloud.yaml``, read strictly, and who we are there.

Nothing of Google's is imported until :meth:`Cloud.credentials` is called.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from layer3 import settings
from layer3.errors import ConfigurationError

__all__ = ["CLOUD", "Cloud", "Endpoints", "Images", "load_cloud"]

#: Where the file lies, from the project's folder.
CLOUD: Final = Path("config/cloud.yaml")

_SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_OVERRIDES: Final = {"HIMARI_PROJECT": "project", "HIMARI_REGION": "region", "HIMARI_STORE": "store"}
_PINNED: Final = re.compile(r"[\w.\-/:]+@sha256:[0-9a-f]{64}")
_EMAIL: Final = r"[^\s,@]+@[^\s,@]+"
#: Per field what it must look like, and the same in words.
_SHAPES: Final = {
    "project": (r"[a-z][a-z0-9-]{4,28}[a-z0-9]", "a project id, 6 to 30 of a-z, 0-9 and -"),
    "region": (r"[a-z]+-[a-z]+\d+", "a region such as us-central1"),
    "store": (r"gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[\w.-]+)*", "gs://bucket or gs://bucket/path"),
    "experiment": (r"[a-z0-9][a-z0-9-]{0,127}", "up to 128 of a-z, 0-9 and -"),
    "service": (r"([a-z]([a-z0-9-]{0,47}[a-z0-9])?)?", "up to 49 of a-z, 0-9 and -, or empty for none"),
    "pipeline_service_account": (
        r"[a-z0-9.-]+(@[a-z0-9.-]+\.gserviceaccount\.com)?",
        "an account's name or its e-mail",
    ),
    "serving_service_account": (r"[a-z0-9.-]+(@[a-z0-9.-]+\.gserviceaccount\.com)?", "an account's name or its e-mail"),
    "api_keys_secret": (r"[A-Za-z0-9_-]{0,255}", "up to 255 of A-Z, a-z, 0-9, _ and -, or empty for none"),
    "id_token_emails": (rf"({_EMAIL}(,{_EMAIL})*)?", "accounts' e-mail addresses, joined by commas, or empty for none"),
    "images_file": (r"\S.*", "a path"),
}
_REQUIRED: Final = ("project", "store")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses of an emulator on this machine, such as ``http://127.0.0.1:8600``; "" is the real service."""

    vertex: str = ""
    run: str = ""
    storage: str = ""
    services: str = ""
    resource_manager: str = ""
    artifact_registry: str = ""
    monitoring: str = ""
    iam: str = ""

    def __post_init__(self) -> None:
        for name, address in dataclasses.asdict(self).items():
            if address == "":
                continue
            parts = urlsplit(address) if isinstance(address, str) else urlsplit("")
            if parts.scheme != "http" or parts.hostname not in _LOOPBACK or parts.path or parts.port is None:
                raise ConfigurationError(
                    f"{name} is {address!r}; it must be an emulator on this machine, such as http://127.0.0.1:8600 "
                    "(leave it out for the real service)"
                )


@dataclass(frozen=True, slots=True)
class Images:
    """The two images of one build, each pinned by digest."""

    components: str
    serving: str


@dataclass(frozen=True, slots=True)
class Cloud:
    """Project, region, names and limits; checked when built.

    ``store`` is ``gs://bucket[/path]`` and holds runs/, models/ and channels/; ``service`` is the Cloud Run
    service, "" where a release only names the champion in the store, of at most ``max_instances``;
    ``allow_unauthenticated`` is whether its server checks callers in IAM's place, then ``api_keys_secret`` is the
    secret with their keys and ``id_token_emails`` whose tokens it takes, each "" for none; ``canary_window_seconds`` is
    how long each step of a release there is watched; ``max_cost_usd`` is what one run may be estimated to cost;
    ``register_rejected`` is whether the model registry holds what the gate refused, too.
    """

    project: str = ""
    region: str = "us-central1"
    store: str = ""
    experiment: str = "himari"
    pipeline_service_account: str = "himari-dev-pipeline"
    serving_service_account: str = "himari-dev-serving"
    service: str = "himari-dev"
    max_instances: int = 10
    allow_unauthenticated: bool = False
    api_keys_secret: str = ""
    id_token_emails: str = ""
    images_file: str = "build/images.json"
    canary_window_seconds: float = 300.0
    max_cost_usd: float = 10.0
    register_rejected: bool = False
    endpoints: Endpoints = field(default_factory=Endpoints)

    def __post_init__(self) -> None:
        for name, (shape, words) in _SHAPES.items():
            value = getattr(self, name)
            if name in _REQUIRED and value == "":
                continue  # load_cloud asks for them, so that a file may leave one to the environment
            if not isinstance(value, str) or not re.fullmatch(shape, value):
                raise ConfigurationError(f"{name} is {value!r}; it must be {words}")
        settings.within(self, "max_instances", 1, 100, whole=True)
        settings.true_or_false(self, "allow_unauthenticated")
        settings.true_or_false(self, "register_rejected")
        settings.within(self, "canary_window_seconds", 0.0, 86_400.0, open_low=True)
        settings.within(self, "max_cost_usd", 0.0, 10_000.0, open_low=True)

    @property
    def parent(self) -> str:
        """``projects/…/locations/…``."""
        return f"projects/{self.project}/locations/{self.region}"

    @property
    def bucket(self) -> str:
        """The store's bucket, without ``gs://`` and path."""
        return self.store.removeprefix("gs://").partition("/")[0]

    @property
    def emulated(self) -> bool:
        """Whether any service is an emulator; then nothing of this machine's identity is sent anywhere."""
        return any(dataclasses.astuple(self.endpoints))

    def credentials(self) -> Any:
        """Who we are: nobody where an emulator is used, else this machine's application default credentials.

        Raises
        ------
        ConfigurationError : there are none; the message has the command that makes them
        """
        import google.auth
        from google.auth.credentials import AnonymousCredentials
        from google.auth.exceptions import GoogleAuthError

        if self.emulated:
            return AnonymousCredentials()  # type: ignore[no-untyped-call]
        try:
            return google.auth.default(scopes=[_SCOPE])[0]
        except GoogleAuthError as error:
            raise ConfigurationError(
                "this machine has no Google credentials: gcloud auth application-default login"
            ) from error

    def use_storage(self) -> None:
        """Send every client of Cloud Storage in this process, and in those that it starts, to the emulator, if any."""
        if self.endpoints.storage:
            os.environ["STORAGE_EMULATOR_HOST"] = self.endpoints.storage

    def images(self) -> Images:
        """The images that the last build pushed.

        Raises
        ------
        ConfigurationError : the file is not there, or an image in it is not pinned by digest
        """
        path = Path(self.images_file)
        try:
            said = json.loads(settings.read(path, "the images of the last build"))
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{path} is not JSON: {error}; build the images again") from error
        names = [item.name for item in dataclasses.fields(Images)]
        if not isinstance(said, Mapping) or sorted(said) != sorted(names):
            raise ConfigurationError(f"{path} must hold {' and '.join(names)} and nothing else; build the images again")
        for name, image in said.items():
            if not isinstance(image, str) or not _PINNED.fullmatch(image):
                raise ConfigurationError(f"{path}: {name} is {image!r}; it must be pinned: name@sha256:<64 hex digits>")
        return Images(**said)


def load_cloud(path: Path = CLOUD, environment: Mapping[str, str] = os.environ) -> Cloud:
    """The cloud that the file at ``path`` describes, with what ``HIMARI_PROJECT|REGION|STORE`` say put over it.

    A service account may be given by its name alone: it is then the project's.

    Raises
    ------
    ConfigurationError : no such file, an unknown key, a placeholder that was never replaced, a wrong value
    """
    said = dict(settings.document(settings.read(path, "the cloud's configuration"), str(path)))
    said |= {name: environment[variable] for variable, name in _OVERRIDES.items() if environment.get(variable)}
    try:
        cloud = settings.build(Cloud(), said)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    for name in _REQUIRED:
        if not getattr(cloud, name):
            raise ConfigurationError(f"{path}: {name} is missing; it must be {_SHAPES[name][1]}")
    return dataclasses.replace(
        cloud,
        pipeline_service_account=_email(cloud.pipeline_service_account, cloud.project),
        serving_service_account=_email(cloud.serving_service_account, cloud.project),
    )


def _email(account: str, project: str) -> str:
    return account if "@" in account else f"{account}@{project}.iam.gserviceaccount.com"
