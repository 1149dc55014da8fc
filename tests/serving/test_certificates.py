"""Certificates over a real HTTP server: fetched ahead, kept, renewed, and never waited for."""

from __future__ import annotations

import json
import logging

import pytest

from serving import certificates
from serving.certificates import Certificates
from serving.problems import Problem
from tests.fakes.clock import Clock
from tests.fakes.issuer import Issuer, issuer, jwk
from tests.fakes.servers import free_port, wait_for


@pytest.fixture
def clock() -> Clock:
    return Clock()


def unavailable(found: Certificates, key: str) -> Problem:
    with pytest.raises(Problem) as caught:
        found.find(key)
    assert caught.value.status == 503
    assert caught.value.headers is not None
    assert int(caught.value.headers["Retry-After"]) >= 1
    return caught.value


def test_until_they_are_here_it_says_so(clock: Clock) -> None:
    with issuer("first") as google:
        found = Certificates(google.url, clock)
        assert "not here yet" in unavailable(found, "first").detail
        assert found.fetch() == 3600
        assert found.find("first") is not None
        assert found.find("second") is None


@pytest.mark.parametrize(
    ("cache_control", "age", "expected"),
    [
        ("public, max-age=20470, must-revalidate", None, 20470),
        ("Max-Age=100", None, 100),
        ("max-age=300", "200", 100),
        ("max-age=300", "299", certificates.LEAST_AGE),
        ("max-age=300", "nonsense", 300),
        ("max-age=0", None, certificates.LEAST_AGE),
        ("max-age=999999999", None, certificates.MOST_AGE),
        ("no-store", None, certificates.USUAL_AGE),
        ("s-maxage=70", None, certificates.USUAL_AGE),
        ("max-age=-5", None, certificates.USUAL_AGE),
    ],
)
def test_they_are_kept_as_long_as_google_says(
    clock: Clock, cache_control: str, age: str | None, expected: float
) -> None:
    with issuer("first") as google:
        google.max_age = None
        google.headers = {"Cache-Control": cache_control, **({"Age": age} if age else {})}
        assert Certificates(google.url, clock).fetch() == expected


def break_it(google: Issuer, how: str) -> None:
    if how == "status":
        google.status = 500
    elif how == "redirect":
        google.status, google.headers = 302, {"Location": google.url + "/elsewhere"}
    elif how == "garbage":
        google.body = b"<html>"
    elif how == "deep":
        google.body = b"[" * 100_000
    elif how == "no key":
        google.body = b'{"keys": []}'
    elif how == "large":
        google.body = b" " * (1024 * 1024 + 1)


@pytest.mark.parametrize("how", ["status", "redirect", "garbage", "deep", "no key", "large"])
def test_what_cannot_be_renewed_stays_a_day_and_not_for_ever(
    clock: Clock, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with issuer("first") as google:
        found = Certificates(google.url, clock)
        found.fetch()
        break_it(google, how)
        clock.now += 3600
        assert [found.fetch() for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
        assert "could not be fetched" in caplog.text
        clock.now += certificates.STALE_SECONDS - 1
        assert found.find("first") is not None
        clock.now += 1
        unavailable(found, "first")
        google.status, google.body, google.headers = 200, None, {}
        assert found.fetch() == 3600
        assert found.find("first") is not None
        google.body = b""
        assert found.fetch() == certificates.FIRST_RETRY


def test_nobody_listening_is_an_error_in_the_log_and_nothing_more(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    found = Certificates(f"http://127.0.0.1:{free_port()}/", clock)
    assert found.fetch() == certificates.FIRST_RETRY
    assert "the next attempt is in 1 s" in caplog.text
    unavailable(found, "first")


def test_a_key_that_google_took_back_is_gone(clock: Clock) -> None:
    with issuer("first", "second") as google:
        found = Certificates(google.url, clock)
        found.fetch()
        google.keys = [jwk("second")]
        found.fetch()
        assert found.find("first") is None
        assert found.find("second") is not None


def test_an_unknown_key_has_them_fetched_once_a_minute(clock: Clock) -> None:
    with issuer("first") as google:
        found = Certificates(google.url, clock)
        found.start()
        try:
            wait_for(lambda: google.requests == 1 and not found._fetching)
            clock.now += 1
            for _ in range(100):
                assert found.find("new") is None
            assert google.requests == 1
            clock.now += certificates.REFETCH_SECONDS
            google.keys.append(jwk("new"))
            google.answers.clear()
            for _ in range(100):
                assert "being fetched" in unavailable(found, "new").detail
            assert found.find("first") is not None
            wait_for(lambda: google.requests == 2)
            google.answers.set()
            wait_for(lambda: not found._fetching)
            assert found.find("new") is not None
            for _ in range(100):
                assert found.find("newer") is None
            assert google.requests == 2
        finally:
            found.close()


def test_the_thread_fetches_again_when_the_keys_have_aged(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "LEAST_AGE", 0.02)
    with issuer("first") as google:
        google.max_age = 0
        found = Certificates(google.url, clock)
        found.start()
        try:
            wait_for(lambda: google.requests >= 3)
        finally:
            found.close()
        assert not found._thread.is_alive()


def test_close_ends_a_thread_that_sleeps_and_does_not_wait_for_a_fetch_that_hangs(clock: Clock) -> None:
    with issuer("first") as google:
        sleeping = Certificates(google.url, clock)
        sleeping.start()
        wait_for(lambda: not sleeping._fetching)
        sleeping.close()
        assert not sleeping._thread.is_alive()
        google.answers.clear()
        hanging = Certificates(google.url, clock)
        hanging.start()
        wait_for(lambda: google.requests == 2)
        hanging.close()
        google.answers.set()
        hanging._thread.join(30)
        assert not hanging._thread.is_alive()
    Certificates("http://127.0.0.1:9/", clock).close()


def test_nothing_of_an_answer_is_logged_but_its_fault(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with issuer("first") as google:
        google.body = json.dumps({"keys": [jwk("first", n="bm90IGEga2V5IGF0IGFsbA", e=None)]}).encode()
        Certificates(google.url, clock).fetch()
    assert "damaged" in caplog.text
    assert "bm90IGEga2V5" not in caplog.text
