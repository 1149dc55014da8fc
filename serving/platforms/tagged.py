"""A revision of Cloud Run under its tag's own address, asked with an identity token."""

from __future__ import annotations

import datetime
import http.client
import json
import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.auth import jwt

from layer3.errors import ConfigurationError, SourceError
from layer3.net.address import Place
from layer3.net.tokens import TokenSource, checked_token, metadata_tokens

__all__ = ["Tagged", "Tokens", "identity_tokens"]

_SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
_ASK_SECONDS: Final = 10.0
#: Seconds before its expiry at which a token is replaced.
_AHEAD: Final = 120.0


class Tokens:
    """Identity tokens of ``source``, each used until it is about to expire."""

    def __init__(self, source: TokenSource, *, wall: Callable[[], float] = time.time) -> None:
        self._source = source
        self._wall = wall
        self._held: tuple[str, float] | None = None

    def __call__(self) -> str:
        if self._held is None or self._held[1] - _AHEAD < self._wall():
            try:
                self._held = checked_token(self._source)
            except SourceError as error:
                raise ConfigurationError(
                    f"no identity token, which Cloud Run asks of every caller ({error}): release from Google Cloud, or "
                    "`gcloud auth application-default login --impersonate-service-account=ACCOUNT` and set "
                    "GOOGLE_APPLICATION_CREDENTIALS to the file that it names"
                ) from error
        return self._held[0]

    def account(self) -> str:
        """The e-mail address of the account whose tokens they are.

        Raises
        ------
        ConfigurationError : there is no token, or it names no address
        """
        try:
            email = jwt.decode(self(), verify=False).get("email")  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise ConfigurationError(f"the identity token of this machine cannot be read ({error})") from error
        if not isinstance(email, str) or not email:
            raise ConfigurationError(
                "the identity token of this machine names no account: release as a service account"
            )
        return email


def identity_tokens(audience: str) -> TokenSource:
    """Tokens for the service at ``audience``: of the account in GOOGLE_APPLICATION_CREDENTIALS, or of this machine.

    A tag's address is asked with a token for the service's own: Cloud Run knows no other audience.
    https://cloud.google.com/run/docs/authenticating/service-to-service
    """
    if not os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return metadata_tokens(audience)

    def fetch() -> tuple[str, float]:
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import Request
        from google.oauth2.id_token import fetch_id_token_credentials

        try:
            request = Request()
            credentials = _federated(audience) or fetch_id_token_credentials(audience, request)  # type: ignore[no-untyped-call]
            credentials.refresh(request)
        except GoogleAuthError as error:
            raise SourceError(" ".join(str(error).split())) from error
        return credentials.token, credentials.expiry.replace(tzinfo=datetime.UTC).timestamp()

    return fetch


def _federated(audience: str) -> Any:
    """Credentials of the account that a workflow elsewhere acts as (Workload Identity Federation), or None.

    Google's fetch_id_token_credentials knows no such file. The account must be allowed to ask for tokens of its own:
    roles/iam.serviceAccountOpenIdTokenCreator on itself.
    """
    import google.auth
    from google.auth import external_account, impersonated_credentials

    source, _ = google.auth.default(scopes=[_SCOPE])
    if not isinstance(source, external_account.Credentials) or not source.service_account_email:
        return None
    account = impersonated_credentials.Credentials(  # type: ignore[no-untyped-call]
        source_credentials=source, target_principal=source.service_account_email, target_scopes=[_SCOPE]
    )
    return impersonated_credentials.IDTokenCredentials(  # type: ignore[no-untyped-call]
        account, target_audience=audience, include_email=True
    )


@dataclass(frozen=True)
class Tagged:
    """The server behind the tag's address ``url`` of the service ``service``."""

    url: str
    service: str
    tokens: Tokens

    @property
    def where(self) -> str:
        return self.url

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        _, status, answer = self.timed(method, path, body)
        return status, answer

    def timed(self, method: str, path: str, body: object = None) -> tuple[float, int, Any]:
        """One request: seconds from the open connection to the whole answer, status, parsed body."""
        place = Place.parse(self.url)
        # http.client and not urllib: a proxy in the environment must not come between.
        connection = (
            http.client.HTTPSConnection(
                place.host, place.port, timeout=_ASK_SECONDS, context=ssl.create_default_context()
            )
            if place.scheme == "https"
            else http.client.HTTPConnection(place.host, place.port, timeout=_ASK_SECONDS)
        )
        content = None if body is None else json.dumps(body, allow_nan=False)
        try:
            connection.connect()
            began = time.perf_counter()
            connection.request(method, place.path + path, content, self._headers(content is not None))
            response = connection.getresponse()
            raw = response.read()
            seconds = time.perf_counter() - began
        finally:
            connection.close()
        try:
            return seconds, response.status, json.loads(raw)
        except ValueError:
            return seconds, response.status, {"detail": raw[:200].decode(errors="replace")}

    def require_alive(self, patience_seconds: float = 0.0) -> None:
        """Nothing: Cloud Run starts another instance for the next request."""

    def log_tail(self) -> str:
        return (
            f"its log: `gcloud run services logs read {self.service}`; against a 401 or 403 grant this account "
            f"roles/run.invoker on {self.service}"
        )

    def _headers(self, has_content: bool) -> Mapping[str, str]:
        token = f"Bearer {self.tokens()}"
        # Cloud Run checks the first and takes its signature out; the server may want to check one too.
        headers = {"X-Serverless-Authorization": token, "Authorization": token}
        return headers | ({"Content-Type": "application/json"} if has_content else {})
