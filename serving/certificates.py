"""Google's public keys, fetched by a thread and kept: no request ever waits for them, and none causes a call.

They are fetched at the start, again when their ``max-age`` is over, and once more (at most once a minute) when a
token names a key that is not among them, as happens when Google has just begun to use a new one.
"""

from __future__ import annotations

import http.client
import json
import logging
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import IO, Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from serving.refusals import not_yet

__all__ = ["Certificates", "public_keys"]

#: Least seconds between two fetches that unknown keys ask for.
REFETCH_SECONDS: Final = 60.0
#: Bounds of the max-age that is believed, and what holds where none is said, in seconds.
LEAST_AGE: Final = 60.0
MOST_AGE: Final = 86_400.0
USUAL_AGE: Final = 3_600.0
#: Seconds for which keys that cannot be renewed still serve; Google announces a key days before it uses it.
STALE_SECONDS: Final = 86_400.0
#: Seconds before the next attempt after a failed one: doubled each time, up to the second.
FIRST_RETRY: Final = 1.0
LAST_RETRY: Final = 60.0

_TIMEOUT_SECONDS: Final = 10.0
_MAX_BYTES: Final = 1024 * 1024
_LEAST_BITS: Final = 2048
_MAX_AGE: Final = re.compile(r"(?:^|[,\s])max-age=(\d{1,9})(?:$|[,\s])")

logger = logging.getLogger("serving.certificates")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keys come from the address that was set, or not at all."""

    def redirect_request(self, *_: Any) -> None:
        return None


def public_keys(document: bytes) -> dict[str, RSAPublicKey]:
    """RS256 keys by their id from a JWK set; keys of another kind or purpose are left out.

    Raises
    ------
    ValueError : no JWK set, a damaged key, or no key that RS256 can use
    """
    found = json.loads(document)
    entries = found.get("keys") if isinstance(found, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError("the answer is no JSON Web Key set")
    keys: dict[str, RSAPublicKey] = {}
    for entry in entries:
        if not isinstance(entry, Mapping) or entry.get("kty") != "RSA" or not isinstance(entry.get("kid"), str):
            continue
        if entry.get("use", "sig") != "sig" or entry.get("alg", "RS256") != "RS256":
            continue
        try:
            key = jwt.PyJWK(dict(entry), "RS256").key
        except jwt.PyJWTError as error:
            raise ValueError(f"key {entry['kid']!r} is damaged: {error}") from error
        if isinstance(key, RSAPublicKey) and key.key_size >= _LEAST_BITS:
            keys[entry["kid"]] = key
    if not keys:
        raise ValueError("the answer holds no RSA key for RS256")
    return keys


class Certificates:
    """The public keys at ``url``, followed by a thread between :meth:`start` and :meth:`close`."""

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        self._url = url
        self._clock = clock
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._keys: Mapping[str, RSAPublicKey] = {}
        self._usable_until = clock()
        self._refetch_from = clock()
        self._fetching = True
        self._retry = FIRST_RETRY
        self._stopped = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="fetch-certificates", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            # A fetch that hangs ends by its own time-out; the process need not wait for it.
            self._thread.join(timeout=1)

    def find(self, key_id: str) -> RSAPublicKey | None:
        """The key, or None where Google has none of that name.

        Raises
        ------
        Problem : 503 while it cannot be known, because no keys are here or new ones are being fetched
        """
        now = self._clock()
        if now >= self._usable_until:
            raise not_yet("Google's certificates, against which ID tokens are checked, are not here yet", 5)
        key = self._keys.get(key_id)
        if key is None and not self._fetching and now >= self._refetch_from:
            self._refetch_from = now + REFETCH_SECONDS
            self._fetching = True
            self._wake.set()
        if key is None and self._fetching:
            raise not_yet("the ID token is signed with a new key, and Google's certificates are being fetched", 1)
        return key

    def fetch(self) -> float:
        """Fetch the keys now; returns the seconds until they should be fetched again. Never raises."""
        try:
            keys, age = self._answer()
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            wait, self._retry = self._retry, min(LAST_RETRY, 2 * self._retry)
            logger.error(
                "Google's certificates could not be fetched from %s (%s); the next attempt is in %.0f s",
                self._url,
                error,
                wait,
            )
        else:
            wait, self._retry = age, FIRST_RETRY
            self._keys = keys
            self._usable_until = self._clock() + age + STALE_SECONDS
            logger.info("%d certificates of Google, good for %.0f s", len(keys), age)
        self._refetch_from = max(self._refetch_from, self._clock() + REFETCH_SECONDS)
        self._fetching = False
        return wait

    def _answer(self) -> tuple[dict[str, RSAPublicKey], float]:
        with self._opener.open(self._url, timeout=_TIMEOUT_SECONDS) as answer:
            document = _bounded(answer)
            return public_keys(document), _age(answer.headers)

    def _follow(self) -> None:
        while not self._stopped:
            self._wake.wait(self.fetch())
            self._wake.clear()


def _bounded(answer: IO[bytes]) -> bytes:
    document = answer.read(_MAX_BYTES + 1)
    if len(document) > _MAX_BYTES:
        raise ValueError(f"the answer is larger than {_MAX_BYTES} bytes")
    return document


def _age(headers: Mapping[str, str]) -> float:
    """Seconds for which an answer is good: its max-age less the time it spent in caches on its way."""
    most = _MAX_AGE.search(headers.get("Cache-Control", "").lower())
    if most is None:
        return USUAL_AGE
    spent = headers.get("Age", "0")
    return min(MOST_AGE, max(LEAST_AGE, float(most[1]) - (float(spent) if spent.isdecimal() else 0)))
