"""The proofs of ``make prove-serving``, each a small part of it, against the real server in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.issuer import AUDIENCE, issuer
from tests.serving.proof.generated import generated
from tests.serving.proof.load import Right, Store, soak, swaps
from tests.serving.proof.nonsense import large, nonsense, slow
from tests.serving.proof.refusals import refused
from tests.serving.proof.restart import killed
from tests.serving.proof.server import Server, serving


@pytest.fixture
def server(policy_folder: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(policy_folder, tmp_path) as server:
        yield server


def test_every_wrong_request_gets_its_documented_answer(policy_folder: Path, tmp_path: Path) -> None:
    with (
        issuer("first") as google,
        serving(policy_folder, tmp_path, ID_TOKEN_AUDIENCE=AUDIENCE, ID_TOKEN_CERTS_URL=google.url) as server,
    ):
        assert refused(server, time.time()).endswith("each with its documented 4xx and a sentence")


def test_generated_requests_meet_no_undocumented_answer(server: Server, tmp_path: Path) -> None:
    said = generated(server, 300, tmp_path, phases="examples,fuzzing")
    assert int(said.split()[0].replace(",", "")) >= 300


def test_nonsense_on_the_socket_harms_nobody(server: Server) -> None:
    assert "300 mutations" in nonsense(server, 300, seed=7, growth_mib=4.0)


def test_large_bodies_are_not_kept(server: Server) -> None:
    assert "refused" in large(server, 100, most_mib=12.0)


def test_slow_senders_shut_nobody_out(server: Server) -> None:
    assert "shut nobody out" in slow(server, 100, until_hung_up=False)


def test_memory_does_not_grow_with_requests(server: Server) -> None:
    assert "0 failed" in soak(server, 10_000, growth_mib=2.0)


def test_a_new_champion_costs_no_request(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with serving(store.channel, tmp_path, WATCH_SECONDS="0.05") as server:
        assert "0 failed" in swaps(server, store, seconds=2.0, period=0.2, most=None)


def test_after_kill_9_it_is_back(server: Server, tmp_path: Path) -> None:
    assert "ready" in killed(server, 1, tmp_path, most=None)


def test_an_answer_of_another_model_than_it_says_is_found_out(tmp_path: Path) -> None:
    right = Right(store := Store(tmp_path))
    first, second = (policy.model_id for policy in store.policies)
    multiplier = float(store.policies[0].act(right.state)[0])

    def answer(version: str) -> bytes:
        return f'{{"position_multiplier": {multiplier}, "model_version": "{version}"}}'.encode()

    assert right(answer(first))
    assert not right(answer(second))
    assert not right(answer("another"))
    assert right.changes == 2


def test_a_wrong_answer_to_a_wrong_request_is_found_out(server: Server) -> None:
    # This server takes no tokens: what the table says of them cannot hold.
    with pytest.raises(AssertionError, match="an expired token"):
        refused(server, time.time())
