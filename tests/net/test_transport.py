"""Connections: kept, replaced, encrypted, and never waited for beyond the budget."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from layer3.errors import SourceError
from layer3.net.transport import Address, Budget, Pool, arun, run
from layer3.net.wire import Answer, request_bytes
from tests.fakes.certificates import certificate_of
from tests.fakes.timing import quickest

REQUEST = request_bytes("GET", "/", {"Host": "h"})
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
#: Told a connection and how many came before it.
Behave = Callable[[socket.socket, int], None]


@contextlib.contextmanager
def listening(behave: Behave, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server on loopback with a thread for each connection; yields its port."""
    stopped = threading.Event()

    def one(connection: socket.socket, before: int) -> None:
        with contextlib.suppress(OSError), connection:
            if tls is None:
                behave(connection, before)
            else:
                with tls.wrap_socket(connection, server_side=True) as wrapped:
                    behave(wrapped, before)

    def accept() -> None:
        count = 0
        with contextlib.suppress(OSError):
            while not stopped.is_set():
                connection, _ = server.accept()
                connection.settimeout(60)
                threading.Thread(target=one, args=(connection, count), daemon=True).start()
                count += 1

    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            stopped.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def here(port: int) -> tuple[Address, ...]:
    return ((int(socket.AF_INET), ("127.0.0.1", port)),)


@contextlib.contextmanager
def pool_of(*addresses: Address, tls: ssl.SSLContext | None = None) -> Iterator[Pool]:
    pool = Pool(lambda: addresses, "localhost", tls)
    try:
        yield pool
    finally:
        pool.close()


def ask(pool: Pool, seconds: float = 60.0) -> Answer:
    return run(pool.exchange(REQUEST, Budget.start("there", seconds)))


def read_request(connection: socket.socket) -> bool:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        piece = connection.recv(4096)
        if not piece:
            return False
        data += piece
    return True


def keep_answering(connection: socket.socket, _: int) -> None:
    while read_request(connection):
        connection.sendall(GOOD)


def test_a_connection_that_ended_at_the_second_request_is_replaced_once() -> None:
    connections: list[int] = []

    def once(connection: socket.socket, before: int) -> None:
        connections.append(before)
        read_request(connection)
        connection.sendall(GOOD)
        read_request(connection)  # the close crosses this request on its way

    with listening(once) as port, pool_of(*here(port)) as pool:
        for _ in range(4):
            assert ask(pool).body == b"hi"
    assert connections == [0, 1, 2, 3]


def test_a_fresh_connection_that_ends_is_not_replaced() -> None:
    connections: list[int] = []

    def refuse(connection: socket.socket, before: int) -> None:
        connections.append(before)
        read_request(connection)

    with (
        listening(refuse) as port,
        pool_of(*here(port)) as pool,
        pytest.raises(SourceError, match="closed without an answer"),
    ):
        ask(pool)
    assert connections == [0]


def test_an_answer_that_broke_off_is_not_asked_for_again() -> None:
    connections: list[int] = []

    def half(connection: socket.socket, before: int) -> None:
        connections.append(before)
        for reply in (GOOD, GOOD[:5]):
            read_request(connection)
            connection.sendall(reply)

    with listening(half) as port, pool_of(*here(port)) as pool:
        ask(pool)
        with pytest.raises(SourceError, match="within the headers"):
            ask(pool)
    assert connections == [0]


def test_bytes_that_nobody_asked_for_are_not_taken_for_the_next_answer() -> None:
    sent = threading.Event()

    def chatty(connection: socket.socket, before: int) -> None:
        read_request(connection)
        connection.sendall(GOOD)
        if before == 0:
            time.sleep(0.02)
            connection.sendall(GOOD.replace(b"hi", b"NO"))
            sent.set()
        read_request(connection)

    with listening(chatty) as port, pool_of(*here(port)) as pool:
        assert ask(pool).body == b"hi"
        assert sent.wait(60)
        assert ask(pool).body == b"hi"


def test_a_forked_process_leaves_its_parents_connections_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    connections: list[int] = []

    def answering(connection: socket.socket, before: int) -> None:
        connections.append(before)
        keep_answering(connection, before)

    with listening(answering) as port, pool_of(*here(port)) as pool:
        ask(pool)
        ask(pool)
        assert connections == [0]
        ours = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: ours + 1)
        ask(pool)
        assert connections == [0, 1]


def test_idle_connections_are_few_and_young(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layer3.net.transport._MAX_IDLE", 3)

    async def together(pool: Pool) -> None:
        await asyncio.gather(*(arun(pool.exchange(REQUEST, Budget.start("there", 60))) for _ in range(10)))

    with listening(keep_answering) as port, pool_of(*here(port)) as pool:
        asyncio.run(together(pool))
        assert len(pool._idle) == 3
        monkeypatch.setattr("layer3.net.transport._IDLE_SECONDS", 0.05)
        time.sleep(0.06)
        ask(pool)
        assert len(pool._idle) == 1


# Addresses


@contextlib.contextmanager
def swallowing() -> Iterator[Address]:
    """An address where connections are neither made nor refused: its queue is full."""
    with contextlib.ExitStack() as held:
        server = held.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            one = held.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        yield here(server.getsockname()[1])[0]


def refused(call: Callable[[], object], says: str) -> Callable[[], None]:
    """``call``, which must end in an error that says so."""

    def expecting() -> None:
        with pytest.raises(SourceError, match=says):
            call()

    return expecting


def closed_port() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return here(probe.getsockname()[1])[0]


def test_the_next_address_is_tried_when_one_refuses_or_swallows() -> None:
    with (
        listening(keep_answering) as port,
        swallowing() as hole,
        pool_of(closed_port(), hole, *here(port)) as pool,
    ):
        start = time.monotonic()
        assert ask(pool, 6.0).body == b"hi"  # within the budget: the hole has half of it
        assert time.monotonic() - start >= 3.0

        def again() -> None:
            pool.drop_idle()
            ask(pool, 6.0)  # the one that worked comes first

        assert quickest(again, 1.0) < 1.0


def test_a_place_that_swallows_everything_costs_the_budget_and_no_more() -> None:
    with swallowing() as hole, pool_of(hole) as pool:
        call = refused(lambda: ask(pool, 0.1), "there did not answer in full within 100 ms")
        assert 0.09 < quickest(call, 0.2) < 0.2


def test_addresses_that_are_not_known_yet_are_waited_for_within_the_budget() -> None:
    known: list[tuple[Address, ...]] = []
    pool = Pool(lambda: known[0] if known else None, "h", None)
    with listening(keep_answering) as port, contextlib.closing(pool):
        for call in (
            lambda: ask(pool, 0.05),
            lambda: asyncio.run(arun(pool.exchange(REQUEST, Budget.start("there", 0.05)))),
        ):
            assert 0.04 < quickest(refused(call, "within 50 ms"), 0.15) < 0.15
        threading.Timer(0.05, known.append, [here(port)]).start()
        assert ask(pool).body == b"hi"


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate of ``localhost``, in one file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(certificate_of("localhost", x509.IPAddress(ipaddress.ip_address("127.0.0.1"))))
    return path


@pytest.fixture(scope="module")
def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def client_side(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def test_tls_connections_are_kept_too(server_side: ssl.SSLContext, client_side: ssl.SSLContext) -> None:
    connections: list[int] = []

    def answering(connection: socket.socket, before: int) -> None:
        connections.append(before)
        keep_answering(connection, before)

    with listening(answering, server_side) as port, pool_of(*here(port), tls=client_side) as pool:
        for _ in range(5):
            assert ask(pool).body == b"hi"
            assert asyncio.run(arun(pool.exchange(REQUEST, Budget.start("there", 60)))).body == b"hi"
    assert connections == [0]


def test_a_large_answer_over_tls_in_odd_pieces(server_side: ssl.SSLContext, client_side: ssl.SSLContext) -> None:
    body = bytes(range(256)) * 250

    def answering(connection: socket.socket, _: int) -> None:
        read_request(connection)
        data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        for start in range(0, len(data), 9_973):
            connection.sendall(data[start : start + 9_973])
        read_request(connection)

    with listening(answering, server_side) as port, pool_of(*here(port), tls=client_side) as pool:
        assert ask(pool).body == body


def test_an_unknown_certificate_and_no_tls_at_all_are_refused(
    server_side: ssl.SSLContext, client_side: ssl.SSLContext
) -> None:
    strangers = ssl.create_default_context()
    with listening(keep_answering, server_side) as port:
        with pool_of(*here(port), tls=strangers) as pool, pytest.raises(SourceError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(pool)
        elsewhere = Pool(lambda: here(port), "example.com", client_side)
        with contextlib.closing(elsewhere), pytest.raises(SourceError, match=r"not valid for 'example\.com'"):
            ask(elsewhere)
    with (
        listening(lambda connection, _: connection.sendall(GOOD)) as port,
        pool_of(*here(port), tls=client_side) as pool,
        pytest.raises(SourceError, match=r"did not answer: .*SSL"),
    ):
        ask(pool)


@pytest.mark.parametrize("stage", ["handshake", "silent", "drip"])
def test_the_deadline_holds_over_tls(stage: str, server_side: ssl.SSLContext, client_side: ssl.SSLContext) -> None:
    over = threading.Event()

    def slow(connection: socket.socket, _: int) -> None:
        while stage == "drip" and not over.wait(0.005):
            connection.sendall(b"H" if stage == "drip" else b"")
        over.wait(60)

    def drip(connection: socket.socket, before: int) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        slow(connection, before)

    with (
        listening(drip if stage == "drip" else slow, None if stage == "handshake" else server_side) as port,
        pool_of(*here(port), tls=client_side) as pool,
    ):
        try:
            for call in (
                lambda: ask(pool, 0.15),
                lambda: asyncio.run(arun(pool.exchange(REQUEST, Budget.start("there", 0.15)))),
            ):
                assert 0.14 < quickest(refused(call, "within 150 ms"), 0.25) < 0.25
        finally:
            over.set()
