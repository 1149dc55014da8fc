"""What the server reads: files of this machine, or a few small objects of a bucket over a connection that is kept.

Google's own client reads buckets too (:mod:`layer3.storage`, which also writes them), and costs a server half of its
memory and most of its start. On Google Cloud, and against an emulator, it is not imported here.

https://cloud.google.com/storage/docs/json_api/v1/objects/get
"""

from __future__ import annotations

import json
import logging
import os
import random
import ssl
import time
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import quote

from layer3 import storage
from layer3.errors import RefusedError, SourceError
from layer3.net.address import Place, lookup
from layer3.net.tokens import TokenSource, access_tokens, checked_token
from layer3.net.transport import Budget, Pool, run
from layer3.net.wire import Answer, request_bytes

__all__ = ["Bucket", "Source"]

_GOOGLE: Final = "https://storage.googleapis.com"
#: Largest object that is read, in bytes: a policy of a hundred networks has half of it.
_MAX_OBJECT: Final = 16 * 2**20
#: Seconds for one answer as a whole, and between the attempts where it fails or says that it may pass. After so long
#: no other one begins: a startup probe gives a server a minute, and the log must have said by then what hangs.
_SECONDS: Final = 20.0
_PAUSES: Final = (0.25, 0.5, 1.0)
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
#: Seconds before its expiry at which a token is replaced; the metadata server has a new one 300 s before.
_AHEAD: Final = 225.0
_LONGEST_REASON: Final = 400
_ELSEWHERE: Final = (
    "outside Google Cloud say `gcloud auth application-default login`, or copy the folder to this machine and name the "
    "copy in MODEL_URI"
)
logger = logging.getLogger("serving")


class Source:
    """Reads files, and the objects of buckets; for one thread.

    ``STORAGE_EMULATOR_HOST`` names an emulator, which gets no credentials. Whoever has credentials of their own on this
    machine, where Google's libraries look for them, reads through Google's client. All others are on Google Cloud, and
    read as the account of the machine.
    """

    def __init__(self) -> None:
        self._bucket: Bucket | None = None
        self._googles_client = False
        self._followed: tuple[str, str, bytes] | None = None

    def read(self, uri: str) -> bytes:
        """The whole content of one file or object.

        Raises
        ------
        FileNotFoundError : there is none
        SourceError : the bucket does not answer, or refuses
        ConfigurationError : ``uri`` or a setting cannot be used
        OSError : this machine's disk
        """
        if not self._over_http(uri):
            return storage.read_bytes(uri)
        content, _ = self._opened().read(uri)
        return content

    def follow(self, uri: str) -> bytes:
        """:meth:`read` for who asks again and again: an object that is still the same is not sent again."""
        if not self._over_http(uri):
            return storage.read_bytes(uri)
        known = self._followed if self._followed is not None and self._followed[0] == uri else None
        content, generation = self._opened().read(uri, known[1:] if known else None)
        self._followed = (uri, generation, content)
        return content

    def close(self) -> None:
        """Close the connection that is kept; the next read opens another one."""
        if self._bucket is not None:
            self._bucket.close()
            self._bucket = None

    def _over_http(self, uri: str) -> bool:
        if not storage.is_remote(uri) or self._googles_client:
            return False
        if self._bucket is None and not os.environ.get("STORAGE_EMULATOR_HOST") and (own := _own_credentials()):
            logger.info("%s is read with Google's client and the credentials of %s", uri, own)
            self._googles_client = True
        return not self._googles_client

    def _opened(self) -> Bucket:
        if self._bucket is None:
            emulator = os.environ.get("STORAGE_EMULATOR_HOST")
            if emulator:
                self._bucket = Bucket(emulator if "://" in emulator else f"http://{emulator}", None)
            else:
                self._bucket = Bucket(_GOOGLE, access_tokens())
        return self._bucket


class Bucket:
    """Reads objects by the JSON API at ``endpoint``, with the access tokens of ``tokens``; for one thread."""

    def __init__(self, endpoint: str, tokens: TokenSource | None) -> None:
        place = Place.parse(endpoint)
        self._place = place
        self._tokens = tokens
        self._token = ("", 0.0)
        tls = ssl.create_default_context() if place.scheme == "https" else None
        self._pool = Pool(lambda: lookup(place), place.host, tls, _MAX_OBJECT)

    def read(self, uri: str, known: tuple[str, bytes] | None = None) -> tuple[bytes, str]:
        """Content and generation of the object at ``uri``; ``known`` are those that the caller has already.

        The generation is empty where the server names none. Raises as :meth:`Source.read`.
        """
        bucket, name = storage.object_of(uri)
        target = f"{self._place.path}/storage/v1/b/{quote(bucket, safe='')}/o/{quote(name, safe='')}?alt=media"
        if known is not None and known[0]:
            target += f"&ifGenerationNotMatch={known[0]}"
        try:
            answer = self._get(target)
        except SourceError as error:
            raise SourceError(f"cannot read {uri}: {error}") from error
        if answer.status == HTTPStatus.OK:
            generation = answer.headers.get("x-goog-generation", "")
            return answer.body, generation if generation.isascii() and generation.isdecimal() else ""
        if answer.status == HTTPStatus.NOT_MODIFIED and known is not None:
            return known[1], known[0]
        if answer.status == HTTPStatus.NOT_FOUND:
            raise storage.missing(uri)
        raise RefusedError(f"cannot read {uri}: {_said(answer)}: {_remedy(answer.status, bucket)}")

    def close(self) -> None:
        """Close the connection that is kept."""
        self._pool.close()

    def _get(self, target: str) -> Answer:
        """An answer that asking again would not change; a SourceError after the last attempt without one."""
        end = time.monotonic() + _SECONDS
        for pause in (*_PAUSES, None):
            try:
                answer = self._authorized(target)
                if answer.status not in _PASSING:
                    return answer
                failure = SourceError(f"{self._place.url} answered {_said(answer)}")
            except SourceError as error:
                failure = error
            if pause is None or time.monotonic() >= end:
                break
            # Servers that started together need not ask together.
            time.sleep(pause * random.uniform(0.5, 1.5))
        raise failure

    def _authorized(self, target: str) -> Answer:
        answer = self._ask(target)
        if answer.status == HTTPStatus.UNAUTHORIZED and self._tokens is not None:
            self._token = ("", 0.0)
            answer = self._ask(target)
        return answer

    def _ask(self, target: str) -> Answer:
        headers = {"Host": self._place.authority}
        if self._tokens is not None:
            headers["Authorization"] = f"Bearer {self._held(self._tokens)}"
        return run(self._pool.exchange(request_bytes("GET", target, headers), Budget.start(self._place.url, _SECONDS)))

    def _held(self, tokens: TokenSource) -> str:
        if not time.time() < self._token[1] - _AHEAD:
            try:
                self._token = checked_token(tokens)
            except SourceError as error:
                raise SourceError(f"{error}: {_ELSEWHERE}") from error
        return self._token[0]


def _own_credentials() -> str:
    """Where credentials of one's own are on this machine, or nothing; in the order of Google's libraries.

    https://cloud.google.com/docs/authentication/application-default-credentials
    """
    if said := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return said
    folder = os.environ.get("CLOUDSDK_CONFIG") or f"{os.environ.get('HOME', '')}/.config/gcloud"
    file = Path(folder, "application_default_credentials.json")
    # Path.is_file raises where this account may not look, as in another one's HOME.
    return str(file) if os.path.isfile(file) else ""  # noqa: PTH113


def _said(answer: Answer) -> str:
    """Status of an answer that is none, and what it says: JSON or plain text."""
    try:
        said = json.loads(answer.body)["error"]["message"]
    except (KeyError, TypeError, ValueError, RecursionError):
        said = answer.body[:_LONGEST_REASON].decode(errors="replace")
    known = {status.value: status.phrase for status in HTTPStatus}
    status = f"HTTP {answer.status} {known.get(answer.status, '')}".rstrip()
    reason = " ".join(str(said).split())[:_LONGEST_REASON]
    return f"{status}: {reason}" if reason else status


def _remedy(status: int, bucket: str) -> str:
    if status == HTTPStatus.UNAUTHORIZED:
        return "the token of this machine's account is refused: is the account disabled, or this machine's clock wrong?"
    if status == HTTPStatus.FORBIDDEN:
        # Whoever may not list a bucket is told "forbidden" of what is not there, too.
        return (
            f"release a model first, and give the account of this machine roles/storage.objectViewer on gs://{bucket}"
        )
    return "is the address right?"
