"""Who may call: settings, the ways to be known together, the rate, and what a refusal says."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from layer3.errors import ConfigurationError
from serving.guard import ANYONE, GOOGLE_CERTS, Guard, GuardSettings, guard_settings
from serving.problems import Problem
from tests.fakes.clock import Clock
from tests.fakes.issuer import AUDIENCE, EMAIL, Issuer, claims, issuer, token
from tests.fakes.servers import wait_for

KEY, SECOND = "key-of-the-desk-0123456789", "key-of-another-0123456789"
NOW = 1_800_000_000.0


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"desk:{KEY}\nother:{SECOND}\n")
    return path


@pytest.fixture(scope="module")
def google() -> Iterator[Issuer]:
    with issuer("first") as google:
        yield google


def made(**environment: str) -> GuardSettings:
    return guard_settings(environment)


def refusal(guard: Guard, api_key: bytes | None = None, authorization: bytes | None = None) -> Problem:
    with pytest.raises(Problem) as caught:
        guard.admit(api_key, authorization)
    return caught.value


def test_without_a_setting_it_does_not_start() -> None:
    for environment in ({}, {"AUTH": ""}, {"API_KEYS_FILE": "", "ID_TOKEN_AUDIENCE": " , "}, {"RATE_LIMIT": "5"}):
        with pytest.raises(ConfigurationError) as caught:
            guard_settings(environment)
        for choice in ("API_KEYS_FILE", "ID_TOKEN_AUDIENCE", "AUTH=off"):
            assert choice in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "keys", "audiences"),
    [
        ({"API_KEYS_FILE": "k"}, True, set()),
        ({"ID_TOKEN_AUDIENCE": "a, b,"}, False, {"a", "b"}),
        ({"API_KEYS_FILE": "k", "ID_TOKEN_AUDIENCE": "a"}, True, {"a"}),
        ({"AUTH": "key", "API_KEYS_FILE": "k", "ID_TOKEN_AUDIENCE": "a"}, True, set()),
        ({"AUTH": "id-token", "API_KEYS_FILE": "k", "ID_TOKEN_AUDIENCE": "a"}, False, {"a"}),
        ({"AUTH": "id-token, key", "API_KEYS_FILE": "k", "ID_TOKEN_AUDIENCE": "a"}, True, {"a"}),
        ({"AUTH": "off", "API_KEYS_FILE": "k", "ID_TOKEN_AUDIENCE": "a"}, False, set()),
        ({"AUTH": "off"}, False, set()),
    ],
)
def test_ways_to_be_known(environment: dict[str, str], keys: bool, audiences: set[str]) -> None:
    found = guard_settings(environment)
    assert (found.keys_file is not None) == keys
    assert found.audiences == audiences
    assert found.certs_url == GOOGLE_CERTS


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"AUTH": "none"}, "AUTH is 'none'"),
        ({"AUTH": "OFF"}, "AUTH is 'OFF'"),
        ({"AUTH": "off,key", "API_KEYS_FILE": "k"}, "AUTH is 'off,key'"),
        ({"AUTH": ","}, "AUTH is ','"),
        ({"AUTH": "key"}, "needs API_KEYS_FILE"),
        ({"AUTH": "id-token"}, "needs ID_TOKEN_AUDIENCE"),
        ({"AUTH": "key,id-token", "API_KEYS_FILE": "k"}, "needs ID_TOKEN_AUDIENCE"),
        ({"AUTH": "off", "RATE_LIMIT": "0"}, "RATE_LIMIT is '0', expected a number from 0.001"),
        ({"AUTH": "off", "RATE_LIMIT": "1e-320"}, "RATE_LIMIT is '1e-320', expected a number from 0.001"),
        ({"AUTH": "off", "RATE_LIMIT": "many"}, "RATE_LIMIT is 'many'"),
        ({"AUTH": "off", "RATE_LIMIT": "nan"}, "RATE_LIMIT is 'nan'"),
        ({"AUTH": "off", "RATE_LIMIT": "inf"}, "RATE_LIMIT is 'inf'"),
        ({"AUTH": "off", "RATE_BURST": "0.5"}, "RATE_BURST is '0.5', expected a number from 1"),
        ({"AUTH": "off", "ID_TOKEN_CERTS_URL": "http://example.com/"}, "expected https://"),
        ({"AUTH": "off", "ID_TOKEN_CERTS_URL": "file:///etc/passwd"}, "ID_TOKEN_CERTS_URL: endpoint 'file:"),
        ({"AUTH": "off", "ID_TOKEN_CERTS_URL": "http://[::1"}, "ID_TOKEN_CERTS_URL: endpoint 'http://[::1' is not"),
        ({"AUTH": "off", "ID_TOKEN_CERTS_URL": "https://"}, "ID_TOKEN_CERTS_URL: endpoint 'https://' must"),
        ({"ID_TOKEN_AUDIENCE": "a", "ID_TOKEN_EMAILS": " , "}, "ID_TOKEN_EMAILS is ' , ', expected e-mail"),
        ({"ID_TOKEN_AUDIENCE": "a", "ID_TOKEN_EMAILS": "a@b.c,desk"}, "expected e-mail addresses"),
    ],
)
def test_a_wrong_setting_is_named(environment: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        guard_settings(environment)
    assert why in str(caught.value)


def test_rates_by_default() -> None:
    assert (made(API_KEYS_FILE="k").rate, made(API_KEYS_FILE="k").burst) == (200.0, 400.0)
    assert made(API_KEYS_FILE="k", RATE_LIMIT="0.1").burst == 1.0
    assert made(API_KEYS_FILE="k", RATE_LIMIT="10", RATE_BURST="3").burst == 3.0
    assert made(AUTH="off").rate is None
    assert made(AUTH="off", RATE_LIMIT="10").rate == 10.0


def test_a_missing_file_of_keys_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        Guard(made(API_KEYS_FILE=str(tmp_path / "absent")))


def test_keys_name_their_callers(keys_file: Path) -> None:
    guard = Guard(made(API_KEYS_FILE=str(keys_file)))
    assert guard.admit(KEY.encode(), None) == "desk"
    assert guard.admit(SECOND.encode(), b"Bearer nonsense") == "other"
    wrong, missing = refusal(guard, b"wrong"), refusal(guard)
    assert (wrong.status, missing.status) == (401, 401)
    assert wrong.headers == missing.headers == {"WWW-Authenticate": 'ApiKey realm="himari"'}
    assert "X-API-Key" in wrong.detail
    assert missing.detail == "this service answers known callers only: send an API key in X-API-Key"
    # What another header carries is no key.
    assert refusal(guard, None, b"Bearer " + KEY.encode()).status == 401


def test_tokens_name_their_callers(google: Issuer) -> None:
    guard = Guard(made(ID_TOKEN_AUDIENCE=AUDIENCE, ID_TOKEN_CERTS_URL=google.url), wall=lambda: NOW)
    early = refusal(guard, None, token(claims(NOW)))
    assert early.status == 503
    assert early.headers is not None
    assert "Retry-After" in early.headers
    guard.start()
    try:
        wait_for(lambda: admitted(guard, token(claims(NOW))))
        assert guard.admit(None, token(claims(NOW))) == EMAIL
        # A key where none are asked for says nothing.
        assert guard.admit(KEY.encode(), token(claims(NOW))) == EMAIL
        missing = refusal(guard, KEY.encode())
        assert missing.status == 401
        assert missing.headers == {"WWW-Authenticate": 'Bearer realm="himari"'}
        assert "ID token in Authorization" in missing.detail
        asked = google.requests
        for number in range(50):
            refusal(guard, None, token(claims(NOW, aud=str(number))))
        assert google.requests == asked
    finally:
        guard.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "fetch-certificates"]


def admitted(guard: Guard, authorization: bytes) -> bool:
    try:
        guard.admit(None, authorization)
    except Problem as problem:
        assert problem.status == 503  # noqa: PT017 - anything else is a failure, not something to wait for
        return False
    return True


def test_either_will_do_and_the_key_decides_where_both_come(keys_file: Path, google: Issuer) -> None:
    settings = made(API_KEYS_FILE=str(keys_file), ID_TOKEN_AUDIENCE=AUDIENCE, ID_TOKEN_CERTS_URL=google.url)
    guard = Guard(settings, wall=lambda: NOW)
    guard.start()
    try:
        wait_for(lambda: admitted(guard, token(claims(NOW))))
        assert guard.admit(None, token(claims(NOW))) == EMAIL
        assert guard.admit(KEY.encode(), None) == "desk"
        assert guard.admit(KEY.encode(), b"Bearer nonsense") == "desk"
        assert refusal(guard, b"wrong", token(claims(NOW))).status == 401
        assert refusal(guard, b"", token(claims(NOW))).status == 401
        missing = refusal(guard)
        assert missing.headers == {"WWW-Authenticate": 'ApiKey realm="himari", Bearer realm="himari"'}
        assert "API key in X-API-Key or a Google ID token" in missing.detail
    finally:
        guard.close()


def test_only_listed_accounts_may_call(google: Issuer) -> None:
    settings = made(
        ID_TOKEN_AUDIENCE=AUDIENCE, ID_TOKEN_CERTS_URL=google.url, ID_TOKEN_EMAILS=f"{EMAIL.upper()}, b@c.d"
    )
    guard = Guard(settings, wall=lambda: NOW)
    guard.start()
    try:
        wait_for(lambda: admitted(guard, token(claims(NOW))))
        assert refusal(guard, None, token(claims(NOW, email="x@y.z"))).status == 403
        assert refusal(guard, None, token(claims(NOW, email_verified=False))).status == 403
    finally:
        guard.close()


def test_each_caller_has_a_rate_of_its_own(keys_file: Path) -> None:
    clock = Clock(7.0)
    guard = Guard(made(API_KEYS_FILE=str(keys_file), RATE_LIMIT="0.5", RATE_BURST="3"), clock=clock)
    assert [guard.admit(KEY.encode(), None) for _ in range(3)] == ["desk"] * 3
    limited = refusal(guard, KEY.encode())
    assert limited.status == 429
    assert limited.headers == {"Retry-After": "2"}
    assert "try again in 2 s" in limited.detail
    assert guard.admit(SECOND.encode(), None) == "other"
    clock.now += 1.5
    assert refusal(guard, KEY.encode()).headers == {"Retry-After": "1"}
    clock.now += 0.5
    assert guard.admit(KEY.encode(), None) == "desk"
    # A wrong key is told so whatever the rate, and takes nobody's share.
    assert [refusal(guard, b"wrong").status.value for _ in range(20)] == [401] * 20
    assert guard.admit(SECOND.encode(), None) == "other"


def test_off_asks_nobody_warns_and_limits_only_where_a_limit_is_set(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(made(AUTH="off"))
    guard.start()
    guard.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "AUTH=off" in caplog.text
    assert {guard.admit(None, None) for _ in range(1000)} == {ANYONE}
    assert guard.admit(b"anything", b"at all") == ANYONE
    limited = Guard(made(AUTH="off", RATE_LIMIT="1"), clock=Clock(7.0))
    assert [limited.admit(None, None) for _ in range(2)] == [ANYONE] * 2
    assert refusal(limited).status == 429


def test_tokens_of_any_account_are_a_warning_keys_and_listed_accounts_are_none(
    keys_file: Path, google: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = {"ID_TOKEN_AUDIENCE": AUDIENCE, "ID_TOKEN_CERTS_URL": google.url}
    for environment, warned in (
        (tokens, True),
        (tokens | {"ID_TOKEN_EMAILS": EMAIL}, False),
        ({"API_KEYS_FILE": str(keys_file)}, False),
    ):
        caplog.clear()
        guard = Guard(guard_settings(environment))
        guard.start()
        guard.close()
        assert ("every Google account may call" in caplog.text) == warned


def test_nothing_secret_is_in_any_log_or_answer(
    keys_file: Path, google: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = made(
        API_KEYS_FILE=str(keys_file),
        ID_TOKEN_AUDIENCE=AUDIENCE,
        ID_TOKEN_CERTS_URL=google.url,
        ID_TOKEN_EMAILS=EMAIL,
        RATE_LIMIT="1",
        RATE_BURST="1",
    )
    guard = Guard(settings, clock=Clock(7.0), wall=lambda: NOW)
    guard.start()
    try:
        wait_for(lambda: refusal(guard, None, token(claims(NOW, email="x@y.z"))).status == 403)
        assert guard._keys is not None
        keys_file.write_text(f"desk {KEY}")
        guard._keys.refresh()
        keys_file.write_text(f"desk:{KEY}\ndesk:a-third-key-0123456789")
        guard._keys.refresh()
        stranger = token(claims(NOW), key="stranger", kid="first")
        guard.admit(KEY.encode(), None)
        answers = [
            refusal(guard, KEY.encode()),
            refusal(guard, KEY[:-1].encode()),
            refusal(guard, None, stranger),
            refusal(guard, None, token(claims(NOW, email="x@y.z"))),
            refusal(guard),
        ]
    finally:
        guard.close()
    assert [answer.status.value for answer in answers] == [429, 401, 401, 403, 401]
    said = caplog.text + repr([(answer.detail, answer.headers, answer.errors) for answer in answers])
    pieces = [piece.decode() for piece in stranger.removeprefix(b"Bearer ").split(b".")]
    for secret in (KEY[:-1], "a-third-key", "x@y.z", EMAIL, *pieces):
        assert secret not in said


def test_a_server_that_takes_keys_only_imports_no_cryptography(keys_file: Path) -> None:
    program = (
        "import sys; from serving.guard import Guard, guard_settings; "
        f"Guard(guard_settings({{'API_KEYS_FILE': {str(keys_file)!r}}})); "
        "print([name for name in ('jwt', 'cryptography', 'urllib.request', 'fastapi') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
