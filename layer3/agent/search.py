"""What may be searched: the one definition of the hyperparameters' space, for every way of searching it.

``make tune`` walks it with optuna, the tuning pipeline with :func:`sample`. Whatever a policy is
trained with, it is scored with the default environment, ``risk_aversion`` included: a trial that
prices no risk must not win by not being charged for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from layer3.errors import ConfigurationError

if TYPE_CHECKING:
    from optuna.trial import Trial

    from layer3.agent.population import Settings

__all__ = ["SPACE", "Choice", "Number", "Values", "default_values", "sample", "to_optuna", "to_settings"]

#: Hyperparameters by the names of :data:`SPACE`.
Values = dict[str, float]


@dataclass(frozen=True, slots=True)
class Number:
    """A number in [low, high], spread evenly over it or, with ``log``, over its logarithm."""

    name: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Trial) -> float:
        """What optuna wants to try."""
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def draw(self, rng: np.random.Generator) -> float:
        """A value at random."""
        if self.whole:
            return int(rng.integers(int(self.low), int(self.high) + 1))
        if self.log:
            return float(np.clip(np.exp(rng.uniform(np.log(self.low), np.log(self.high))), self.low, self.high))
        return float(rng.uniform(self.low, self.high))

    def read(self, value: Any) -> float:
        """``value`` as the settings want it; whole numbers that came as floats are whole again."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            raise ConfigurationError(f"{self.name} is {value!r}, expected a number in [{self.low:g}, {self.high:g}]")
        if not self.whole:
            return float(value)
        if value != int(value):
            raise ConfigurationError(f"{self.name} is {value!r}, expected a whole number")
        return int(value)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few values."""

    name: str
    options: tuple[float, ...]

    def suggest(self, trial: Trial) -> float:
        """What optuna wants to try."""
        return trial.suggest_categorical(self.name, self.options)

    def draw(self, rng: np.random.Generator) -> float:
        """A value at random."""
        return self.options[int(rng.integers(len(self.options)))]

    def read(self, value: Any) -> float:
        """``value`` as the settings want it; whole numbers that came as floats are whole again."""
        if value not in self.options:
            raise ConfigurationError(f"{self.name} is {value!r}, expected one of {', '.join(map(str, self.options))}")
        return self.options[self.options.index(value)]


#: Names are ``ppo.`` and ``environment.`` followed by a field of :class:`~layer3.agent.ppo.PPOConfig` and
#: :class:`~layer3.agent.environment.EnvironmentConfig`.
SPACE: Final[Sequence[Number | Choice]] = (
    Number("ppo.learning_rate", 1e-4, 1e-2, log=True),
    Choice("ppo.batch", (256, 512, 1_024, 2_048)),
    Number("ppo.epochs", 2, 8, whole=True),
    Number("ppo.clip", 0.1, 0.4),
    Number("ppo.target_kl", 0.01, 0.3, log=True),
    Number("ppo.entropy", 1e-5, 3e-2, log=True),
    Choice("ppo.gamma", (0.9, 0.95, 0.98, 0.99, 0.995)),
    Number("ppo.gae_lambda", 0.8, 1.0),
    Number("environment.risk_aversion", 1.0, 20.0, log=True),
)


def default_values() -> Values:
    """What the settings are where nobody says otherwise."""
    from layer3.agent.population import Settings

    settings = Settings()
    values = {}
    for entry in SPACE:
        part, field = entry.name.split(".")
        values[entry.name] = getattr(getattr(settings, part), field)
    return values


def to_optuna(trial: Trial) -> Values:
    """What optuna wants this trial to try."""
    return {entry.name: entry.suggest(trial) for entry in SPACE}


def sample(n: int, seed: int) -> list[Values]:
    """``n`` points of the space: the defaults, and ``n - 1`` at random; the same seed draws the same."""
    if n < 1:
        raise ConfigurationError(f"trials is {n}, expected at least 1")
    rng = np.random.default_rng(seed)
    return [default_values(), *({entry.name: entry.draw(rng) for entry in SPACE} for _ in range(n - 1))]


def to_settings(values: Mapping[str, Any], steps: int) -> Settings:
    """Settings for a training of ``steps`` environment steps; what ``values`` does not name is the default.

    Raises
    ------
    ConfigurationError : a name is not in the space, or a value is outside it
    """
    from layer3.agent.population import Settings

    known = {entry.name: entry for entry in SPACE}
    parts: dict[str, dict[str, Any]] = {"ppo": {"steps": steps}, "environment": {}}
    for name, value in values.items():
        if name not in known:
            raise ConfigurationError(f"{name} is not searched: there are {', '.join(known)}")
        part, field = name.split(".")
        parts[part][field] = known[name].read(value)
    # In one step: a batch, a rate and a number of steps may only be right together.
    default = Settings()
    return Settings(replace(default.ppo, **parts["ppo"]), replace(default.environment, **parts["environment"]))
