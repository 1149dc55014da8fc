from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from layer3.errors import ConfigurationError
from layer3.sizing.config import (
    CascadeConfig,
    ChainConfig,
    ComponentConfig,
    ConformalConfig,
    KellyConfig,
    RegimeConfig,
    SentimentConfig,
    chain_config_text,
    load_chain_config,
)

SHIPPED = Path(__file__).parents[2] / "config" / "sizing.yaml"


def write(folder: Path, text: str) -> Path:
    path = folder / "sizing.yaml"
    path.write_text(text)
    return path


def test_the_shipped_file_is_the_defaults() -> None:
    assert load_chain_config(SHIPPED) == ChainConfig()


def test_the_shipped_file_leaves_nothing_out() -> None:
    import dataclasses

    import yaml

    def keys(value: Any) -> Any:
        return {k: keys(v) for k, v in value.items()} if isinstance(value, dict) else None

    assert keys(yaml.safe_load(SHIPPED.read_text())) == keys(dataclasses.asdict(ChainConfig()))


def test_what_a_file_leaves_out_keeps_its_default(tmp_path: Path) -> None:
    config = load_chain_config(write(tmp_path, "allow_shorts: false\nkelly: {kelly_share: 0.5}\n"))
    assert config == ChainConfig(allow_shorts=False, kelly=KellyConfig(kelly_share=0.5))
    assert load_chain_config(write(tmp_path, "# nothing\n")) == ChainConfig()
    nested = load_chain_config(write(tmp_path, "cascade: {funding: {weight: 0.3}}"))
    assert nested.cascade.funding == ComponentConfig(0.0005, 0.003, 0.01, 0.3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kelly: {kelly_sahre: 0.5}", r"unknown key 'kelly.kelly_sahre'; did you mean 'kelly_share'"),
        ("zzz: 1", r"unknown key 'zzz'; known here: allow_shorts"),
        ("cascade: {funding: {wieght: 1}}", r"'cascade.funding.wieght'; did you mean 'weight'"),
        ("kelly: 3", r"kelly is 3; it must be a mapping"),
        ("[1, 2]", r"the document is \[1, 2\]"),
        ("kelly: {prior_alpha: ten}", r"kelly.prior_alpha is the text 'ten'"),
        ("cascade: {liquidation: {extreme: 1e9}}", r"write 1.0e\+9"),
        ("kelly: {prior_alpha: true}", r"prior_alpha is True; it must be a number in \(0, inf\)"),
        ("kelly: {prior_alpha: }", r"prior_alpha is None"),
        ("kelly: {prior_alpha: .nan}", r"prior_alpha is nan"),
        ("max_exposure: 0.9", r"ChainConfig.max_exposure is 0.9; it must be a number in \(0, 0.5\]"),
        ("allow_shorts: maybe", r"allow_shorts is 'maybe'; it must be true or false"),
        ("regime: {confirmations: 2.5}", r"confirmations is 2.5; it must be a whole number in \[1, inf\)"),
        ("a: [", r"is not YAML"),
    ],
)
def test_refusals_name_the_field(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        load_chain_config(write(tmp_path, text))
    assert "sizing.yaml" in str(caught.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        load_chain_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (KellyConfig, "prior_beta", 0.0),
        (KellyConfig, "signal_weight", 1.1),
        (KellyConfig, "max_fraction", 0.6),
        (KellyConfig, "horizon_hours", math.inf),
        (KellyConfig, "default_daily_volatility", 0.001),
        (KellyConfig, "risk_weight", -0.1),
        (ConformalConfig, "coverage", 1.0),
        (ConformalConfig, "min_residuals", 8),
        (ConformalConfig, "window", 19),
        (SentimentConfig, "weight", 1.0),
        (SentimentConfig, "neutral_high", 0.3),
        (RegimeConfig, "crisis", 2.5),
        (RegimeConfig, "confirmations", 0),
        (CascadeConfig, "saturation", 1.0),
        (CascadeConfig, "exit_above", 1.0),
        (CascadeConfig, "reduce_75_above", 0.3),
        (CascadeConfig, "reduce_75_factor", 0.6),
        (ChainConfig, "max_exposure", math.nan),
    ],
)
def test_values_out_of_range(kind: Any, field: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"{kind.__name__}.{field} is {value!r}; it must be"):
        kind(**{field: value})


def test_a_component_out_of_order() -> None:
    with pytest.raises(ConfigurationError, match=r"ComponentConfig\.trigger is 0\.1"):
        ComponentConfig(normal=0.2, trigger=0.1, extreme=0.3, weight=0.1)


def test_too_few_residuals_for_the_coverage_are_refused() -> None:
    assert ConformalConfig(min_residuals=9).min_residuals == 9
    with pytest.raises(ConfigurationError, match=r"min_residuals is 20; .* \[99, inf\)"):
        ConformalConfig(coverage=0.99)


def test_the_text_of_a_file_is_checked_and_none_is_empty(tmp_path):
    path = write(tmp_path, "kelly: {kelly_share: 0.5}\n")
    assert chain_config_text(path) == "kelly: {kelly_share: 0.5}\n"
    assert chain_config_text(None) == ""
    with pytest.raises(ConfigurationError, match="kelly_share"):
        chain_config_text(write(tmp_path, "kelly: {kelly_share: 50}"))
