"""The server's settings, read from the environment once and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from layer3.errors import ConfigurationError

__all__ = ["EXIT_WITH_STDIN", "Settings", "settings"]

#: Name of the setting that ties the server's life to its standard input.
EXIT_WITH_STDIN: Final = "HIMARI_EXIT_WITH_STDIN"


@dataclass(frozen=True)
class Settings:
    host: str
    port: int
    model_uri: str
    access_log: bool
    exit_with_stdin: bool


def settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings, or raise a ConfigurationError that names the wrong one."""
    port = environment.get("PORT", "8080")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigurationError(f"PORT is {port!r}, expected a number from 1 to 65535")
    return Settings(
        host=environment.get("HOST") or ("0.0.0.0" if environment.get("K_SERVICE") else "127.0.0.1"),
        port=int(port),
        model_uri=environment.get("MODEL_URI", ""),
        access_log=_flag(environment, "ACCESS_LOG"),
        exit_with_stdin=_flag(environment, EXIT_WITH_STDIN),
    )


def _flag(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "0")
    if value not in ("0", "1", ""):
        raise ConfigurationError(f"{name} is {value!r}, expected 0 or 1")
    return value == "1"
