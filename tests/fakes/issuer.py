"""A Google of this machine: signs ID tokens, and publishes its public keys on loopback."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.fakes.web import Handler, answering

AUDIENCE = "https://himari.example"
EMAIL = "trader@project.iam.gserviceaccount.com"


@cache
def private_key(name: str) -> rsa.RSAPrivateKey:
    """The issuer's key of that name; made once for all tests, because it takes a tenth of a second."""
    return rsa.generate_private_key(public_exponent=65537, key_size=1024 if name == "short" else 2048)


def jwk(name: str, **changes: Any) -> dict[str, Any]:
    """The public half of a key as a JSON Web Key; a change to None leaves the member out."""
    numbers = private_key(name).public_key().public_numbers()
    key = {"kty": "RSA", "kid": name, "use": "sig", "alg": "RS256", "n": _base64(numbers.n), "e": _base64(numbers.e)}
    return {member: value for member, value in (key | changes).items() if value is not None}


def claims(now: float, **changes: Any) -> dict[str, Any]:
    """What Google says of a service account; a change to None leaves the claim out."""
    said = {
        "iss": "https://accounts.google.com",
        "aud": AUDIENCE,
        "sub": "1234567890",
        "email": EMAIL,
        "email_verified": True,
        "iat": int(now),
        "exp": int(now) + 3600,
    }
    return {claim: value for claim, value in (said | changes).items() if value is not None}


def token(said: Mapping[str, Any], key: str = "first", **header: Any) -> bytes:
    """An Authorization header with an ID token that ``key`` signed."""
    return b"Bearer " + jwt.encode(dict(said), private_key(key), "RS256", {"kid": key, **header}).encode("ascii")


@dataclass
class Issuer:
    """What the next request for the keys gets, and how many came."""

    keys: list[dict[str, Any]]
    max_age: int | None = 3600
    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    requests: int = 0
    url: str = ""
    #: Cleared, it holds every answer back.
    answers: threading.Event = field(default_factory=threading.Event)


@contextmanager
def issuer(*names: str) -> Iterator[Issuer]:
    """An issuer that publishes the keys ``names`` while the block runs."""
    state = Issuer([jwk(name) for name in names])
    state.answers.set()

    class Keys(Handler):
        def do_GET(self) -> None:
            state.requests += 1
            state.answers.wait(30)
            body = state.body if state.body is not None else json.dumps({"keys": state.keys}).encode()
            headers = dict(state.headers)
            if state.max_age is not None:
                headers["Cache-Control"] = f"public, max-age={state.max_age}, must-revalidate, no-transform"
            self.reply(state.status, body, headers)

    with answering(Keys) as url:
        state.url = f"{url}/certs"
        try:
            yield state
        finally:
            state.answers.set()


def _base64(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()
