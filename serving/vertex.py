"""Vertex AI as seen by a step of the pipeline: where it is, its clients, and what its refusals mean.

Google's clients take a second to import: only who has a :class:`Place` pays for it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

from layer3 import settings
from layer3.errors import ConfigurationError, RefusedError, SourceError
from serving.cloud import Cloud, Endpoints

__all__ = ["ATTEMPTS", "SECONDS", "Place", "Waiter", "asked", "client", "label", "place_in", "place_of", "said_of"]

#: Seconds that one call may take, and how often one that got no answer is made.
SECONDS: Final = 60.0
ATTEMPTS: Final = 4
#: Longest wait between two attempts, in seconds, whatever a server asks for.
_LONGEST: Final = 60.0

Waiter = Callable[[float], None]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where Vertex AI records: ``endpoint`` is an emulator's address, "" the real service."""

    project: str = ""
    region: str = "us-central1"
    experiment: str = "himari"
    endpoint: str = ""

    def __post_init__(self) -> None:
        self._cloud()  # whose checks hold for what a pipeline was handed, too

    def _cloud(self) -> Cloud:
        endpoints = Endpoints(vertex=self.endpoint)
        return Cloud(project=self.project, region=self.region, experiment=self.experiment, endpoints=endpoints)

    @property
    def parent(self) -> str:
        """``projects/…/locations/…``."""
        return self._cloud().parent

    @property
    def address(self) -> str:
        """Where its services answer, with the scheme."""
        return self.endpoint or f"https://{self.region}-aiplatform.googleapis.com"

    def credentials(self) -> Any:
        """Who we are there: nobody for an emulator, else this machine's default credentials."""
        return self._cloud().credentials()


def place_of(text: str) -> Place:
    """The place that the JSON ``text`` names: the pipeline's parameter ``vertex``.

    Raises
    ------
    ConfigurationError : it is no JSON object, has an unknown key, or a value that cannot be
    """
    try:
        place = settings.build(Place(), json.loads(text))
    except (ValueError, ConfigurationError) as error:
        raise ConfigurationError(f"vertex is {text!r}, which names no place to record in: {error}") from error
    if not place.project:
        raise ConfigurationError(f"vertex is {text!r}, which names no project")
    return place


def place_in(cloud: Cloud) -> Place:
    """Where this ``cloud`` records."""
    return Place(cloud.project, cloud.region, cloud.experiment, cloud.endpoints.vertex)


def said_of(cloud: Cloud) -> str:
    """The pipeline's parameter ``vertex`` for this ``cloud``; :func:`place_of` reads it."""
    return json.dumps(asdict(place_in(cloud)), sort_keys=True)


def client(kind: Any, where: Place | Cloud) -> Any:
    """One of the library's clients, such as ``aiplatform_v1.ModelServiceClient``, that speaks REST to ``where``."""
    from google.api_core.client_options import ClientOptions

    place = place_in(where) if isinstance(where, Cloud) else where
    options = ClientOptions(api_endpoint=place.address)
    return kind(credentials=place.credentials(), transport="rest", client_options=options)


def asked(
    what: str,
    call: Callable[[], _T],
    *,
    sleep: Waiter = time.sleep,
    attempts: int = ATTEMPTS,
    service: str = "Vertex AI",
) -> _T:
    """The answer of ``call``, which looks before it changes anything, so that it may be made again.

    It is made again where no answer came, or one that says that the service is busy (429, 5xx, and 409 for
    a change that another one overtook), after the wait that the service asks for, else 1, 2, 4 … seconds.
    ``what`` says in a message what was to be done ("register the model"), ``service`` of whom it was asked.

    Raises
    ------
    RefusedError : it refuses; the message has its words and what to do
    google.api_core.exceptions.NotFound : it does not find what was named, which the caller knows the reason of
    SourceError : it did not answer ``attempts`` times; running the same again goes on from there
    """
    import requests  # type: ignore[import-untyped]
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError, TransportError

    busy = (exceptions.TooManyRequests, exceptions.ServerError, exceptions.Conflict)
    # Whether the connection broke before the answer, within it, or while a token was fetched.
    silent = (requests.RequestException, TransportError, exceptions.RetryError)
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except (*busy, *silent) as error:
            last: Exception = error
            if attempt < attempts:
                sleep(min(_asked_wait(error) or 2.0 ** (attempt - 1), _LONGEST))
        except exceptions.NotFound:
            raise
        except TimeoutError as error:
            raise SourceError(
                f"cannot {what}: {service} began it and has not ended it: run the same again later; what is done by "
                "then is found and kept"
            ) from error
        except exceptions.GoogleAPICallError as error:
            raise RefusedError(f"{service} refuses to {what}: {_words(error)}. {_remedy(error)}") from error
        except GoogleAuthError as error:
            raise RefusedError(
                f"cannot {what}: this account's credentials do not work ({_words(error)}): "
                "run `gcloud auth application-default login`, or look at the service account of the run"
            ) from error
    raise SourceError(
        f"cannot {what}: {service} did not answer in {attempts} attempts ({_words(last)}): check the network and "
        "https://status.cloud.google.com, then run the same again; what is done already is found and kept"
    ) from last


def label(text: str) -> str:
    """``text`` as a label's value: at most 63 of a-z, 0-9, _ and -."""
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:63]


def _asked_wait(error: Exception) -> float | None:
    """Seconds that the answer asked to wait, if it did."""
    response = getattr(error, "response", None)
    asks = "" if response is None else response.headers.get("Retry-After", "")
    return float(asks) if re.fullmatch(r"\d+(\.\d+)?", asks) else None


def _remedy(error: Any) -> str:
    if error.code == 403:
        return (
            "Give the account that runs this the role: gcloud projects add-iam-policy-binding PROJECT "
            "--member=serviceAccount:ACCOUNT --role=roles/aiplatform.user, and enable the API: gcloud services enable "
            "aiplatform.googleapis.com"
        )
    if error.code == 401:
        return "Run `gcloud auth application-default login`."
    return "Correct what it names and run the same again."


def _words(error: Exception) -> str:
    """The error in one line, without the address that Google's client puts before what the service said."""
    words = re.sub(r"^(\d{3} )?[A-Z]+ https?://\S+: ", "", " ".join(str(error).split()))
    return words.rstrip(".") or type(error).__name__
