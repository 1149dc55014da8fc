from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from layer3.ab.assignment import Design
from layer3.breaker import BreakerConfig
from layer3.errors import ConfigurationError
from layer3.live.configuration import Layer3Config, RiskSettings, load_config
from layer3.sizing.config import ChainConfig, KellyConfig, load_chain_config

CONFIG = Path(__file__).parents[2] / "config"
GUIDE = """
layer3_rl:
  enable_rl: true
  deployment_mode: "cloud"  # "cloud" or "local"
  rl_api_endpoint: "https://himari-rl-api-abc123-uc.a.run.app/predict"
  rl_timeout_ms: 150
  fallback_on_timeout: true
  fallback_multiplier: 1.0  # Use base Kelly if API fails
  rl_model_path: "models/ppo_final.pt"  # Used if deployment_mode: "local"
  log_rl_predictions: true
  log_level: "INFO"
portfolio:
  initial_value: 250000.0
  max_position_pct: 0.4
  kelly_fraction: 0.2
risk:
  max_daily_loss_pct: 0.03
  max_leverage: 1.5
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "layer3.yaml"
    path.write_text(text)
    return path


def test_the_shipped_file_is_the_defaults_and_leaves_nothing_out() -> None:
    assert load_config(CONFIG / "layer3.yaml") == Layer3Config() == load_config(None)

    def keys(value: Any) -> Any:
        return {k: keys(v) for k, v in value.items()} if isinstance(value, dict) else None

    assert keys(yaml.safe_load((CONFIG / "layer3.yaml").read_text())) == keys(Layer3Config().as_json())


def test_the_chain_is_the_sizing_file_under_a_key() -> None:
    assert load_config(CONFIG / "layer3.yaml").chain == load_chain_config(CONFIG / "sizing.yaml")


def test_every_key_of_the_shipped_file_is_explained() -> None:
    lines = (CONFIG / "layer3.yaml").read_text().splitlines()
    own = lines[: lines.index(next(line for line in lines if line.startswith("chain:")))]
    assert [line for line in own if line and "# " not in line] == []


def test_the_older_file_is_accepted_as_it_stands(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GUIDE))
    assert (config.deployment_mode, config.portfolio_value) == ("cloud", 250_000.0)
    assert config.policy.endpoint == "https://himari-rl-api-abc123-uc.a.run.app"
    assert (config.policy.timeout_ms, config.policy.enabled, config.policy.model_path) == (150.0, True, None)
    assert config.chain == ChainConfig(max_exposure=0.4, kelly=KellyConfig(kelly_share=0.2))
    assert (config.risk.max_daily_loss, config.risk.max_leverage) == (0.03, 1.5)
    assert (config.logging.level, config.logging.policy_answers) == ("INFO", True)


@pytest.mark.parametrize(
    ("old", "new", "path", "value"),
    [
        ('"cloud"', '"local"', ("policy", "model_path"), "models/ppo_final.pt"),
        ("fallback_on_timeout: true", "fallback_on_timeout: false", ("policy", "fallback_multiplier"), 0.0),
        ("fallback_multiplier: 1.0", "fallback_multiplier: 0.5", ("policy", "fallback_multiplier"), 0.5),
        ("enable_rl: true", "enable_rl: false", ("policy", "enabled"), False),
        ('"INFO"', '"DEBUG"', ("logging", "level"), "DEBUG"),
        ("rl_timeout_ms: 150", "rl_timeout_ms: 90", ("policy", "timeout_ms"), 90.0),
    ],
)
def test_what_the_older_keys_mean(tmp_path: Path, old: str, new: str, path: tuple[str, str], value: object) -> None:
    assert old in GUIDE
    config = load_config(write(tmp_path, GUIDE.replace(old, new, 1)))
    assert getattr(getattr(config, path[0]), path[1]) == value


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("rl_timeout_ms", "rl_timeout_sm", r"unknown key 'layer3_rl.rl_timeout_sm'; did you mean 'rl_timeout_ms'"),
        ("max_leverage", "max_levrage", r"unknown key 'risk.max_levrage'; did you mean 'max_leverage'"),
        ("portfolio:", "portfolios:", r"unknown key 'portfolios'; did you mean 'portfolio'"),
        ("max_leverage: 1.5", "max_leverage: 99", r"risk.max_leverage is 99: Input should be less than"),
        ("max_position_pct: 0.4", "max_position_pct: 0.9", r"max_exposure is 0.9"),
        ("fallback_on_timeout: true", "fallback_on_timeout: perhaps", r"fallback_on_timeout is 'perhaps'"),
        ("initial_value: 250000.0", "initial_value: 0", r"portfolio_value is 0"),
    ],
)
def test_an_older_file_that_is_wrong(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load_config(write(tmp_path, GUIDE.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("risk: {max_levrage: 1}", r"unknown key 'risk.max_levrage'; did you mean 'max_leverage'"),
        ("rsk: {}", r"unknown key 'rsk'; did you mean 'risk'"),
        ("chain: {kelly: {kelly_sahre: 1}}", r"unknown key 'chain.kelly.kelly_sahre'; did you mean 'kelly_share'"),
        ("chain: {kelly: {kelly_share: 5}}", r"KellyConfig.kelly_share is 5; it must be a number in \(0, 1\]"),
        ("breaker: {faliures: 1}", r"unknown key 'breaker.faliures'; did you mean 'failures'"),
        ("breaker: {failures: 0}", r"failures is 0"),
        ("breaker: {failures: null}", r"failures|breaker"),
        ("risk: {max_leverage: .nan}", r"risk.max_leverage is nan: Input should be a finite number"),
        ("risk: {max_leverage: true}", r"risk.max_leverage is True: a truth value is no number"),
        ("risk: 3", r"risk is 3"),
        ("risk: {stale_signal_s: 0, max_daily_loss: 2}", r"max_daily_loss is 2.*stale_signal_s is 0"),
        ("deployment_mode: hybrid", r"deployment_mode is 'hybrid'"),
        ("deployment_mode: cloud", r"policy.endpoint is not given"),
        ("policy: {endpoint: somewhere}", r"endpoint 'somewhere' must look like http"),
        ("policy: {endpoint: 'http://[x'}", r"endpoint"),
        ("portfolio_value: -5", r"portfolio_value is -5"),
        ("experiment: {untis: signal}", r"unknown key 'experiment.untis'; did you mean 'unit'"),
        ("experiment: {unit: hour}", r"experiment.unit is 'hour'"),
        ("experiment: {ramp: [[0, 0.5], [3, 0.2]]}", r"experiment: Design.ramp is .*shares that never fall"),
        ("experiment: {ramp: [[0, 1.5]]}", r"no day from 0 with a share in \[0, 1\]"),
        ("experiment: {daily_loss: 2}", r"Design.daily_loss is 2.0; it must be a number in \(0, 1\]"),
        ("experiment: {forced: rl}", r"experiment.forced is 'rl'"),
        ("experiment: {wait_ms: -1}", r"experiment.wait_ms is -1"),
        ("risk: {kill_file: ''}", r"risk.kill_file is '': a name is not empty and holds no control character"),
        ('state: {path: "a\\0b"}', r"state.path is 'a.x00b'"),
        ("metrics: {host: ''}", r"metrics.host is ''"),
        ('experiment: {name: "\\ud800"}', r"Design.name is '.ud800'; it must be printable"),
        ("breaker: {failures: .inf}", r"BreakerConfig.failures is inf; it must be a whole number in"),
        ("breaker: {window_calls: 100.0}", r"BreakerConfig.window_calls is 100.0; it must be a whole number in"),
        ("a: [", r"is not YAML"),
        ("[1]", r"the document is \[1\]"),
        ("risk: {}\nrisk: {}", r"'risk' stands there twice"),
    ],
)
def test_refusals_name_the_key_and_the_file(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        load_config(write(tmp_path, text))
    assert "layer3.yaml" in str(caught.value)


def test_an_experiment_is_the_design_of_the_same_name() -> None:
    config = load_config(None, {"experiment": {"path": "ab.sqlite", "ramp": [[0, 0.1], [3, 0.5]], "unit": "strategy"}})
    design = Design("policy-against-kelly", unit="strategy", ramp=((0.0, 0.1), (3.0, 0.5)))
    assert config.experiment.design == design
    assert Layer3Config().experiment.design == Design("policy-against-kelly")
    again = Layer3Config(**json.loads(json.dumps(config.as_json())))
    assert again.digest() == config.digest() != Layer3Config().digest()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read the configuration .*absent\.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_the_environment_overrides_the_file_and_code_overrides_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "risk: {max_leverage: 1.1, stale_signal_s: 7}\nchain: {kelly: {kelly_share: 0.1}}")
    for name, value in {
        "HIMARI_L3__RISK__MAX_LEVERAGE": "1.2",
        "HIMARI_L3__CHAIN__KELLY__KELLY_SHARE": "0.3",
        "HIMARI_L3__CHAIN__CASCADE__FUNDING__WEIGHT": "0.15",
        "HIMARI_L3__CHAIN__ALLOW_SHORTS": "false",
        "himari_l3__breaker__failures": "7",
        "HIMARI_L3__PORTFOLIO_VALUE": "5e4",
        "HIMARI_L3__RISK__KILL_SIGNAL": "true",
        "HIMARI_L3__LOGGING__LEVEL": "DEBUG",
    }.items():
        monkeypatch.setenv(name, value)
    config = load_config(path, {"logging": {"level": "ERROR"}})
    assert (config.risk.max_leverage, config.risk.stale_signal_s, config.risk.kill_signal) == (1.2, 7.0, True)
    assert (config.chain.kelly.kelly_share, config.chain.allow_shorts) == (0.3, False)
    assert config.chain.cascade.funding.weight == 0.15
    assert (config.breaker, config.portfolio_value) == (BreakerConfig(failures=7), 50_000.0)
    assert config.logging.level == "ERROR"
    assert Layer3Config() == Layer3Config.model_validate({})  # built directly, nothing of it is read
    assert Layer3Config().risk.max_leverage == 2.0


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HIMARI_L3__RSK__MAX_LEVERAGE", "1", r"HIMARI_L3__RSK__MAX_LEVERAGE: unknown key 'rsk'; did you mean 'risk'"),
        ("HIMARI_L3_RISK__MAX_LEVERAGE", "1", r"HIMARI_L3_RISK__MAX_LEVERAGE: a setting begins with HIMARI_L3__"),
        ("HIMARI_L3__RISK__MAX_LEVRAGE", "1", r"unknown key 'risk.max_levrage'; did you mean 'max_leverage'"),
        ("HIMARI_L3__CHAIN__KELLY__SHARE", "1", r"unknown key 'chain.kelly.share'"),
        ("HIMARI_L3__RISK__MAX_LEVERAGE", "much", r"risk.max_leverage is 'much'"),
        ("HIMARI_L3__BREAKER__FAILURES", "some", r"breaker.failures is the text 'some'"),
        ("HIMARI_L3__RISK", "much", r"begin with HIMARI_L3__: .*\"risk\".*is said as JSON"),
        ("HIMARI_L3__PORTFOLIO_VALUE__X", "1", r"HIMARI_L3__PORTFOLIO_VALUE__X: portfolio_value is one value"),
    ],
)
def test_a_wrong_variable_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=says):
        load_config(None)


def test_a_variable_can_take_a_file_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIMARI_L3__RISK__KILL_FILE", "null")
    assert load_config(write(tmp_path, "risk: {kill_file: stop}")).risk.kill_file is None


def test_the_hash_is_of_the_effective_settings(tmp_path: Path) -> None:
    same = load_config(write(tmp_path, "portfolio_value: 100000\n# a comment\nrisk: {max_leverage: 2}\n"))
    assert same.digest() == Layer3Config().digest()
    assert len(same.digest()) == 64
    others = [
        {"risk": {"max_leverage": 1.9}},
        {"chain": {"cascade": {"netflow": {"weight": 0.16}}}},
        {"breaker": {"jitter": 0.2}},
        {"policy": {"model_path": "."}},
    ]
    assert len({load_config(None, change).digest() for change in others} | {same.digest()}) == 5


def test_it_cannot_be_changed_and_takes_sections_as_objects() -> None:
    config = Layer3Config(risk=RiskSettings(max_leverage=1.0), chain=ChainConfig(max_exposure=0.1))
    assert (config.risk.max_leverage, config.chain.max_exposure) == (1.0, 0.1)
    with pytest.raises(ValidationError):
        config.portfolio_value = 1.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.chain.max_exposure = 0.2  # type: ignore[misc]
