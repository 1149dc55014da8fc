"""Callers that end in the middle: what was asked in full is answered, and half a request is never taken for one."""

from __future__ import annotations

import json
import socket

import pytest

from serving import protocol
from serving.door import Door
from tests.serving.support import NEUTRAL, Client, exchange, read_answers, request, statuses

BODY = json.dumps({"state": NEUTRAL}).encode()
GOOD = request("POST", "/predict", BODY)
CHUNKED = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = b"%x\r\n%b\r\n" % (len(BODY), BODY)


def half_closed(port: int, sent: bytes) -> bytes:
    """What comes back for ``sent`` when the sending half is closed right behind it."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return read_answers(connection, 1000)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (GOOD, [200]),
        (GOOD * 3, [200] * 3),
        (request("GET", "/docs"), [200]),
        (request("GET", "/docs") + GOOD, [200, 200]),
        (CHUNKED + WHOLE + b"0\r\n\r\n", [200]),
        (b"\xde\xad\xbe\xef", [400]),
        (GOOD[:-5], [400]),
        # The one chunk is a whole state, but nobody said that it was the last.
        (CHUNKED + WHOLE, [400]),
        (GOOD + GOOD[:-5], [200, 400]),
        (b"", []),
    ],
    ids=["one", "three", "page", "page-and-one", "chunks", "rubbish", "half", "no-last-chunk", "one-and-half", "none"],
)
def test_who_closes_its_half_at_once_is_answered(client: Client, sent: bytes, expected: list[int]) -> None:
    for _ in range(20):
        assert statuses(half_closed(client.port, sent)) == expected


def in_two(port: int, first: bytes, second: bytes) -> bytes:
    """What comes back when ``second`` is sent once the server has begun on ``first`` and asked for more."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(first)
        told = read_answers(connection, 1)
        assert told.startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(second)
        return read_answers(connection, 2)


def test_a_broken_chunk_that_comes_late_is_a_400(client: Client) -> None:
    first = CHUNKED.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue")
    received = in_two(client.port, first + WHOLE, b"zz\r\nrubbish")
    assert statuses(received) == [400]
    assert b"this is not HTTP/1.1" in received
    assert b"connection: close" in received


def test_rubbish_behind_a_request_does_not_cost_it_its_answer(client: Client) -> None:
    first = GOOD.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue")
    received = in_two(client.port, first[:-5], first[-5:] + b"\x00\x01rubbish\r\n\r\n")
    assert statuses(received) == [200]
    assert b"connection: close" in received


@pytest.mark.parametrize("wanted", ["h2c", "websocket", "HTTP/3.0, TLS/1.0"])
def test_a_wish_for_another_protocol_is_passed_over(client: Client, wanted: str) -> None:
    """As Java's client and ``curl --http2`` send it, with a body, and with more requests behind it."""
    wish = request("POST", "/predict", BODY, Connection="Upgrade, HTTP2-Settings", Upgrade=wanted)
    assert statuses(exchange(client.port, wish)) == [200]
    assert statuses(exchange(client.port, wish * 3 + GOOD, answers=4)) == [200] * 4
    head, _, body = wish.partition(b"\r\n\r\n")
    assert statuses(exchange(client.port, head + b"\r\n\r\n", body)) == [200]
    assert statuses(exchange(client.port, request("GET", "/docs") + wish, answers=2)) == [200, 200]


def test_whoever_asks_too_far_ahead_is_answered_so_far_and_told_that_this_is_all(client: Client) -> None:
    received = exchange(client.port, request("GET", "/openapi.json") * 60, answers=60)
    found = statuses(received)
    assert 1 < len(found) < 60
    assert set(found) == {200}
    assert received.count(b"connection: close") == 1


def test_whoever_never_reads_a_page_is_cut_off(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the middle of an answer that waits for its reader."""
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.05)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", client.port))
        with pytest.raises(ConnectionError):
            ask_for_ever(connection, request("GET", "/openapi.json"))


def ask_for_ever(connection: socket.socket, asked: bytes) -> None:
    while True:
        connection.sendall(asked)


def test_a_bug_is_not_taken_for_the_callers(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Door, "answer", broken)
    received = exchange(client.port, GOOD, answers=2)
    assert statuses(received) == [500]
    assert b"a bug on our side; it was logged" in received
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
