"""Every error this project raises on purpose, and who must act on it.

    HimariError
    ├── ConfigurationError   whoever started it: an argument or a setting is wrong
    ├── DataError            whoever supplied the data: file, row, column and value are named
    │   └── StoreError           whoever runs the machine: a store cannot be read or written now
    ├── SourceError          wait, or check the network: a remote source did not answer in full
    │   ├── CircuitOpenError     nobody: it failed too often, and was not asked this time
    │   └── RefusedError         the engineer: it answers, but refuses what we send (HTTP 4xx)
    │       └── UnauthorisedError    whoever runs it: it refuses the key or the token (HTTP 401, 403)
    ├── ContractError        whoever deploys: two sides speak different state contracts
    ├── PolicyError          whoever released it: a policy file is damaged or fails its self-test
    ├── TrainingError        the engineer: training cannot start, or ended in numbers that are not finite
    │   ├── LostWorkerError       whoever runs the machine: a process of the training was killed; try again
    │   └── NothingToLearnError   whoever supplied the data: a constant price, or a chain that never trades
    ├── EvaluationError      the engineer: a backtest was asked of a record that cannot carry it
    ├── ReleaseError         whoever releases: the candidate was not put into service, the champion still serves
    └── PipelineError        the engineer: a step failed, or the graph ran another way than it must

Messages say what was wrong, where, and what to do. Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

__all__ = [
    "CircuitOpenError",
    "ConfigurationError",
    "ContractError",
    "DataError",
    "EvaluationError",
    "HimariError",
    "LostWorkerError",
    "NothingToLearnError",
    "PipelineError",
    "PolicyError",
    "RefusedError",
    "ReleaseError",
    "SourceError",
    "StoreError",
    "TrainingError",
    "UnauthorisedError",
]


class HimariError(Exception):
    """Base of every error raised on purpose; command lines print it without a traceback."""


class ConfigurationError(HimariError):
    """An argument or a setting is wrong; the message names it and its allowed range."""


class DataError(HimariError):
    """Market data breaks a rule; the message names file, row, column, value and remedy."""


class StoreError(DataError):
    """A store on this machine could not be read or written (full, locked, gone); trying again may help."""


class SourceError(HimariError):
    """A remote source did not answer, or answered less than was asked; trying again may help."""


class CircuitOpenError(SourceError):
    """A remote source failed too often and was not asked; the message says for how long it is left alone."""


class RefusedError(SourceError):
    """A remote source refuses our request as wrong (HTTP 4xx); asking the same again does not help."""


class UnauthorisedError(RefusedError):
    """A remote source does not know us, or does not let us: another key, token or permission is needed."""


class ContractError(HimariError):
    """Two sides were built for different state contracts; the message names both versions."""

    def __init__(self, theirs: str, ours: str, where: str) -> None:
        self.theirs = theirs
        self.ours = ours
        super().__init__(
            f"{where} was built for state contract {theirs!r}, this program speaks {ours!r}: "
            "use a policy trained under this contract, or the program version that matches it"
        )


class PolicyError(HimariError):
    """A policy file is missing, damaged, or does not reproduce its own golden pairs."""


class TrainingError(HimariError):
    """Training cannot start, or produced numbers that are not finite."""


class LostWorkerError(TrainingError):
    """A process of the training ended by itself, mostly for want of memory; it says nothing of what was trained."""


class NothingToLearnError(TrainingError):
    """The history holds nothing that a policy could learn from: a constant price, or a chain that never trades."""


class EvaluationError(HimariError):
    """A backtest was asked of a record that is too short or not usable; nothing was judged."""


class ReleaseError(HimariError):
    """A candidate was not put into service; the message says at which step, the champion is untouched."""


class PipelineError(HimariError):
    """A pipeline step failed or the graph ran otherwise than it must; nothing was released by it."""
