"""The server's settings, read from the environment once and checked."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from layer3.errors import ConfigurationError
from layer3.net.address import Place
from serving.guard import GuardSettings, guard_settings

__all__ = ["EXIT_WITH_STDIN", "Settings", "settings"]

#: Name of the setting that ties the server's life to its standard input.
EXIT_WITH_STDIN: Final = "HIMARI_EXIT_WITH_STDIN"
_MAX_IN_FLIGHT: Final = 1000
#: Characters of a project's id; those of a domain stand before a colon.
_OF_PROJECTS: Final = frozenset(string.ascii_lowercase + string.digits + "-.:")
#: What is asked for by programs, and stays where it is.
_PATHS: Final = frozenset({"/health", "/healthz", "/metrics", "/predict", "/predict:batch", "/status"})


@dataclass(frozen=True)
class Settings:
    """What the environment says; ``guard`` is who may call.

    ``health_route`` and ``predict_route`` are Vertex AI's, beside our own; empty where it does not run us.
    ``cors_origins`` are the web pages that may call from a browser, ``max_in_flight`` how many connections
    and requests are held at once, ``watch_seconds`` the pause between two looks at a channel,
    ``access_log_per_second`` how many lines a second are written of requests that went well.
    """

    guard: GuardSettings
    host: str
    port: int
    model_uri: str
    health_route: str
    predict_route: str
    cors_origins: frozenset[str]
    max_in_flight: int
    watch_seconds: float
    access_log_per_second: float
    project: str
    exit_with_stdin: bool


def settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings, or raise a ConfigurationError that names the wrong one."""
    on_vertex, on_cloud_run = "AIP_HTTP_PORT" in environment, bool(environment.get("K_SERVICE"))
    health_route, predict_route = _routes(environment)
    port = _integer(environment, "AIP_HTTP_PORT" if on_vertex else "PORT", 8080, 1, 65535)
    return Settings(
        host=environment.get("HOST") or ("0.0.0.0" if on_vertex or on_cloud_run else "127.0.0.1"),
        port=port,
        # Vertex names the folder that a model was uploaded with.
        model_uri=environment.get("MODEL_URI") or environment.get("AIP_STORAGE_URI", ""),
        health_route=health_route,
        predict_route=predict_route,
        cors_origins=_origins(environment.get("CORS_ORIGINS", "")),
        max_in_flight=_integer(environment, "MAX_IN_FLIGHT", _MAX_IN_FLIGHT, 1, 100_000),
        watch_seconds=_seconds(environment, "WATCH_SECONDS", 2.0),
        access_log_per_second=float(_integer(environment, "ACCESS_LOG_PER_SECOND", 10, 0, 100_000)),
        project=_project(environment),
        exit_with_stdin=_flag(environment, EXIT_WITH_STDIN),
        guard=guard_settings(environment),
    )


def _integer(environment: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = environment.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and low <= int(text) <= high):
        raise ConfigurationError(f"{name} is {text!r}, expected a number from {low} to {high}")
    return int(text)


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, str(default))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.05 <= seconds <= 3600.0:
        raise ConfigurationError(f"{name} is {text!r}, expected seconds from 0.05 to 3600")
    return seconds


def _project(environment: Mapping[str, str]) -> str:
    project = environment.get("GOOGLE_CLOUD_PROJECT", "")
    if not set(project) <= _OF_PROJECTS:
        raise ConfigurationError(
            f"GOOGLE_CLOUD_PROJECT is {project!r}, expected the id of a project, such as my-project"
        )
    return project


def _flag(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "0")
    if value not in ("0", "1", ""):
        raise ConfigurationError(f"{name} is {value!r}, expected 0 or 1")
    return value == "1"


def _routes(environment: Mapping[str, str]) -> tuple[str, str]:
    """Vertex AI's paths for health and predictions; each may take the place of a page or of our path for the same."""
    health, predict = _route(environment, "AIP_HEALTH_ROUTE"), _route(environment, "AIP_PREDICT_ROUTE")
    for name, path, same in (
        ("AIP_HEALTH_ROUTE", health, {"/health", "/healthz"}),
        ("AIP_PREDICT_ROUTE", predict, {"/predict"}),
    ):
        if path in _PATHS - same:
            raise ConfigurationError(f"{name} is {path!r}, expected a path where this server answers nothing else")
    if health and health == predict:
        raise ConfigurationError(f"AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE are both {health!r}")
    return health, predict


def _route(environment: Mapping[str, str], name: str) -> str:
    path = environment.get(name, "")
    if path and not (path.startswith("/") and path.isascii() and path.isprintable() and not set(path) & set(" ?#%")):
        raise ConfigurationError(f"{name} is {path!r}, expected a path such as /v1/predict")
    return path


def _origins(text: str) -> frozenset[str]:
    origins = frozenset(entry.strip() for entry in text.split(",") if entry.strip())
    for origin in origins:
        if not _is_origin(origin):
            raise ConfigurationError(
                f"CORS_ORIGINS holds {origin!r}, expected addresses as browsers send them, such as "
                "https://desk.example.com or http://localhost:3000, comma-separated, each in full: there is no *"
            )
    return origins


def _is_origin(text: str) -> bool:
    """Whether a browser would send it: lower case, ASCII, no path, no port that goes without saying."""
    try:
        place = Place.parse(text)
    except ConfigurationError:
        return False
    return text == f"{place.scheme}://{place.authority}"
