"""Google ID tokens with real RSA keys: who is let in, who is not and why, and what a flood costs."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import identity
from serving.certificates import Certificates, public_keys
from serving.identity import Accepted, IdentityTokens
from serving.problems import Problem
from tests.fakes.clock import Clock
from tests.fakes.issuer import AUDIENCE, EMAIL, Issuer, claims, issuer, jwk, private_key, token

CHALLENGE = 'Bearer realm="himari"'
NOW = 1_800_000_000.0


class Desk:
    """Tokens checked against the keys of an issuer that was asked once, at a time that the test sets."""

    def __init__(self, keys: Issuer, *emails: str) -> None:
        self.clock, self.wall, self.signatures = Clock(50.0), Clock(NOW), 0
        self.certificates = Certificates(keys.url, self.clock)
        self.certificates.fetch()
        accepted = Accepted(frozenset({AUDIENCE, "second"}), frozenset(emails), CHALLENGE)
        self.tokens = IdentityTokens(accepted, self.certificates, self.clock, self.wall)
        verify = self.tokens._rs256.verify

        def counted(signed: bytes, key: Any, signature: bytes) -> bool:
            self.signatures += 1
            return bool(verify(signed, key, signature))

        self.tokens._rs256.verify = counted  # type: ignore[method-assign]

    def caller(self, authorization: bytes) -> str:
        return self.tokens.caller(authorization)

    def refusal(self, authorization: bytes) -> Problem:
        with pytest.raises(Problem) as caught:
            self.tokens.caller(authorization)
        return caught.value


@pytest.fixture(scope="module")
def keys() -> Iterator[Issuer]:
    with issuer("first", "second") as keys:
        yield keys


@pytest.fixture
def desk(keys: Issuer) -> Desk:
    return Desk(keys)


def part(value: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


def test_a_valid_token_names_its_account(desk: Desk) -> None:
    assert desk.caller(token(claims(NOW))) == EMAIL
    assert desk.caller(token(claims(NOW), key="second")) == EMAIL
    assert desk.caller(token(claims(NOW, iss="accounts.google.com", aud=["other", "second"]))) == EMAIL
    assert desk.caller(token(claims(NOW)).replace(b"Bearer", b"bearer")) == EMAIL


def test_an_account_without_a_verified_address_is_named_by_its_subject(desk: Desk) -> None:
    assert desk.caller(token(claims(NOW, email_verified=False))) == "1234567890"
    assert desk.caller(token(claims(NOW, email=None, email_verified=None))) == "1234567890"
    assert desk.caller(token(claims(NOW, email_verified="true"))) == "1234567890"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"iss": "https://accounts.google.com.evil.example"}, "not issued by Google"),
        ({"iss": None}, "not issued by Google"),
        ({"aud": "https://other.example"}, "another audience"),
        ({"aud": None}, "another audience"),
        ({"aud": [["second"], 5]}, "another audience"),
        ({"aud": AUDIENCE + "/"}, "another audience"),
        ({"exp": NOW - 10}, "has expired"),
        ({"exp": None}, "'exp' is missing"),
        ({"exp": "tomorrow"}, "'exp' is missing or no number"),
        ({"exp": True}, "'exp' is missing or no number"),
        ({"exp": 10**400}, "'exp' is missing or no number"),
        ({"exp": float("inf")}, "'exp' is missing or no number"),
        ({"exp": float("nan")}, "'exp' is missing or no number"),
        ({"iat": NOW + 11}, "not valid yet"),
        ({"nbf": NOW + 11}, "not valid yet"),
        ({"sub": None}, "names no account"),
        ({"sub": 5}, "names no account"),
    ],
)
def test_what_a_token_claims_is_checked_before_its_signature(desk: Desk, changes: dict[str, Any], why: str) -> None:
    said = claims(NOW, **changes)
    unsigned = b"Bearer " + b".".join([part({"alg": "RS256", "kid": "first"}), part(said), b"c2ln"])
    refusal = desk.refusal(unsigned)
    assert refusal.status == 401
    assert why in refusal.detail
    assert refusal.headers == {"WWW-Authenticate": CHALLENGE}
    assert desk.signatures == 0


@pytest.mark.parametrize("changes", [{"exp": NOW - 9}, {"iat": NOW + 10}, {"nbf": NOW + 10}, {"iat": 0, "exp": 1e10}])
def test_clocks_may_differ_by_ten_seconds(desk: Desk, changes: dict[str, Any]) -> None:
    assert desk.caller(token(claims(NOW, **changes))) == EMAIL


def signed_otherwise() -> dict[str, bytes]:
    """Tokens that claim what is right, and are not signed by Google."""
    good, said = token(claims(NOW)).removeprefix(b"Bearer "), part(claims(NOW))
    head, body, signature = good.split(b".")
    public = private_key("first").public_key()
    pem = public.public_numbers().n.to_bytes(256, "big")
    hs256 = part({"alg": "HS256", "kid": "first"}) + b"." + said
    mac = base64.urlsafe_b64encode(hmac.digest(pem, hs256, hashlib.sha256)).rstrip(b"=")
    changed = part(claims(NOW, sub="somebody else"))
    return {
        "another key under a known name": token(claims(NOW), key="stranger", kid="first"),
        "the other known key": token(claims(NOW), key="second", kid="first"),
        "a changed claim": b"Bearer " + b".".join([head, changed, signature]),
        "no signature": b"Bearer " + b".".join([head, body, b""]),
        "half a signature": b"Bearer " + good[:-100],
        "the public key as a secret": b"Bearer " + hs256 + b"." + mac,
        "no algorithm": b"Bearer " + part({"alg": "none", "kid": "first"}) + b"." + said + b".",
        "another hash": b"Bearer " + part({"alg": "RS512", "kid": "first"}) + b"." + said + b"." + signature,
        "an extension that must be understood": token(claims(NOW), crit=["x"], x=1),
    }


@pytest.mark.parametrize("case", signed_otherwise())
def test_what_google_did_not_sign_is_refused(desk: Desk, case: str) -> None:
    assert desk.refusal(signed_otherwise()[case]).status == 401


@pytest.mark.parametrize(
    ("authorization", "why"),
    [
        (b"", "the word Bearer"),
        (b"Bearer", "the word Bearer"),
        (b"Bearer  ", "the word Bearer"),
        (b"Basic dXNlcjpwYXNz", "the word Bearer"),
        (b"Bearer abc", "three parts"),
        (b"Bearer a.b.c.d", "three parts"),
        (b"Bearer ..", "is damaged"),
        (b"Bearer a.b.c", "is damaged"),
        (b"Bearer \xff.\xfe.\xfd", "is damaged"),
        (b"Bearer " + part([]) + b"." + part({}) + b".", "JSON objects"),
        (b"Bearer " + base64.urlsafe_b64encode(b"[" * 3000) + b".e30.", "is damaged"),
        (b"Bearer " + part({"alg": "RS256"}) + b"." + part({}) + b".", "with which key"),
        (b"Bearer " + part({"alg": "RS256", "kid": ["first"]}) + b"." + part({}) + b".", "with which key"),
        (b"Bearer " + b"x" * 9000, "too long"),
        (b"Bearer a.b.SIGNATURE_REMOVED_BY_GOOGLE", "X-Serverless-Authorization"),
    ],
)
def test_what_is_no_token_is_refused_with_a_sentence(desk: Desk, authorization: bytes, why: str) -> None:
    refusal = desk.refusal(authorization)
    assert refusal.status == 401
    assert why in refusal.detail


def without_certificates() -> IdentityTokens:
    clock = Clock(NOW)
    accepted = Accepted(frozenset({AUDIENCE}), frozenset(), CHALLENGE)
    return IdentityTokens(accepted, Certificates("http://127.0.0.1:9/", clock), clock, clock)


@given(st.binary(max_size=300), st.sampled_from([b"Bearer ", b"", b"Bearer e30."]))
def test_no_bytes_break_it(start: bytes, prefix: bytes) -> None:
    tokens = without_certificates()
    with pytest.raises(Problem) as caught:
        tokens.caller(prefix + start)
    assert caught.value.status == 401


@given(
    header=st.dictionaries(
        st.sampled_from(["alg", "kid", "crit", "typ"]), st.sampled_from(["RS256", "first", 1, None])
    ),
    body=st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner)),
    claim=st.sampled_from(["iss", "aud", "exp", "iat", "nbf", "sub"]),
)
def test_no_claim_of_any_kind_breaks_it(header: dict[str, Any], body: Any, claim: str) -> None:
    tokens = without_certificates()
    said = claims(NOW) | {claim: body}
    with pytest.raises(Problem) as caught:
        tokens.caller(b"Bearer " + part({"alg": "RS256", "kid": "first"} | header) + b"." + part(said) + b".c2ln")
    assert caught.value.status in (401, 503)


def test_accounts_that_are_not_listed_are_forbidden_and_checked_once(keys: Issuer) -> None:
    desk = Desk(keys, EMAIL)
    assert desk.caller(token(claims(NOW, email=EMAIL.upper()))) == EMAIL.upper()
    desk.signatures = 0
    for said in (claims(NOW, email="other@example.com"), claims(NOW, email_verified=False), claims(NOW, email=None)):
        other = token(said)
        for _ in range(3):
            refusal = desk.refusal(other)
            assert refusal.status == 403
            assert "may not call" in refusal.detail
    assert desk.signatures == 3


def test_an_account_that_is_not_listed_learns_nothing_without_googles_signature(keys: Issuer) -> None:
    forged = token(claims(NOW, email="other@example.com"), key="stranger", kid="first")
    assert Desk(keys, EMAIL).refusal(forged).status == 401


def test_a_verified_token_is_known_again_until_it_expires(desk: Desk) -> None:
    bearer = token(claims(NOW))
    for _ in range(5):
        assert desk.caller(bearer) == EMAIL
    assert desk.signatures == 1
    desk.wall.now = NOW + 3600 + 9
    assert desk.caller(bearer) == EMAIL
    desk.wall.now = NOW + 3600 + 10
    assert "has expired" in desk.refusal(bearer).detail
    assert not desk.tokens._remembered


def test_what_is_remembered_is_bounded_and_holds_no_token(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MAX_REMEMBERED", 3)
    bearers = [token(claims(NOW, sub=str(number))) for number in range(5)]
    for bearer in bearers:
        desk.caller(bearer)
        desk.caller(bearers[0])
    assert len(desk.tokens._remembered) == 3
    desk.signatures = 0
    desk.caller(bearers[0])
    desk.caller(bearers[4])
    assert desk.signatures == 0
    assert all(len(known) == 32 for known in desk.tokens._remembered)


def test_a_flood_of_bad_signatures_is_cut_off_and_known_callers_do_not_notice(desk: Desk) -> None:
    known, new = token(claims(NOW)), token(claims(NOW, sub="new"))
    assert desk.caller(known) == EMAIL
    bad = new[:-8] + b"AAAAAAAA"
    desk.signatures = 0
    statuses = [desk.refusal(bad).status.value for _ in range(1000)]
    assert statuses == [401] * 400 + [429] * 600
    assert desk.signatures == 400
    assert desk.caller(known) == EMAIL
    refusal = desk.refusal(new)
    assert refusal.status == 429
    assert refusal.headers == {"Retry-After": "1"}
    desk.clock.now += 1
    assert desk.caller(new) == EMAIL


def test_good_tokens_are_never_cut_off(desk: Desk) -> None:
    for number in range(500):
        said = part(claims(NOW, sub=str(number)))
        signed = part({"alg": "RS256", "kid": "first"}) + b"." + said
        signature = desk.tokens._rs256.sign(signed, private_key("first"))
        assert desk.caller(b"Bearer " + signed + b"." + base64.urlsafe_b64encode(signature)) == EMAIL


def test_refusals_hold_nothing_of_the_token(keys: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret, desk = "s3cr3t-subject", Desk(keys, EMAIL)
    said = claims(NOW, sub=secret, email=f"{secret}@example.com")
    for bearer in (token(said), token(said, key="stranger", kid="first"), token(said, key="stranger", kid=secret)):
        problem = desk.refusal(bearer)
        assert secret not in f"{problem.detail} {problem.headers} {problem.errors}"
        assert problem.__cause__ is None
        for piece in bearer.removeprefix(b"Bearer ").split(b"."):
            assert piece.decode() not in problem.detail
    assert secret not in caplog.text


def of(**changes: Any) -> bytes:
    """A set of one key."""
    return json.dumps({"keys": [jwk("first", **changes)]}).encode()


def test_only_rs256_keys_for_signatures_are_taken() -> None:
    def kept(*entries: object) -> set[str]:
        return set(public_keys(json.dumps({"keys": entries}).encode()))

    good = jwk("first")
    assert kept(good, jwk("second", kid="b", use="enc"), jwk("second", kid="c", alg="RS512")) == {"first"}
    assert kept(good, jwk("second", kid=None), jwk("second", kty="EC"), "x", 5) == {"first"}
    assert kept(good, jwk("short")) == {"first"}
    assert kept(jwk("first", use=None, alg=None), jwk("second")) == {"first", "second"}


@pytest.mark.parametrize(
    "document",
    [b"", b"{}", b"[]", b'{"keys": {}}', b'{"keys": []}', b"\xff", b"[" * 100_000, of(n="!!"), of(n=None)],
)
def test_what_is_no_set_of_keys_is_a_value_error(document: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        public_keys(document)


def test_a_token_of_pyjwt_and_ours_agree(desk: Desk) -> None:
    bearer = token(claims(NOW))
    key = private_key("first").public_key()
    options = {"verify_exp": False, "verify_iat": False}
    decoded = jwt.decode(bearer[7:], key, ["RS256"], audience=AUDIENCE, options=options)
    assert decoded["email"] == desk.caller(bearer)
