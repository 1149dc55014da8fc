"""Google ID tokens: whose they are, whether they are for us, whether they still hold.

What costs nothing is checked first (form, algorithm, issuer, audience, times), the signature last, and a flood of
wrong signatures is cut off before it costs the processor anything. A token that was verified is known again by its
digest until it expires, so that of a caller's requests only the first pays for the signature.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from jwt.algorithms import RSAAlgorithm

from serving.certificates import Certificates
from serving.problems import Problem
from serving.rate import TokenBuckets
from serving.refusals import too_many, unauthorised

__all__ = ["Accepted", "IdentityTokens"]

ISSUERS: Final = frozenset({"https://accounts.google.com", "accounts.google.com"})
#: Seconds by which the clocks of Google and of this machine may differ.
LEEWAY_SECONDS: Final = 10
#: Verified tokens that are remembered at once; beyond it the one unused for longest is verified again.
MAX_REMEMBERED: Final = 4096
#: Signatures of tokens that turned out wrong or not allowed: how many a second, and at once, are worth checking.
BAD_PER_SECOND: Final = 200.0
BAD_AT_ONCE: Final = 400.0
MAX_TOKEN_BYTES: Final = 8192

#: What Cloud Run leaves of a signature that it has checked itself.
_REMOVED: Final = b"SIGNATURE_REMOVED_BY_GOOGLE"
_BAD: Final = "bad signatures"
#: Seconds since 1970 that no honest token reaches (the year 5138); JSON has numbers that no float holds.
_LAST_TIME: Final = 1e11


@dataclass(frozen=True)
class Accepted:
    """Tokens for one of ``audiences`` are accepted; of the accounts ``emails``, or of any where it is empty.

    ``challenge`` is the WWW-Authenticate of a 401.
    """

    audiences: frozenset[str]
    emails: frozenset[str]
    challenge: str


@dataclass(frozen=True)
class _Token:
    signed: bytes
    signature: bytes
    key_id: str
    claims: Mapping[str, Any]


class _Refused(Exception):  # noqa: N818 - it never leaves this file
    """Why a token does not say who its bearer is; nothing of the token stands in it."""


class IdentityTokens:
    """Names the bearer of a token. One thread asks it.

    Parameters
    ----------
    certificates : the issuer's public keys
    clock : seconds that never run backwards, for the cut-off
    wall : seconds since 1970, which a token's times are compared with
    """

    def __init__(
        self,
        accepted: Accepted,
        certificates: Certificates,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._accepted = accepted
        self._certificates = certificates
        self._wall = wall
        self._bad = TokenBuckets(BAD_PER_SECOND, BAD_AT_ONCE, clock)
        self._rs256 = RSAAlgorithm(RSAAlgorithm.SHA256)
        self._remembered: OrderedDict[bytes, tuple[str | None, float]] = OrderedDict()

    def start(self) -> None:
        self._certificates.start()

    def close(self) -> None:
        self._certificates.close()

    def caller(self, authorization: bytes) -> str:
        """The account that the header's token names: its verified e-mail address, or else its subject.

        Raises
        ------
        Problem : 401 no valid token, 403 an account that may not call, 429 too many bad ones, 503 no certificates
        """
        if len(authorization) > MAX_TOKEN_BYTES:
            raise unauthorised("what Authorization carries is too long for an ID token", self._accepted.challenge)
        digest = hashlib.sha256(authorization).digest()
        name, expires = self._remembered.get(digest, (None, 0.0))
        if self._wall() >= expires:
            self._remembered.pop(digest, None)
            try:
                name, expires = self._verified(authorization)
            except _Refused as refused:
                raise unauthorised(str(refused), self._accepted.challenge) from None
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.popitem(last=False)
            self._remembered[digest] = name, expires
        else:
            self._remembered.move_to_end(digest)
        if name is None:
            raise Problem(HTTPStatus.FORBIDDEN, "the account of this ID token may not call this service")
        return name

    def _verified(self, authorization: bytes) -> tuple[str | None, float]:
        """Whose the token is (None: somebody's who may not call) and until when it holds, in seconds since 1970."""
        token = _parsed(authorization)
        expires = _check_claims(token.claims, self._accepted.audiences, self._wall())
        key = self._certificates.find(token.key_id)
        if key is None:
            raise _Refused("the ID token is signed with a key that Google does not publish")
        wait = self._bad.wait(_BAD)
        if wait:
            raise too_many("too many ID tokens with a wrong signature arrive, and new ones are not checked", wait)
        if not self._rs256.verify(token.signed, key, token.signature):
            self._bad.take(_BAD)
            raise _Refused("the ID token's signature is wrong")
        name = _account(token.claims, self._accepted.emails)
        if name is None:
            self._bad.take(_BAD)
        return name, expires


def _parsed(authorization: bytes) -> _Token:
    """The token of an Authorization header; only its form has been checked."""
    scheme, _, encoded = authorization.partition(b" ")
    encoded = encoded.strip()
    if scheme.lower() != b"bearer" or not encoded:
        raise _Refused("Authorization must be the word Bearer and a Google ID token")
    parts = encoded.split(b".")
    if len(parts) != 3:
        raise _Refused("what Authorization carries is no ID token: that has three parts, joined by dots")
    if parts[2] == _REMOVED:
        raise _Refused(
            "Cloud Run checked this ID token and removed its signature: send the token for Cloud Run in "
            "X-Serverless-Authorization, and one for this service in Authorization"
        )
    try:
        header, claims = (json.loads(_decoded(part)) for part in parts[:2])
        signature = _decoded(parts[2])
    except (ValueError, RecursionError):
        raise _Refused("the ID token is damaged: its parts must be base64url, the first two of JSON") from None
    if not (isinstance(header, dict) and isinstance(claims, dict)):
        raise _Refused("the ID token is damaged: its first two parts must be JSON objects")
    if header.get("alg") != "RS256" or "crit" in header:
        raise _Refused("the ID token must be signed with RS256, as Google's are")
    if not isinstance(header.get("kid"), str):
        raise _Refused("the ID token does not say with which key it is signed")
    return _Token(b".".join(parts[:2]), signature, header["kid"], claims)


def _check_claims(claims: Mapping[str, Any], audiences: frozenset[str], now: float) -> float:
    """When the token expires, in seconds since 1970; refuses one that is not for us, or not for now."""
    issuer, audience = claims.get("iss"), claims.get("aud")
    if not isinstance(issuer, str) or issuer not in ISSUERS:
        raise _Refused("the ID token was not issued by Google")
    named = audience if isinstance(audience, list) else [audience]
    if not any(isinstance(entry, str) and entry in audiences for entry in named):
        raise _Refused("the ID token is for another audience: ask Google for one with this service's URL as audience")
    expires, issued = _time(claims, "exp"), _time(claims, "iat")
    if expires + LEEWAY_SECONDS <= now:
        raise _Refused("the ID token has expired: ask Google for a new one")
    if max(issued, _time(claims, "nbf") if "nbf" in claims else issued) - LEEWAY_SECONDS > now:
        raise _Refused("the ID token is not valid yet: compare the clocks of the caller and of this service")
    if not isinstance(claims.get("sub"), str) or not claims["sub"]:
        raise _Refused("the ID token names no account")
    return expires + LEEWAY_SECONDS


def _account(claims: Mapping[str, Any], emails: frozenset[str]) -> str | None:
    """Name of a verified token's account, or None where it is not among ``emails``."""
    email = claims.get("email")
    if isinstance(email, str) and email and claims.get("email_verified") is True:
        return email if not emails or email.lower() in emails else None
    return None if emails else str(claims["sub"])


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LAST_TIME < value < _LAST_TIME:
        raise _Refused(f"the ID token's time {name!r} is missing or no number of seconds since 1970")
    return float(value)


def _decoded(part: bytes) -> bytes:
    return base64.b64decode(part + b"=" * (-len(part) % 4), altchars=b"-_", validate=True)
