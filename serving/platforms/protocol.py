"""Where a model can be released: what every platform does, and how its steps are told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from layer3.champion import Champion, Channel
from layer3.errors import HimariError, ReleaseError
from serving import proof
from serving.models import StoredPolicy

__all__ = ["Platform", "Progress", "Step", "prove"]


@dataclass(frozen=True)
class Step:
    """One finished step of a release and how many seconds it took."""

    name: str
    seconds: float
    detail: str


class Progress:
    """Times the steps of a release, and turns what stops one into a ReleaseError that names it.

    ``model_id`` is who is released, ``detail`` what the step under way has to say. ``undo`` puts back what the
    steps have changed so far, and returns in a sentence what serves then; ``done`` once the release stands whatever
    follows. As a context manager it undoes whatever ends the block early, Ctrl-C between two steps included.
    """

    def __init__(self, present: Channel | None, clock: Callable[[], float], log: Callable[[str], None]) -> None:
        self._clock = clock
        self._log = log
        self._undone: str | None = None
        self.steps: list[Step] = []
        self.model_id = "the candidate"
        self.detail = ""
        self.done = False
        untouched = f"{present.champion.model_id} still serves." if present else "nothing serves, as before."
        self.undo: Callable[[], str] = lambda: untouched

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None and not self.done and self._undone is None:
            self._log(self._take_back())

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step: logged as it begins and ends, a ReleaseError if it fails."""
        self.detail = ""
        self._log(f"{name} …")
        began = self._clock()
        try:
            yield
        except (HimariError, OSError) as error:
            if self.done:
                raise ReleaseError(
                    f"{self.model_id} was released and serves, but step {name!r} failed: {error}. "
                    "Run the same command again to finish it."
                ) from error
            said = f"{self.model_id} was not released: step {name!r}: {error}. {self._take_back()}"
            raise ReleaseError(said.rstrip()) from error
        seconds = self._clock() - began
        self.steps.append(Step(name, round(seconds, 4), self.detail))
        self._log(f"{name} ok, {seconds:.2f} s{': ' if self.detail else ''}{self.detail}")

    def _take_back(self) -> str:
        if self._undone is None:
            self._undone = self.undo()
        return self._undone


def prove(
    server: proof.Server, stored: StoredPolicy, progress: Progress, health_seconds: float, settling: bool
) -> None:
    """The three steps that are the same everywhere: health, smoke, parity."""
    policy = stored.policy
    with progress.step("health"):
        proof.wait_until_ready(server, policy, health_seconds, settling=settling)
    with progress.step("smoke"):
        multiplier, confidence = proof.predict(server, policy, policy.manifest["golden"][0]["state"])
        progress.detail = f"multiplier {multiplier:.4f}, confidence {confidence:.4f}"
    with progress.step("parity"):
        worst = proof.check_parity(server, policy)
        progress.detail = f"{len(policy.manifest['golden'])} golden pairs, largest difference {worst:.1e}"


class Platform(Protocol):
    """A place that serves. The store's channel says who is champion; a platform follows it and never leads.

    Every method raises a HimariError where the platform does not answer or refuses.
    """

    def settle(self, channel: Channel | None, progress: Progress) -> None:
        """Bring what serves into the state that ``channel`` records, whatever a release that died has left."""

    def serves(self, champion: Champion) -> bool:
        """Whether a release of ``champion`` would change nothing."""

    def roll_out(self, stored: StoredPolicy, progress: Progress, switch: Callable[[], Channel]) -> Channel:
        """Start the candidate, prove it, and call ``switch``, which records it as champion, at the one right moment.

        A failure before that leaves the champion serving and is a ReleaseError, by way of ``progress``.
        """

    def halfway(self, channel: Channel) -> str | None:
        """What serves instead of the recorded champion alone, as a sentence; None where it is as recorded."""

    def prove(self, champion: Champion) -> None:
        """Raise unless ``champion``, whose files are whole, could serve here at once."""

    def describe(self, channel: Channel | None) -> list[str]:
        """Lines for ``release-status``."""
