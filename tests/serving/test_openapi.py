"""The documentation: every route in full, its examples true, and a page that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from layer3 import contract
from tests.serving.support import JSON, NEUTRAL, Client, serve

KEY = "k" * 32
OURS = {"/", "/health", "/healthz", "/status", "/metrics", "/predict", "/predict:batch", "/docs", "/openapi.json"}
REFUSALS = {"400", "401", "403", "408", "409", "413", "415", "422", "429", "431", "500", "503"}


@pytest.fixture(scope="module")
def guarded(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"desk:{KEY}\n")
    with serve(
        policy_folder, API_KEYS_FILE=str(keys), AIP_PREDICT_ROUTE="/v1:predict", AIP_HEALTH_ROUTE="/v1"
    ) as client:
        client.wait_for_health("ready")
        yield client


@pytest.fixture(scope="module")
def document(guarded: Client) -> Any:
    return guarded.ask("GET", "/openapi.json").body


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def check(document: Any, value: object, schema: Any) -> None:
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def test_every_route_is_described(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == OURS | {"/v1", "/v1:predict"}
    for path in ("/predict", "/predict:batch", "/v1:predict"):
        assert set(document["paths"][path]["post"]["responses"]) == {"200", *REFUSALS}
        names = {parameter["name"] for parameter in document["paths"][path]["post"]["parameters"]}
        assert names == {"X-Request-Id", contract.HEADER}


def test_every_body_has_a_schema_and_an_example_that_fits_it(document: Any) -> None:
    for _, _, operation in operations(document):
        described = [operation["requestBody"]] if "requestBody" in operation else []
        for part in [*described, *operation["responses"].values()]:
            for media in part["content"].values():
                check(document, media["example"], media["schema"])
        for status, answer in operation["responses"].items():
            assert answer["description"]
            assert {"X-Request-Id", contract.HEADER} <= set(answer["headers"])
            if status != "200" and "application/problem+json" in answer["content"]:
                assert answer["content"]["application/problem+json"]["example"]["status"] == int(status)


def test_who_may_call_is_described_as_it_is_set(document: Any, client: Client) -> None:
    assert document["paths"]["/predict"]["post"]["security"] == [{"ApiKey": []}]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert set(document["components"]["securitySchemes"]) == {"ApiKey", "IdToken"}
    open_to_all = client.ask("GET", "/openapi.json").body
    assert open_to_all["paths"]["/predict"]["post"]["security"] == []


def test_what_is_described_is_what_happens(guarded: Client, document: Any) -> None:
    """Each operation with its own example, known and unknown: the answer and its headers fit their description."""
    for method, path, operation in operations(document):
        for headers in ({"X-API-Key": KEY}, {}):
            body = None
            if "requestBody" in operation:
                body = json.dumps(operation["requestBody"]["content"]["application/json"]["example"])
            answer = guarded.ask(method, path, body, {**headers, **(JSON if body else {})})
            assert answer.status == (200 if headers or not operation["security"] else 401), (method, path)
            described = operation["responses"][str(answer.status)]
            (media_type,) = described["content"]
            assert answer.headers["content-type"].startswith(media_type)
            assert {name.lower() for name in described["headers"]} <= set(answer.headers)
            if "json" in media_type:
                check(document, answer.body, described["content"][media_type]["schema"])


def test_refusals_fit_their_description(guarded: Client, document: Any) -> None:
    responses = document["paths"]["/predict"]["post"]["responses"]
    known = {"X-API-Key": KEY, **JSON}
    good = json.dumps({"state": NEUTRAL})
    for status, body, headers in (
        (400, "{", known),
        (401, good, {**known, "X-API-Key": "wrong" * 8}),
        (409, good, {**known, contract.HEADER: "himari-state-9/1"}),
        (413, " " * 70_000, known),
        (415, good, {**known, "Content-Type": "text/plain"}),
        (422, json.dumps({"state": [2.0] * contract.STATE_DIM}), known),
    ):
        answer = guarded.ask("POST", "/predict", body, headers)
        assert answer.status == status
        described = responses[str(status)]
        check(document, answer.body, described["content"]["application/problem+json"]["schema"])
        assert {name.lower() for name in described["headers"]} <= set(answer.headers)
        assert answer.body["title"] == described["content"]["application/problem+json"]["example"]["title"]


def test_the_page_tells_the_same_and_loads_nothing(guarded: Client, document: Any) -> None:
    answer = guarded.ask("GET", "/docs")
    page = answer.raw.decode()
    assert answer.status == 200
    for _, path, operation in operations(document):
        assert f" {path}</code>" in page
        assert html.escape(operation["summary"]) in page
    assert page.count("<li><code>") == contract.STATE_DIM
    assert "<code>return_4h</code>: return of the close over four hours, in units of 20 %" in page
    assert "<script" not in page
    assert re.findall(r"(?:src|href)=.?https?:", page) == []
    policy = answer.headers["content-security-policy"]
    (style,) = re.findall(r"<style>(.*?)</style>", page)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; style-src 'sha256-" + digest)
    assert "unsafe" not in policy
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_pages_name_what_serves(guarded: Client) -> None:
    body = guarded.ask("GET", "/").body
    assert "POST /predict:batch" in body["endpoints"]
    assert body["model_version"] == guarded.health().body["model_version"]
    assert guarded.ask("HEAD", "/docs").status == 200
    assert guarded.ask("POST", "/docs").status == 405
