"""Vertex AI's custom-container convention: its port, its paths, its instances and predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layer3.agent.policy_file import PARITY
from tests.serving.support import JSON, NEUTRAL, Answer, Client, free_port, serve, serving_process

HEALTH = "/v1/endpoints/1/deployedModels/2"
PREDICT = f"{HEALTH}:predict"


@pytest.fixture(scope="module")
def vertex(policy_folder: Path) -> Iterator[Client]:
    with serve(policy_folder, AIP_HEALTH_ROUTE=HEALTH, AIP_PREDICT_ROUTE=PREDICT) as client:
        client.wait_for_health("ready")
        yield client


def ask(client: Client, body: dict[str, Any], path: str = PREDICT) -> Answer:
    return client.ask("POST", path, json.dumps(body), JSON)


def test_its_health_is_ours(vertex: Client) -> None:
    answer = vertex.ask("GET", HEALTH)
    assert (answer.status, answer.body["status"]) == (200, "ready")


def test_instances_may_be_lists_and_objects(vertex: Client, policy_folder: Path) -> None:
    golden = json.loads((policy_folder / "manifest.json").read_text())["golden"]
    instances = [pair["state"] if i % 2 else {"state": pair["state"]} for i, pair in enumerate(golden)]
    predictions = ask(vertex, {"instances": instances}).body["predictions"]
    assert len(predictions) == len(golden)
    for pair, prediction in zip(golden, predictions, strict=True):
        assert set(prediction) == {"position_multiplier", "confidence", "latency_ms", "model_version"}
        assert abs(prediction["position_multiplier"] - pair["multiplier"]) <= PARITY
        assert abs(prediction["confidence"] - pair["confidence"]) <= PARITY


@pytest.mark.parametrize("parameters", [None, {}])
def test_empty_parameters_are_fine(vertex: Client, parameters: object) -> None:
    assert ask(vertex, {"instances": [NEUTRAL], "parameters": parameters}).status == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {"instances": [NEUTRAL], "parameters": {"top_k": 1}},
            'parameters: this model knows none, got the keys "top_k"',
        ),
        ({"instances": [NEUTRAL], "parameters": []}, "parameters: this model knows none, got a list of 0"),
        ({"instances": [NEUTRAL], "parameters": False}, "parameters: this model knows none, got false"),
        ({"instances": []}, "instances: expected 1 to 4096 states, got 0"),
        ({"instances": [{}]}, "instances[0]: expected [16 numbers] or"),
        ({"instances": [NEUTRAL, {"state": NEUTRAL, "x": 1}]}, "instances[1]: expected [16 numbers] or"),
        ({"instances": [{"state": [2, *NEUTRAL[1:]]}]}, "instances[0][0] (signal_confidence): expected a number in"),
        ({"instances": [5]}, "instances[0]: expected a list of 16 numbers, got 5"),
        ({"state": NEUTRAL}, 'the key "instances" is missing'),
        ({"instances": [NEUTRAL], "x": 1}, 'no other key, got the keys "instances", "x"'),
    ],
)
def test_what_is_none_is_refused(vertex: Client, body: dict[str, Any], said: str) -> None:
    answer = ask(vertex, body)
    assert answer.status == 422
    assert said in answer.body["detail"]


def test_our_own_paths_stay(vertex: Client) -> None:
    assert vertex.predict(NEUTRAL).status == 200
    assert vertex.health().status == 200


def test_our_own_path_takes_both_forms_if_vertex_is_told_to_use_it(policy_folder: Path) -> None:
    with serve(policy_folder, AIP_PREDICT_ROUTE="/predict", AIP_HEALTH_ROUTE="/health") as client:
        client.wait_for_health("ready")
        own = client.predict(NEUTRAL).body
        (prediction,) = ask(client, {"instances": [NEUTRAL]}, "/predict").body["predictions"]
        assert prediction["position_multiplier"] == pytest.approx(own["position_multiplier"], abs=PARITY)
        (operation,) = client.ask("GET", "/openapi.json").body["paths"]["/predict"].values()
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert schema["oneOf"] == [{"$ref": "#/components/schemas/State"}, {"$ref": "#/components/schemas/Instances"}]


def test_the_process_listens_where_vertex_says(policy_folder: Path) -> None:
    port = str(free_port())
    with serving_process(
        AIP_HTTP_PORT=port, PORT=str(free_port()), HOST="127.0.0.1", AIP_STORAGE_URI=str(policy_folder)
    ) as server:
        client = Client(int(port))
        client.wait_for_health("ready", process=server.process)
        assert client.predict(NEUTRAL).status == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/docs"])
def test_vertex_ais_health_is_health_wherever_it_lies(path: str) -> None:
    """Not the page, or the word that the process lives, which would call a server without a model healthy."""
    with serve(AIP_HEALTH_ROUTE=path) as client:
        client.wait_for_health("unavailable")
        answer = client.ask("GET", path)
        assert (answer.status, answer.body["status"]) == (503, "unavailable")
        assert "503" in client.ask("GET", "/openapi.json").body["paths"][path]["get"]["responses"]
