"""From a target, which is plain data, to the platform that it means."""

from __future__ import annotations

from collections.abc import Callable

from layer3.errors import ConfigurationError
from serving.platforms.protocol import Platform
from serving.platforms.target import Target

__all__ = ["connect"]


def connect(target: Target, store: str, *, log: Callable[[str], None]) -> Platform:
    """The Cloud Run service that ``target`` describes, serving from ``store``.

    Google's client is imported here and nowhere before: who releases on this machine needs none.

    Raises
    ------
    ConfigurationError : the client is not installed, there are no credentials, or ``store`` is no bucket
    """
    try:
        from serving.platforms.cloud_run import CloudRun
    except ImportError as error:
        raise ConfigurationError(
            f"a release on Cloud Run needs an extra package ({error}): pip install 'himari[pipeline]'"
        ) from error
    return CloudRun.connect(target, store, log=log)
