"""Every setting of layer 3 in production, typed and bounded: a YAML file, under what the environment says.

``config/layer3.yaml`` holds the defaults with comments. An environment variable overrides the file:
``HIMARI_L3__RISK__MAX_LEVERAGE=1.5`` is ``risk.max_leverage``, and so on to any depth; the word ``null`` is none.
What a caller passes in code overrides both. A key that nobody knows is refused by name, wherever it stands.

The sizing chain's numbers and the breaker's are those of :class:`layer3.sizing.config.ChainConfig` and
:class:`layer3.breaker.BreakerConfig`, which check themselves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from layer3 import settings
from layer3.ab.assignment import Arm, Design, UnitKind
from layer3.breaker import BreakerConfig
from layer3.errors import ConfigurationError
from layer3.live import guide
from layer3.net.address import Place
from layer3.sizing.config import ChainConfig

__all__ = [
    "DecisionLogSettings",
    "ExperimentSettings",
    "Layer3Config",
    "LoggingSettings",
    "MarketSettings",
    "MetricsSettings",
    "PolicySettings",
    "RiskSettings",
    "StateSettings",
    "at_start",
    "digest_of",
    "load_config",
]

_PREFIX: Final = "HIMARI_L3__"
_T = TypeVar("_T")


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a truth value is no number")
    return value


Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_number)]


def _printable(value: str) -> str:
    # "" would be this folder, and of every address of a host this machine's.
    if not value.isprintable() or not value.strip():
        raise ValueError("a name is not empty and holds no control character")
    return value


#: A path or a host; where there may be none, null says so.
Name = Annotated[str, AfterValidator(_printable)]


def _scalars(values: object) -> object:
    """``values`` with the texts in it, which is all that an environment has, read as YAML reads them."""
    if isinstance(values, Mapping):
        return {key: _scalars(value) for key, value in values.items()}
    if isinstance(values, str):
        return settings.document(f"value: {values}", repr(values))["value"]
    return values


def _built(name: str, default: _T) -> Any:
    """Validator of a section that is a dataclass of its own: a mapping over ``default``, or such a dataclass."""

    def validate(value: object) -> _T:
        if isinstance(value, type(default)):
            return value
        try:
            return settings.build(default, _scalars(value), name)
        except TypeError as error:  # a null, or a list, where a bound is compared with a number
            raise ConfigurationError(f"{name}: a value has the wrong type: {error}") from error

    return PlainValidator(validate)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PolicySettings(_Section):
    """The policy whose multiplier scales the base size."""

    enabled: bool = True
    #: Base address of the prediction server; a trailing ``/predict`` is dropped.
    endpoint: str | None = None
    #: For a whole call: connecting, sending, every byte of the answer.
    timeout_ms: Number = Field(default=150.0, gt=0.0, le=60_000.0)
    #: Send an ID token with each call (a private Cloud Run service asks for one).
    authenticate: bool = False
    #: A file with nothing but an API key, sent with each call; followed while running.
    api_key_file: Name | None = None
    #: A policy folder, or a store that names its champion.
    model_path: Name | None = None
    #: Where no policy answers; 1.0 is the base Kelly size, 0.0 trades nothing.
    fallback_multiplier: Number = Field(default=1.0, ge=0.0, le=2.0)

    @model_validator(mode="before")
    @classmethod
    def _base_address(cls, values: Any) -> Any:
        endpoint = values.get("endpoint") if isinstance(values, Mapping) else None
        if not isinstance(endpoint, str):
            return values
        Place.parse(endpoint)
        return {**values, "endpoint": endpoint.rstrip("/").removesuffix("/predict")}


class RiskSettings(_Section):
    """Limits beside the chain's own cap, ``chain.max_exposure``; loss and leverage as fractions of the portfolio."""

    max_daily_loss: Number = Field(default=0.02, gt=0.0, le=1.0)
    max_leverage: Number = Field(default=2.0, gt=0.0, le=10.0)
    stale_signal_s: Number = Field(default=5.0, gt=0.0, le=86_400.0)
    stale_price_s: Number = Field(default=5.0, gt=0.0, le=86_400.0)
    #: How far ahead of this machine's clock a signal or price may be.
    max_future_s: Number = Field(default=1.0, ge=0.0, le=60.0)
    #: Cascade feeds, liquidations included, that must be there for a size at all. Beyond these a missing feed stops
    #: nothing: the others carry the whole risk.
    min_feeds: Whole = Field(default=1, ge=0, le=6)
    #: While this file exists every size is zero.
    kill_file: Name | None = None
    #: Whether SIGUSR1 makes every size zero.
    kill_signal: bool = False


class MarketSettings(_Section):
    """What the engine remembers of each symbol."""

    #: Length of the bars that the policy was trained on: of the price buffer and of the regime's confirmations.
    bar_seconds: Whole = Field(default=3_600, ge=60, le=86_400)
    max_symbols: Whole = Field(default=256, ge=1, le=100_000)
    #: Closed trades remembered for each symbol, so that none counts twice; also the most in one call.
    seen_trades: Whole = Field(default=10_000, ge=10, le=1_000_000)


class StateSettings(_Section):
    """Where what was learnt is kept over a restart; without a path it is not."""

    path: Name | None = None
    every_s: Number = Field(default=60.0, gt=0.0, le=86_400.0)
    #: A snapshot that cannot be read stops the start, unless this says to begin anew.
    start_fresh_if_unreadable: bool = False


class MetricsSettings(_Section):
    """Prometheus metrics and where they are exposed."""

    enabled: bool = True
    host: Name = "127.0.0.1"
    port: Whole = Field(default=9_108, ge=0, le=65_535)


class DecisionLogSettings(_Section):
    """The append-only log of decisions; without a path there is none."""

    path: Name | None = None
    #: When a record must be on the disk: before the decision is told, every ``interval_s``, or when it suits.
    fsync: Literal["each", "interval", "none"] = "each"
    interval_s: Number = Field(default=1.0, gt=0.0, le=3_600.0)
    #: A new file begins at this size.
    max_bytes: Whole = Field(default=64 * 2**20, ge=1)


class LoggingSettings(_Section):
    """Structured logs on standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    #: One line for each answer of a policy, beside the one whenever another source gives them.
    policy_answers: bool = False


class ExperimentSettings(_Section):
    """Policy against Kelly on the runner's decisions; without a path there is none.

    From ``name`` to ``daily_loss`` as :class:`layer3.ab.assignment.Design` says, which bounds them.
    """

    path: Name | None = None
    #: How long an answer waits at most until its record is on the disk; it goes out then, and the record follows.
    wait_ms: Number = Field(default=50.0, ge=0.0, le=60_000.0)
    #: Gives every decision this arm, for tests; left out of the analysis.
    forced: Arm | None = None
    name: str = "policy-against-kelly"
    unit: UnitKind = "signal"
    ramp: tuple[tuple[Number, Number], ...] = ((0.0, 0.5),)
    planned_days: Number = 28.0
    expected_units: Whole = 2_000
    least_units: Whole = 50
    level: Number = 0.95
    smallest_effect: Number = 0.05
    max_drawdown: Number = 0.10
    daily_loss: Number = 0.02

    @property
    def design(self) -> Design:
        """The experiment before it begins."""
        return Design(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Design)})

    @model_validator(mode="after")
    def _sound(self) -> Self:
        try:
            self.design  # noqa: B018  # is checked when it is made
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return self


class Layer3Config(BaseSettings):
    """The whole configuration, immutable. Building it directly reads neither file nor environment: :func:`load_config`.

    A value that cannot be used raises ``pydantic.ValidationError`` or :class:`ConfigurationError`.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    #: ``cloud`` asks the server first and then the local file, ``local`` the file alone.
    deployment_mode: Literal["cloud", "local"] = "local"
    #: Dollars; what fractions of equity are taken of.
    portfolio_value: Number = Field(default=100_000.0, gt=0.0, le=1e15)
    #: Take up a changed file while running.
    hot_reload: bool = True
    chain: Annotated[ChainConfig, _built("chain", ChainConfig())] = ChainConfig()
    policy: PolicySettings = PolicySettings()
    breaker: Annotated[BreakerConfig, _built("breaker", BreakerConfig())] = BreakerConfig()
    risk: RiskSettings = RiskSettings()
    market: MarketSettings = MarketSettings()
    state: StateSettings = StateSettings()
    metrics: MetricsSettings = MetricsSettings()
    decision_log: DecisionLogSettings = DecisionLogSettings()
    experiment: ExperimentSettings = ExperimentSettings()
    logging: LoggingSettings = LoggingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments alone; :func:`load_config` reads the rest and says where each came from."""
        return (init_settings,)

    @model_validator(mode="after")
    def _somebody_to_ask(self) -> Self:
        if self.policy.enabled and self.deployment_mode == "cloud" and self.policy.endpoint is None:
            raise ValueError(
                "deployment_mode is 'cloud' and policy.endpoint is not given: name the server, "
                "say deployment_mode: local, or policy.enabled: false"
            )
        return self

    def as_json(self) -> dict[str, Any]:
        """Every effective setting as plain data."""
        dumped: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                dumped[name] = dataclasses.asdict(value)
            else:
                dumped[name] = value.model_dump() if isinstance(value, BaseModel) else value
        return dumped

    def digest(self) -> str:
        """sha256 of every effective setting, hexadecimal: equal where nothing differs, however it was said."""
        return digest_of(self.as_json())


_KNOWN: Final = tuple(Layer3Config.model_fields)
#: Those of them that are no section.
_SINGLE: Final = ("deployment_mode", "portfolio_value", "hot_reload")


def digest_of(plain: Mapping[str, Any]) -> str:
    """:meth:`Layer3Config.digest` of settings as plain data, also those of an older program."""
    text = json.dumps(_as_floats(plain), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_floats(value: Any) -> Any:
    """1 and 1.0 are one setting."""
    if isinstance(value, dict):
        return {key: _as_floats(entry) for key, entry in value.items()}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def at_start(before: Layer3Config, now: Layer3Config) -> list[str]:
    """The settings that differ and that a running program does not take up, dotted."""
    paths = ("state", "metrics", "decision_log", "experiment", "risk.kill_signal", "logging.level")
    return [path for path in paths if operator.attrgetter(path)(before) != operator.attrgetter(path)(now)]


def load_config(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Layer3Config:
    """The configuration of a file (``None``: the defaults), under the environment, under ``overrides``.

    The file has the shape of ``config/layer3.yaml``, or that of the older ``gcp_deployment.yaml``
    (:mod:`layer3.live.guide`). ``overrides`` is nested like the file.

    Raises
    ------
    ConfigurationError : no such file, an empty one, not YAML, an unknown key (with the nearest known one), or a value
        that cannot be used; all that pydantic finds wrong is in one message
    """
    origin = "the defaults" if path is None else str(path)
    found: Mapping[str, Any] = {}
    if path is not None:
        found = settings.document(settings.read(Path(path), "the configuration"), origin)
        if not found:  # a full disk and a half-written file look like this, and must not mean the defaults
            raise ConfigurationError(f"{origin} holds no setting: write one, portfolio_value for example")
        for key in found:
            if not isinstance(key, str):
                raise ConfigurationError(f"{origin}: {settings.unknown(str(key), str(key), _KNOWN)}")
        if guide.is_guide(found):
            found = guide.translate(found, origin)
    merged = _over(_over(found, _environment()), overrides or {})
    try:
        config = Layer3Config(**merged)
        config.digest()
    except ValidationError as error:
        raise ConfigurationError(f"{origin}: {'; '.join(_sentence(problem) for problem in error.errors())}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{origin}: {error}") from error
    except OverflowError as error:
        raise ConfigurationError(f"{origin}: a whole number in it is too large: at most 1e308") from error
    return config


def _environment() -> dict[str, Any]:
    for name in sorted(os.environ):
        if name.upper().startswith(_PREFIX[:-1]):
            if not name.upper().startswith(_PREFIX):
                raise ConfigurationError(f"environment variable {name}: a setting begins with {_PREFIX}")
            key, *inner = name[len(_PREFIX) :].lower().split("__")
            if key not in _KNOWN:
                raise ConfigurationError(f"environment variable {name}: {settings.unknown(key, key, _KNOWN)}")
            if inner and key in _SINGLE:
                raise ConfigurationError(f"environment variable {name}: {key} is one value and has no settings in it")
    source = EnvSettingsSource(Layer3Config, env_prefix=_PREFIX, env_nested_delimiter="__", env_parse_none_str="null")
    try:
        return source()
    except SettingsError as error:
        raise ConfigurationError(
            f"environment variables that begin with {_PREFIX}: {error}: a whole section, and a list, is said as JSON"
        ) from error


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _over(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _sentence(problem: Any) -> str:
    where = [str(part) for part in problem["loc"]]
    path = ".".join(where)
    if problem["type"] == "extra_forbidden":
        kind: Any = Layer3Config
        for part in where[:-1]:
            kind = kind.model_fields[part].annotation
        return settings.unknown(path, where[-1], tuple(kind.model_fields))
    said = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(problem["input"], Mapping | BaseModel) else f" is {problem['input']!r}"
    return f"{path}{shown}: {said}" if path else said
