"""The server's settings: read once, each wrong one named, and closed where nothing opens it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from layer3.errors import ConfigurationError
from serving.settings import EXIT_WITH_STDIN, Settings, settings

OPEN = {"AUTH": "off"}
DEFAULTS = Settings(
    guard=settings(OPEN).guard,
    host="127.0.0.1",
    port=8080,
    model_uri="",
    health_route="",
    predict_route="",
    cors_origins=frozenset(),
    max_in_flight=1000,
    watch_seconds=2.0,
    access_log_per_second=10.0,
    project="",
    exit_with_stdin=False,
)


@pytest.mark.parametrize(
    ("environment", "changes"),
    [
        ({}, {}),
        ({"PORT": "9000", "MODEL_URI": "gs://b/models/x"}, {"port": 9000, "model_uri": "gs://b/models/x"}),
        ({"K_SERVICE": "himari"}, {"host": "0.0.0.0"}),
        ({"K_SERVICE": "himari", "HOST": "127.0.0.1"}, {}),
        ({"HOST": "::"}, {"host": "::"}),
        (
            {
                "AIP_HTTP_PORT": "7080",
                "PORT": "9000",
                "AIP_HEALTH_ROUTE": "/ping",
                "AIP_PREDICT_ROUTE": "/v1/x:predict",
            },
            {"host": "0.0.0.0", "port": 7080, "health_route": "/ping", "predict_route": "/v1/x:predict"},
        ),
        ({"AIP_STORAGE_URI": "gs://b/uploaded"}, {"model_uri": "gs://b/uploaded"}),
        ({"AIP_STORAGE_URI": "gs://b/uploaded", "MODEL_URI": "gs://b/mine"}, {"model_uri": "gs://b/mine"}),
        (
            {"CORS_ORIGINS": "https://a.example, http://localhost:3000 ,http://[::1]:8000"},
            {"cors_origins": frozenset({"https://a.example", "http://localhost:3000", "http://[::1]:8000"})},
        ),
        (
            {"MAX_IN_FLIGHT": "7", "WATCH_SECONDS": "0.5", "ACCESS_LOG_PER_SECOND": "0"},
            {"max_in_flight": 7, "watch_seconds": 0.5, "access_log_per_second": 0.0},
        ),
        ({"GOOGLE_CLOUD_PROJECT": "p", EXIT_WITH_STDIN: "1"}, {"project": "p", "exit_with_stdin": True}),
    ],
)
def test_settings(environment: dict[str, str], changes: dict[str, object]) -> None:
    assert settings({**OPEN, **environment}) == replace(DEFAULTS, **changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "http"),
        ("PORT", ""),
        ("PORT", "-1"),
        ("PORT", "٣"),
        ("PORT", "9" * 5000),
        ("AIP_HTTP_PORT", "x"),
        ("AIP_HEALTH_ROUTE", "ping"),
        ("AIP_PREDICT_ROUTE", "/a b"),
        ("AIP_PREDICT_ROUTE", "/a?b=1"),
        ("AIP_PREDICT_ROUTE", "/ä"),
        ("AIP_PREDICT_ROUTE", "/health"),
        ("AIP_PREDICT_ROUTE", "/predict:batch"),
        ("AIP_HEALTH_ROUTE", "/predict"),
        ("AIP_HEALTH_ROUTE", "/status"),
        ("MAX_IN_FLIGHT", "0"),
        ("MAX_IN_FLIGHT", "many"),
        ("WATCH_SECONDS", "0"),
        ("WATCH_SECONDS", "nan"),
        ("WATCH_SECONDS", "inf"),
        ("WATCH_SECONDS", "soon"),
        ("ACCESS_LOG_PER_SECOND", "-1"),
        (EXIT_WITH_STDIN, "yes"),
        ("GOOGLE_CLOUD_PROJECT", "My Project"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings({**OPEN, name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}, expected")


def test_one_path_cannot_be_two_things() -> None:
    with pytest.raises(ConfigurationError, match="AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE are both '/v1'"):
        settings({**OPEN, "AIP_HEALTH_ROUTE": "/v1", "AIP_PREDICT_ROUTE": "/v1"})


@pytest.mark.parametrize(
    "origin",
    [
        "*", "https://*", "https://*.example.com", "desk.example.com", "https://a.example/", "null", "https://",
        "https://A.example", "https://a.example:443", "https://\xfc.example", "http://[", "https://u@a.example",
        "https://a.example:99999", "ftp://a.example",
    ],
)  # fmt: skip
def test_a_wrong_origin_is_named(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="CORS_ORIGINS holds") as caught:
        settings({**OPEN, "CORS_ORIGINS": f"https://fine.example,{origin}"})
    assert repr(origin) in str(caught.value)


def test_nothing_is_open_unless_somebody_says_so() -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings({})
    for choice in ("API_KEYS_FILE", "ID_TOKEN_AUDIENCE", "AUTH=off"):
        assert choice in str(caught.value)


def test_who_may_call_follows_from_what_is_given(tmp_path: Path) -> None:
    guard = settings({"API_KEYS_FILE": str(tmp_path / "keys")}).guard
    assert guard.keys_file == tmp_path / "keys"
    assert not guard.audiences
