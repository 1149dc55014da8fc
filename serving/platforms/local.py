"""A release on this machine: the candidate's own server proves itself beside the champion's, then the channel switches.

start -> health -> smoke -> parity -> stop -> switch
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from layer3.champion import Champion, Channel
from serving import candidate
from serving.models import StoredPolicy
from serving.platforms.protocol import Progress, prove

__all__ = ["HEALTH_SECONDS", "Local"]

#: Seconds that the candidate's server may take to load its model and pass its self-test.
HEALTH_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Local:
    """``port`` is the trial server's on loopback (a free one by default), ``command`` what starts it."""

    port: int | None = None
    health_seconds: float = HEALTH_SECONDS
    command: Sequence[str] = candidate.SERVER

    def settle(self, channel: Channel | None, progress: Progress) -> None:
        """Nothing: a trial server ends with its release, and servers follow the channel file by themselves."""

    def serves(self, champion: Champion) -> bool:
        return True

    def roll_out(self, stored: StoredPolicy, progress: Progress, switch: Callable[[], Channel]) -> Channel:
        with contextlib.ExitStack() as stack:
            with progress.step("start"):
                server = stack.enter_context(candidate.running(stored.uri, self.port, self.command))
                progress.detail = f"process {server.process.pid} on port {server.port}"
            prove(server, stored, progress, self.health_seconds, settling=False)
            with progress.step("stop"):
                stack.close()
        with progress.step("switch"):
            return switch()

    def halfway(self, channel: Channel) -> None:
        return None

    def prove(self, champion: Champion) -> None:
        """Nothing more: its files, which have passed their self-test, are all that it needs."""

    def describe(self, channel: Channel | None) -> list[str]:
        return []
