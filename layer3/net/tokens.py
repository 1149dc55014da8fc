"""Tokens of the account that this machine runs as on Google Cloud, from its metadata server."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from layer3.errors import SourceError
from layer3.net.address import Place, lookup
from layer3.net.transport import Budget, Pool, run
from layer3.net.wire import brief, request_bytes

__all__ = ["TokenSource", "access_tokens", "checked_token", "metadata_tokens"]

#: Returns a token and when it expires, in Unix seconds. It is called by a thread that may wait.
TokenSource: TypeAlias = Callable[[], tuple[str, float]]
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{1,16384}")
_HOST: Final = "metadata.google.internal"
_ACCOUNT: Final = "/computeMetadata/v1/instance/service-accounts/default"
_FLAVOR: Final = "Google"
_SECONDS: Final = 5.0


def checked_token(source: TokenSource) -> tuple[str, float]:
    """What ``source`` returns, if a header can carry it (RFC 6750, section 2.1); no error shows the token.

    Raises
    ------
    SourceError : it is none
    """
    token, expiry = source()
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise SourceError(f"the token source returned a {type(token).__name__} that is no bearer token")
    return token, float(expiry)


def metadata_tokens(url: str) -> TokenSource:
    """Tokens for the service at ``url``, of the service account that this machine runs as on Google Cloud.

    They come from its metadata server (``GCE_METADATA_HOST`` names another, as for Google's own
    clients) and hold for scheme and host of ``url``, whatever its path. Elsewhere there is none: pass
    a callable of your own as ``token_source``, for example one around
    ``google.oauth2.service_account.IDTokenCredentials``.

    https://cloud.google.com/run/docs/authenticating/service-to-service

    Raises
    ------
    ConfigurationError : ``url`` is none
    """
    service = Place.parse(url)
    audience = f"{service.scheme}://{service.authority}"
    place = _metadata_server()

    def fetch() -> tuple[str, float]:
        body = _ask(place, f"identity?audience={quote(audience, safe='')}&format=full", "identity token")
        token = body.decode("ascii", errors="replace").strip()
        return token, _expiry(token, place.url)

    return fetch


def access_tokens() -> TokenSource:
    """Tokens for Google's own services, as :func:`metadata_tokens` gets those for a service of ours.

    Raises
    ------
    ConfigurationError : ``GCE_METADATA_HOST`` is no host
    """
    place = _metadata_server()

    def fetch() -> tuple[str, float]:
        body = _ask(place, "token", "access token")
        try:
            said: Any = json.loads(body)
            return said["access_token"], time.time() + float(said["expires_in"])
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise SourceError(f"{place.url}: its access token cannot be read: {type(error).__name__}") from None

    return fetch


def _metadata_server() -> Place:
    return Place.parse(f"http://{os.environ.get('GCE_METADATA_HOST') or _HOST}")


def _ask(place: Place, name: str, what: str) -> bytes:
    """What the metadata server says under ``name`` of this machine's account."""
    addresses = lookup(place)
    request = request_bytes("GET", f"{_ACCOUNT}/{name}", {"Host": place.authority, "Metadata-Flavor": _FLAVOR})
    with closing(Pool(lambda: addresses, place.host, None)) as pool:
        answer = run(pool.exchange(request, Budget.start(place.url, _SECONDS)))
    if answer.status != 200:
        raise SourceError(f"{place.url} gave no {what}: HTTP {answer.status}: {brief(answer.body)}")
    if answer.headers.get("metadata-flavor") != _FLAVOR:
        # Its body is not shown: a token may stand in it, where a proxy took the header out.
        raise SourceError(f"{place.url} gave no {what}: HTTP 200 without the header Metadata-Flavor: {_FLAVOR}")
    return answer.body


def _expiry(token: str, where: str) -> float:
    """The claim ``exp`` of a JSON web token (RFC 7519); its signature is for the service to check."""
    parts = token.split(".")
    try:
        claims: Any = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        expiry = float(claims["exp"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{where}: the identity token has no readable expiry: {type(error).__name__}") from None
    if not expiry > time.time():
        raise SourceError(f"{where}: the identity token has expired already: is this machine's clock right?")
    return expiry
