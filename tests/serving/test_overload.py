"""More than the server holds at once is turned away at once, with a time to come back; the rest goes on."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from serving import overload, protocol
from serving.overload import Overloaded, Room
from serving.server import listeners, open_door
from tests.serving.support import (
    NEUTRAL,
    Client,
    exchange,
    free_port,
    read_answers,
    request,
    serve,
    settings_for,
    statuses,
)

PREDICT = request("POST", "/predict", json.dumps({"state": NEUTRAL}).encode())
BATCH = request("POST", "/predict:batch", json.dumps({"states": [NEUTRAL] * 50}).encode())


@pytest.fixture(autouse=True)
def time_for_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a body is waited for however long a test takes."""
    monkeypatch.setattr(overload, "BODY_SECONDS", 300.0)


@contextmanager
def ready(policy_folder: Path, **environment: str) -> Iterator[Client]:
    with serve(policy_folder, **environment) as client:
        client.wait_for_health("ready")
        yield client


@contextmanager
def connected(client: Client, *pieces: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        for piece in pieces:
            connection.sendall(piece)
        yield connection


def wait_until_in_flight(client: Client, count: int) -> None:
    deadline = time.monotonic() + 120
    while f"himari_serving_in_flight_requests {count}.0\n".encode() not in client.ask("GET", "/metrics").raw:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Room


def test_room_is_for_so_many_and_the_first_always_fits() -> None:
    room = Room(10)
    with room.enter(64):
        with pytest.raises(Overloaded), room.enter(1):
            raise AssertionError("there is no room")
        assert room.taken == 64
    with room.enter(4), room.enter(6):
        assert room.taken == 10
    assert room.taken == 0


def test_room_is_given_back_whatever_happens() -> None:
    room = Room(1)
    with pytest.raises(ZeroDivisionError), room.enter(1):
        raise ZeroDivisionError
    assert room.taken == 0


def test_bytes_have_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload, "_HELD_BYTES", 100)
    room = Room(10)
    room.hold(100)
    with pytest.raises(Overloaded):
        room.hold(1)
    room.release(60)
    room.hold(60)
    assert room.held == 100


# The server


def test_requests_beyond_the_room_are_refused_before_their_body_is_read(policy_folder: Path) -> None:
    with ready(policy_folder, MAX_IN_FLIGHT="100") as client, connected(client, BATCH[:-10]) as slow:
        wait_until_in_flight(client, 1)
        head, _, _ = BATCH.partition(b"\r\n\r\n")
        refused = exchange(client.port, head + b"\r\n\r\n")
        assert statuses(refused) == [503]
        assert b"retry-after: 1\r\n" in refused
        assert b"more requests are under way" in refused
        assert client.predict(NEUTRAL).status == 200  # what is small still fits
        slow.sendall(BATCH[-10:])
        assert statuses(read_answers(slow, 1)) == [200]
        assert statuses(exchange(client.port, BATCH)) == [200]
        wait_until_in_flight(client, 0)


def test_many_states_that_come_at_once_need_room_too(policy_folder: Path) -> None:
    many = request("POST", "/predict:batch", json.dumps({"states": [NEUTRAL] * 400}).encode())
    with ready(policy_folder, MAX_IN_FLIGHT="100") as client, connected(client, BATCH[:-10]) as slow:
        wait_until_in_flight(client, 1)
        assert statuses(exchange(client.port, many)) == [503]
        slow.sendall(BATCH[-10:])
        assert statuses(read_answers(slow, 1)) == [200]
        assert statuses(exchange(client.port, many + PREDICT + many, answers=3)) == [200] * 3


def test_bodies_hold_only_so_much_memory_together(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload, "_HELD_BYTES", len(BATCH) * 3 // 2)
    with ready(policy_folder) as client, connected(client, BATCH[:-1]) as first:
        wait_until_in_flight(client, 1)
        assert statuses(exchange(client.port, BATCH[:-1])) == [503]
        first.sendall(BATCH[-1:])
        assert statuses(read_answers(first, 1)) == [200]


def test_connections_beyond_the_limit_hear_so_at_once_and_health_is_still_told(policy_folder: Path) -> None:
    with ready(policy_folder, MAX_IN_FLIGHT="2") as client, ExitStack() as stack:
        slow = [stack.enter_context(connected(client, PREDICT[:-5])) for _ in range(2)]
        for connection in slow:  # each of them is known to be there: it is answered in between
            connection.sendall(PREDICT[-5:] + PREDICT[:-5])
            assert statuses(read_answers(connection, 1)) == [200]
        refused = exchange(client.port, PREDICT, answers=2)
        assert statuses(refused) == [503]
        assert b"retry-after: 1\r\n" in refused
        assert b"connection: close" in refused
        assert client.health().status == 200
        slow[0].sendall(PREDICT[-5:])
        assert statuses(read_answers(slow[0], 1)) == [200]
        slow[0].close()
        slow[1].close()
        deadline = time.monotonic() + 120
        while client.predict(NEUTRAL).status != 200:
            assert time.monotonic() < deadline


def test_an_idle_connection_makes_room(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_QUIET_SECONDS", -1.0)
    with ready(policy_folder, MAX_IN_FLIGHT="2") as client, ExitStack() as stack:
        idle = [stack.enter_context(connected(client, PREDICT)) for _ in range(2)]
        for connection in idle:
            assert statuses(read_answers(connection, 1)) == [200]
        time.sleep(0.05)  # the loop's clock ticks in milliseconds: without it all would be idle for equally long
        for _ in range(3):
            newer = stack.enter_context(connected(client, PREDICT))
            assert statuses(read_answers(newer, 1)) == [200]
        assert [connection.recv(1) for connection in idle] == [b"", b""]  # those that were idle for longest


def test_what_was_refused_is_counted(policy_folder: Path) -> None:
    with ready(policy_folder, MAX_IN_FLIGHT="100") as client, connected(client, BATCH[:-10]):
        wait_until_in_flight(client, 1)
        head, _, _ = BATCH.partition(b"\r\n\r\n")
        assert statuses(exchange(client.port, head + b"\r\n\r\n")) == [503]
        assert b"himari_serving_shed_total 1.0\n" in client.ask("GET", "/metrics").raw


def test_a_crowd_of_silent_connections_keeps_nobody_out(policy_folder: Path) -> None:
    with ready(policy_folder, MAX_IN_FLIGHT="20", PORT=str(free_port())) as client, ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connected(client))
        deadline = time.monotonic() + 120
        while not answers(client):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_who_breaks_off_leaves_nothing_behind(policy_folder: Path) -> None:
    """Refused in the middle of a body, and then gone with a reset: what it sent is held by nobody, nor by a timer."""
    wrong_type = BATCH[:-10].replace(b"application/json", b"text/plain")
    with ready(policy_folder) as client:
        before = connections_alive()
        for _ in range(20):
            with connected(client, wrong_type) as connection:
                assert statuses(read_answers(connection, 1)) == [415]
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        deadline = time.monotonic() + 120
        while connections_alive() > before:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_crowd_of_new_connections_is_taken_up_in_a_few_turns_of_the_loop() -> None:
    found: list[int] = []

    class Taken(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            found.append(turn)
            transport.close()

    async def take(bound: list[socket.socket]) -> None:
        nonlocal turn
        loop = asyncio.get_running_loop()
        servers = [await loop.create_server(Taken, sock=one, backlog=100) for one in bound]
        while len(found) < 40:
            turn += 1
            await asyncio.sleep(0)
        for server in servers:
            server.close()

    turn = 0
    bound = listeners("127.0.0.1", 0)
    bound[0].listen(100)
    with ExitStack() as stack:
        for one in bound:
            stack.callback(one.close)
        for _ in range(40):
            stack.enter_context(socket.create_connection(bound[0].getsockname(), timeout=60))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(take(bound))
    assert max(Counter(found).values()) > 1
    assert len(set(found)) < 20


def test_one_of_many_states_is_answered_in_each_turn_of_the_loop(policy_folder: Path) -> None:
    door = open_door(settings_for(policy_folder))
    door.service.look()
    body = json.dumps({"states": [NEUTRAL] * 2}).encode()
    scope = {"type": "http", "method": "POST", "path": "/predict:batch"}
    headers = [(b"content-type", b"application/json")]
    happened: list[str] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            happened.append(str(message["status"]))

    async def turns() -> None:
        while happened.count("200") < 3:
            happened.append("turn")
            await asyncio.sleep(0)

    async def together() -> None:
        callers = (door({**scope, "headers": headers, "state": {}}, receive, send) for _ in range(3))
        await asyncio.gather(turns(), *callers)

    asyncio.run(together())
    assert happened.count("200") == 3
    assert "200 200" not in " ".join(happened)
    assert (door.room.taken, door.room.held) == (0, 0)


def connections_alive() -> int:
    gc.collect()
    return sum(isinstance(thing, protocol.Connection) for thing in gc.get_objects())


def answers(client: Client) -> bool:
    try:
        return client.predict(NEUTRAL).status == 200
    except OSError:  # cut off: there were twice as many connections as the limit
        return False
