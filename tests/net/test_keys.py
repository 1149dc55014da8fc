"""API keys of a client: what their file may hold, how they are sent and followed, and that nobody sees them."""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3 import remote
from layer3.breaker import BreakerConfig, CircuitBreaker
from layer3.errors import ConfigurationError, HimariError, RefusedError, SourceError, UnauthorisedError
from layer3.net import keys, refreshed
from layer3.remote import PolicyClient
from serving.keys import parse_keys
from tests.fakes.servers import wait_for
from tests.fakes.strict import ANSWER, Strict, strict_server

STATE = np.zeros(16)
OLD, NEW = "old-key-0123456789", "new:key;0123'456\"89"


def file_of(folder: Path, content: bytes | str) -> Path:
    path = folder / "key"
    spare = folder / "key.new"
    spare.write_bytes(content if isinstance(content, bytes) else content.encode())
    spare.replace(path)
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_KEY_PERIOD", 0.02)
    monkeypatch.setattr(refreshed, "_RETRY", (0.01, 0.02))


@pytest.fixture
def server() -> Iterator[Strict]:
    with strict_server() as server:
        yield server


@contextmanager
def following(server: Strict, path: Path, **more: object) -> Iterator[PolicyClient]:
    with PolicyClient(server.url, timeout_s=10, api_key_file=path, **more) as client:  # type: ignore[arg-type]
        yield client


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_key_stands_alone_in_its_file(tmp_path: Path, end: str) -> None:
    for key in (OLD, NEW, "x" * 16, "x" * 256):
        assert keys.read_key(file_of(tmp_path, key + end)) == key


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty: write the API key there"),
        (b"\n", "is empty"),
        (b"one two three four", "holds no API key"),
        (b" old-key-0123456789", "holds no API key"),
        (b"old-key-0123456789 ", "holds no API key"),
        (b"old-key-0123456789\nX-Evil: 1", "holds no API key"),
        (b"old-key\t0123456789", "holds no API key"),
        (b"old-key\x000123456789", "holds no API key"),
        (b"old-key-0123456789\x7f", "holds no API key"),
        ("schlüssel-0123456789".encode(), "holds no API key"),
        (b"\xef\xbb\xbfold-key-0123456789", "holds no API key"),
        (b"old-key-0123456"[:15], "expected 16 to 256 printable characters of ASCII, no space, and nothing else"),
        (b"x" * 257, "holds no API key"),
        (b"x" * 100_000, "holds no API key"),
    ],
)
def test_what_is_no_key_is_one_sentence_that_does_not_show_it(tmp_path: Path, content: bytes, why: str) -> None:
    path = file_of(tmp_path, content)
    with pytest.raises(ConfigurationError) as caught:
        keys.read_key(path)
    where, said = str(path), str(caught.value)
    assert said.startswith(where)
    assert why in said
    assert "\n" not in said
    assert not any(word in said.removeprefix(where) for word in ("old-", "0123", "xxx", "two", "Evil"))


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    cases = (("none", "No such file"), (".", "Is a directory"), ("pipe", "it is no regular"), ("a\0b", "embedded"))
    for path, why in ((tmp_path / name, why) for name, why in cases):
        with pytest.raises(ConfigurationError, match=f"cannot read the API key in .*: {why}"):
            keys.read_key(path)


@given(st.from_regex(r"[!-~]{0,260} ?[\r\n\x00]{0,3}", fullmatch=True).map(str.encode) | st.binary(max_size=40))
def test_whatever_a_client_takes_a_server_takes_too(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = file_of(tmp_path_factory.getbasetemp(), content)
    try:
        key = keys.read_key(path)
    except ConfigurationError:
        return
    assert parse_keys(f"desk:{key}", "keys") == {key: "desk"}


def test_the_key_is_sent_with_each_call_and_with_a_token(server: Strict, tmp_path: Path) -> None:
    server.accepted, path = {OLD}, file_of(tmp_path, OLD + "\n")
    with following(server, path) as client:
        for _ in range(3):
            assert client.ask(STATE).multiplier == ANSWER["position_multiplier"]
    assert [(seen.get("X-API-Key"), seen.get("Authorization")) for seen in server.seen] == [(OLD, None)] * 3
    with following(server, path, token_source=lambda: ("a.b.c", time.time() + 60)) as client:
        client.ask(STATE)
    assert (server.seen[-1]["X-API-Key"], server.seen[-1]["Authorization"]) == (OLD, "Bearer a.b.c")
    with (
        PolicyClient(server.url, timeout_s=10) as client,
        pytest.raises(UnauthorisedError, match="was sent none: HTTP"),
    ):
        client.ask(STATE)
    assert "X-API-Key" not in server.seen[-1]


def test_a_key_goes_over_https_or_loopback_only(tmp_path: Path) -> None:
    path = file_of(tmp_path, OLD)
    for url in ("http://example.com", "http://10.0.0.1:8080"):
        with pytest.raises(ConfigurationError, match="API keys are secrets; they are sent over https only"):
            PolicyClient(url, api_key_file=path)
    for url in ("https://example.invalid", "http://localhost:1", "http://[::1]:1"):
        PolicyClient(url, api_key_file=path).close()


def test_a_client_without_a_usable_key_does_not_begin(tmp_path: Path) -> None:
    for content in ("", "one two three four five"):
        with pytest.raises(ConfigurationError):
            PolicyClient("http://127.0.0.1:1", api_key_file=file_of(tmp_path, content))


def test_a_changed_file_is_followed_whatever_its_time_says(server: Strict, tmp_path: Path) -> None:
    server.accepted, path = {OLD, NEW}, file_of(tmp_path, OLD)
    before = path.stat()
    with following(server, path) as client:
        client.ask(STATE)
        path.write_text(NEW[: len(OLD)].ljust(len(OLD), "x"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        server.accepted = {path.read_text()}
        # Refused until the thread has read it, and never something between the two.
        wait_for(lambda: answered(client))
    assert {seen["X-API-Key"] for seen in server.seen} == {OLD, path.read_text()}


def test_a_refused_key_is_read_anew_at_once(server: Strict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_KEY_PERIOD", 3_600.0)
    server.accepted, path = {NEW}, file_of(tmp_path, OLD)
    with following(server, path) as client:
        with pytest.raises(UnauthorisedError):
            client.ask(STATE)
        file_of(tmp_path, NEW)
        wait_for(lambda: answered(client))


@pytest.mark.parametrize("bad", ["", "half a k", None])
def test_while_the_file_cannot_be_used_the_last_key_is_sent_and_that_is_told_once(
    server: Strict, tmp_path: Path, bad: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server.accepted, path = {OLD, NEW}, file_of(tmp_path, OLD)
    with following(server, path) as client:
        path.unlink() if bad is None else file_of(tmp_path, bad)
        wait_for(lambda: "the one before is used" in caplog.text)
        reads = client._key
        assert reads is not None
        for _ in range(5):
            last = reads._last_fetch
            wait_for(lambda last=last: reads._last_fetch > last)  # type: ignore[misc]
            client.ask(STATE)
        told = [record for record in caplog.records if "the one before is used" in record.getMessage()]
        assert [record.levelname for record in told] == ["WARNING"]
        assert str(path) in told[0].getMessage()
        file_of(tmp_path, NEW)
        wait_for(lambda: "the API key was read anew" in caplog.text)
        client.ask(STATE)
    assert [seen["X-API-Key"] for seen in server.seen] == [OLD] * 5 + [NEW]
    assert OLD not in caplog.text
    assert NEW not in caplog.text


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_a_kind_of_its_own_and_says_nothing_about_the_servers_health(
    server: Strict, tmp_path: Path, status: int
) -> None:
    server.status, breaker = status, CircuitBreaker(BreakerConfig())
    with following(server, file_of(tmp_path, OLD), breaker=breaker) as client:
        for _ in range(10):
            with pytest.raises(UnauthorisedError, match=f"refused the API key: HTTP {status}: who are you"):
                client.ask(STATE)
    assert (breaker.state, breaker.figures().failures) == ("closed", 0)
    source = {"token_source": lambda: ("a.b.c", time.time() + 60)}
    with (
        following(server, file_of(tmp_path, OLD), **source) as client,
        pytest.raises(UnauthorisedError, match=f"refused the API key and the ID token: HTTP {status}"),
    ):
        client.ask(STATE)


@pytest.mark.parametrize("key", [OLD, NEW, "k" * 8 + "A1b2" * 50])
@pytest.mark.parametrize("status", [200, 401, 422, 500])
def test_an_answer_that_says_the_key_back_is_not_shown(
    server: Strict, tmp_path: Path, status: int, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Cut wherever an excerpt ends, too.
    for before in (0, 170, 188):
        server.status, server.body = status, b"?" * before + b"you sent " + key.encode()
        kind = {401: UnauthorisedError, 422: RefusedError}.get(status, SourceError)
        with following(server, file_of(tmp_path, key)) as client, pytest.raises(kind) as caught:
            client.ask(STATE)
        seen = "".join(traceback.format_exception(caught.value)) + caplog.text
        assert not keys.repeats(seen.replace(server.url, ""), [key])


def test_nobody_sees_the_key_in_a_client(server: Strict, tmp_path: Path) -> None:
    server.accepted = {OLD}
    with following(server, file_of(tmp_path, OLD)) as client:
        client.ask(STATE)
        shown = [repr(client), str(client), *map(repr, vars(client).values())]
        assert not any(OLD in text for text in shown)


def test_what_repeats_a_secret() -> None:
    secret = "Zm9vYmFyLWZvb2Jhci1mb29iYXI"
    assert keys.repeats(f"x{secret}x", ["other", secret])
    assert keys.repeats(f"... {secret[:13]}", [secret])
    assert keys.repeats(f"{secret[9:22]} ...", [secret])
    assert not keys.repeats(secret[:12], [secret])
    assert not keys.repeats("the API key in X-API-Key is none of those that may call", [secret])
    assert not keys.repeats("anything", ["", "short"])


def answered(client: PolicyClient) -> bool:
    try:
        client.ask(STATE)
    except HimariError:
        return False
    return True
