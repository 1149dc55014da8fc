"""Many states in one request: one matrix product, all or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from layer3 import contract
from layer3.agent.policy_file import PARITY, load_policy
from serving.state_input import MAX_BATCH_BODY, MAX_STATES
from tests.serving.support import JSON, NEUTRAL, Answer, Client


def ask(client: Client, states: object) -> Answer:
    return client.ask("POST", "/predict:batch", json.dumps({"states": states}), JSON)


@pytest.mark.parametrize("count", [1, 2, 1024, MAX_STATES])
def test_it_answers_every_state_in_its_order(client: Client, policy_folder: Path, count: int) -> None:
    policy = load_policy(policy_folder)
    states = np.random.default_rng(count).uniform(-1, 1, (count, contract.STATE_DIM)).astype(np.float32)
    answer = ask(client, states.tolist())
    assert answer.status == 200
    assert set(answer.body) == {"position_multipliers", "confidences", "latency_ms", "model_version"}
    multipliers, confidences = policy.act(states)
    assert answer.body["position_multipliers"] == multipliers.tolist()
    assert answer.body["confidences"] == confidences.tolist()
    assert answer.body["model_version"] == policy.model_id
    assert answer.body["latency_ms"] > 0


def test_one_by_one_it_says_the_same(client: Client) -> None:
    states = np.random.default_rng(5).uniform(-1, 1, (30, contract.STATE_DIM)).tolist()
    batch = ask(client, states).body
    for state, multiplier, confidence in zip(states, batch["position_multipliers"], batch["confidences"], strict=True):
        alone = client.predict(state).body
        assert abs(alone["position_multiplier"] - multiplier) <= PARITY
        assert abs(alone["confidence"] - confidence) <= PARITY


def test_the_golden_pairs_come_out_of_one_batch(client: Client, policy_folder: Path) -> None:
    golden = json.loads((policy_folder / "manifest.json").read_text())["golden"]
    body = ask(client, [pair["state"] for pair in golden]).body
    assert np.abs(np.array(body["position_multipliers"]) - [pair["multiplier"] for pair in golden]).max() <= PARITY
    assert np.abs(np.array(body["confidences"]) - [pair["confidence"] for pair in golden]).max() <= PARITY


def test_the_same_states_get_the_same_bytes(client: Client) -> None:
    states = np.random.default_rng(6).uniform(-1, 1, (200, contract.STATE_DIM)).tolist()
    first, *others = [ask(client, states).body for _ in range(5)]
    for other in others:
        assert other["position_multipliers"] == first["position_multipliers"]
        assert other["confidences"] == first["confidences"]


def test_one_wrong_number_refuses_them_all_and_is_named(client: Client) -> None:
    states = [list(NEUTRAL) for _ in range(5)]
    states[3][13] = 1.5
    states[4][0] = float("nan")
    answer = ask(client, states)
    assert answer.status == 422
    assert answer.body["detail"] == (
        "states[3][13] (volatility): expected a number in [-1, 1], got 1.5 (and 1 more, see errors)"
    )
    wrong = {"expected": "a number in [-1, 1]"}
    assert answer.body["errors"] == [
        {"state": 3, "index": 13, "feature": "volatility", "got": "1.5", **wrong},
        {"state": 4, "index": 0, "feature": "signal_confidence", "got": "NaN", **wrong},
    ]
    assert "position_multipliers" not in answer.body


def test_the_list_of_wrong_numbers_is_bounded(client: Client) -> None:
    answer = ask(client, [[2.0] * contract.STATE_DIM] * 1000)
    assert answer.status == 422
    assert len(answer.body["errors"]) == 100
    assert "and 15999 more" in answer.body["detail"]


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([], "states: expected 1 to 4096 states, got 0"),
        ([NEUTRAL] * (MAX_STATES + 1), "states: expected 1 to 4096 states, got 4097"),
        (NEUTRAL, "states[0]: expected a list of 16 numbers, got 0.0"),
        ([NEUTRAL, NEUTRAL[:-1]], "states[1]: expected 16 numbers, got 15"),
        ([NEUTRAL, None], "states[1]: expected a list of 16 numbers, got null"),
        ([[NEUTRAL]], "states[0]: expected 16 numbers, got 1"),
        ({"0": NEUTRAL}, "states: expected a list of 1 to 4096 states, got an object"),
        ("x", 'states: expected a list of 1 to 4096 states, got "x"'),
    ],
)
def test_what_is_no_list_of_states_is_refused(client: Client, states: object, said: str) -> None:
    answer = ask(client, states)
    assert answer.status == 422
    assert answer.body["detail"] == said


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[", 400),
        (b'{"states": [[NaN,' + b"0," * 14 + b"0]]}", 422),
        (b'{"states": [[1e400,' + b"0," * 14 + b"0]]}", 422),
        (json.dumps({"states": [NEUTRAL]}).encode("utf-16"), 400),
        (b'{"states": [], "states": []}', 400),
        (b'{"state": []}', 422),
    ],
)
def test_the_refusals_of_a_single_state_hold_here_too(client: Client, body: bytes, status: int) -> None:
    answer = client.ask("POST", "/predict:batch", body, JSON)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.body["detail"]


def test_the_body_limit_is_exact(client: Client) -> None:
    body = json.dumps({"states": [NEUTRAL]}).encode()
    assert client.ask("POST", "/predict:batch", body.ljust(MAX_BATCH_BODY), JSON).status == 200
    answer = client.ask("POST", "/predict:batch", body.ljust(MAX_BATCH_BODY + 1), JSON)
    assert answer.status == 413
    assert "at most 4194304 bytes: " in answer.body["detail"]


def test_the_colon_may_be_percent_encoded(client: Client) -> None:
    assert client.ask("POST", "/predict%3Abatch", json.dumps({"states": [NEUTRAL]}), JSON).status == 200
