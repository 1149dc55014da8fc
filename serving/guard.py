"""Who may call: API keys, Google ID tokens, and a rate for each caller. Closed unless a setting opens it.

Settings, from the environment:

    AUTH                 key, id-token, "key,id-token" (either will do) or off; unset, it follows from the next two
    API_KEYS_FILE        lines of name:key; read again when it changes (serving/keys.py)
    ID_TOKEN_AUDIENCE    audiences that a token may be for, comma-separated: the service's URL
    ID_TOKEN_EMAILS      accounts that may call, comma-separated; unset, every Google account with a token for us may
    ID_TOKEN_CERTS_URL   where Google's certificates are; for tests
    RATE_LIMIT           requests per second of one caller, 200; with AUTH=off of all together, and unset no limit
    RATE_BURST           requests that may come at once, twice RATE_LIMIT

A key comes in ``X-API-Key``, a token in ``Authorization: Bearer``. Where both kinds are accepted and both come, the
key decides.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from layer3.errors import ConfigurationError
from layer3.net.address import Place
from serving.keys import KeyFile
from serving.rate import TokenBuckets
from serving.refusals import too_many, unauthorised

if TYPE_CHECKING:
    from serving.identity import IdentityTokens

__all__ = ["Guard", "GuardSettings", "guard_settings"]

GOOGLE_CERTS: Final = "https://www.googleapis.com/oauth2/v3/certs"

#: The name of whoever calls a server that asks nobody who they are.
ANYONE: Final = "anyone"

_CHOICES: Final = (
    "say who may call: API_KEYS_FILE=FILE (lines of name:key), ID_TOKEN_AUDIENCE=URL (Google ID tokens), "
    "or AUTH=off (anybody)"
)
#: Requests per second of one caller.
_RATE: Final = 200.0
logger = logging.getLogger("serving.guard")


@dataclass(frozen=True)
class _Way:
    """A way to be known: what a caller must send, in words, and the challenge of a 401 that asks for it."""

    sent_as: str
    challenge: str


_KEY_WAY: Final = _Way("an API key in X-API-Key", 'ApiKey realm="himari"')
_TOKEN_WAY: Final = _Way("a Google ID token in Authorization: Bearer", 'Bearer realm="himari"')


@dataclass(frozen=True)
class GuardSettings:
    """Who may call; neither keys nor audiences means anybody. ``rate`` in requests per second, None for no limit."""

    keys_file: Path | None
    audiences: frozenset[str]
    emails: frozenset[str]
    certs_url: str
    rate: float | None
    burst: float


def guard_settings(environment: Mapping[str, str]) -> GuardSettings:
    """Read the settings, or raise a ConfigurationError that names the wrong one."""
    keys_file = environment.get("API_KEYS_FILE", "")
    audiences = _list(environment, "ID_TOKEN_AUDIENCE")
    ways = _ways(environment.get("AUTH", ""), bool(keys_file), bool(audiences))
    if "key" in ways and not keys_file:
        raise ConfigurationError("AUTH=key needs API_KEYS_FILE: a file with lines of name:key")
    if "id-token" in ways and not audiences:
        raise ConfigurationError("AUTH=id-token needs ID_TOKEN_AUDIENCE: the service's URL, as callers ask Google for")
    rate = _number(environment, "RATE_LIMIT", least=0.001) or (_RATE if ways else None)
    burst = _number(environment, "RATE_BURST", least=1) or max(1.0, 2 * (rate or 0))
    return GuardSettings(
        keys_file=Path(keys_file) if "key" in ways else None,
        audiences=audiences if "id-token" in ways else frozenset(),
        emails=_emails(environment),
        certs_url=_certs_url(environment.get("ID_TOKEN_CERTS_URL") or GOOGLE_CERTS),
        rate=rate,
        burst=burst,
    )


class Guard:
    """Says who a request is from, or raises the ``Problem`` that answers it. One thread asks it.

    Raises
    ------
    ConfigurationError : the file of keys cannot be read or is wrong
    """

    def __init__(
        self,
        settings: GuardSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._keys = KeyFile(settings.keys_file) if settings.keys_file else None
        ways = [way for way, on in ((_KEY_WAY, settings.keys_file), (_TOKEN_WAY, settings.audiences)) if on]
        self._wanted = " or ".join(way.sent_as for way in ways)
        self._challenge = ", ".join(way.challenge for way in ways)
        self._warning = _warning(settings)
        self._tokens: IdentityTokens | None = None
        if settings.audiences:
            # PyJWT and cryptography take 60 ms to import: only a server that is sent tokens pays for them.
            from serving.certificates import Certificates
            from serving.identity import Accepted, IdentityTokens

            certificates = Certificates(settings.certs_url, clock)
            accepted = Accepted(settings.audiences, settings.emails, self._challenge)
            self._tokens = IdentityTokens(accepted, certificates, clock, wall)
        self._rate = TokenBuckets(settings.rate, settings.burst, clock) if settings.rate is not None else None

    def start(self) -> None:
        """Begin to follow the file of keys and to fetch certificates, each in a thread of its own."""
        if self._keys:
            self._keys.start()
        if self._tokens:
            self._tokens.start()
        if self._warning:
            logger.warning(self._warning)

    def close(self) -> None:
        """End the threads."""
        if self._keys:
            self._keys.close()
        if self._tokens:
            self._tokens.close()

    def admit(self, api_key: bytes | None, authorization: bytes | None) -> str:
        """The caller's name.

        Parameters
        ----------
        api_key, authorization : the values of X-API-Key and Authorization as they came; None where there is none

        Raises
        ------
        Problem : 401 nobody we know, 403 known but not allowed, 429 too fast, 503 cannot be checked yet
        """
        caller = self._caller(api_key, authorization)
        if self._rate is not None:
            wait = self._rate.take(caller)
            if wait:
                raise too_many("this caller sends requests faster than it may", wait)
        return caller

    def _caller(self, api_key: bytes | None, authorization: bytes | None) -> str:
        if self._keys is not None and api_key is not None:
            name = self._keys.name_of(api_key)
            if name is None:
                raise unauthorised("the API key in X-API-Key is none of those that may call", self._challenge)
            return name
        if self._tokens is not None and authorization is not None:
            return self._tokens.caller(authorization)
        if self._keys is None and self._tokens is None:
            return ANYONE
        raise unauthorised(f"this service answers known callers only: send {self._wanted}", self._challenge)


def _warning(settings: GuardSettings) -> str:
    """What whoever starts the server must know about who may call; "" where nothing is unusual."""
    if settings.audiences and not settings.emails:
        return "ID_TOKEN_EMAILS is not set: every Google account may call, with a token for this service"
    if not (settings.audiences or settings.keys_file):
        return "AUTH=off: anybody who reaches this port may call, and nobody is asked who they are"
    return ""


def _ways(chosen: str, has_keys: bool, has_audience: bool) -> frozenset[str]:
    """The ways to be known: of key and id-token; none where AUTH=off."""
    if not chosen:
        found = frozenset(way for way, given in (("key", has_keys), ("id-token", has_audience)) if given)
        if not found:
            raise ConfigurationError(_CHOICES)
        return found
    if chosen == "off":
        return frozenset()
    ways = frozenset(way.strip() for way in chosen.split(","))
    if not ways <= {"key", "id-token"}:
        raise ConfigurationError(f"AUTH is {chosen!r}, expected key, id-token, key,id-token or off; {_CHOICES}")
    return ways


def _list(environment: Mapping[str, str], name: str) -> frozenset[str]:
    return frozenset(entry.strip() for entry in environment.get(name, "").split(",") if entry.strip())


def _emails(environment: Mapping[str, str]) -> frozenset[str]:
    """The accounts that may call; none where the setting is not set, which means all of them."""
    found = _list(environment, "ID_TOKEN_EMAILS")
    text = environment.get("ID_TOKEN_EMAILS", "")
    if text and not (found and all("@" in email for email in found)):
        raise ConfigurationError(f"ID_TOKEN_EMAILS is {text!r}, expected e-mail addresses, comma-separated")
    return frozenset(email.lower() for email in found)


def _number(environment: Mapping[str, str], name: str, least: float) -> float | None:
    """The finite number from ``least`` that the setting holds; None where it is not set."""
    text = environment.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise ConfigurationError(f"{name} is {text!r}, expected a number from {least:g}")
    return value


def _certs_url(url: str) -> str:
    try:
        place = Place.parse(url)
    except ConfigurationError as error:
        raise ConfigurationError(f"ID_TOKEN_CERTS_URL: {error}") from error
    if place.scheme == "https" or place.is_loopback:
        return url
    raise ConfigurationError(f"ID_TOKEN_CERTS_URL is {url!r}, expected https:// (or http:// on this machine)")
