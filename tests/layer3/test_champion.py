"""The champion is read in one place: folder or bucket, verified, or a sentence that says what is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layer3 import champion, contract, storage
from layer3.agent.policy import Policy
from layer3.agent.policy_file import FILES
from layer3.champion import CHANNEL, Champion, Channel
from layer3.errors import ContractError, PolicyError, ReleaseError
from tests.agent.worlds import make_policy

HELD_OUT = np.datetime64("2023-01-10T00:00:00", "ns").astype(np.int64)
DATA = {
    "sha256": "ab" * 32,
    "start": "2022-01-01T00:00:00+00:00",
    "end": "2022-12-31T23:00:00+00:00",
    "interval_seconds": 3_600,
}
INFO = {"data_sha256": "ab" * 32, "synthetic": False, "symbol": "SYNTH-USD"}


def release(store: str, folder: Path, **changes: Any) -> Policy:
    """Put a policy into ``store`` and name it; ``changes`` are fields of the channel file."""
    policy = make_policy(folder)
    for name in FILES:
        storage.write_bytes(storage.join(store, "models", policy.model_id, name), (folder / name).read_bytes())
    named = {"model_id": policy.model_id, "policy_sha256": policy.manifest["policy_sha256"]} | changes
    entry = Champion(**named, contract=contract.VERSION, released_at="2026-01-01T00:00:00+00:00", run_id="run-1")
    storage.write_bytes(storage.join(store, *CHANNEL), Channel(entry).to_json().encode())
    return policy


def test_nothing_serves_before_the_first_release(store: str) -> None:
    assert champion.read(store) is None
    assert champion.load(store) is None


def test_what_serves_is_loaded(store: str, tmp_path: Path) -> None:
    policy = release(store, tmp_path / "policy")
    loaded = champion.load(store)
    assert loaded is not None
    assert loaded.manifest == policy.manifest
    states = np.random.default_rng(1).normal(size=(20, 16))
    np.testing.assert_array_equal(loaded.act(states)[0], policy.act(states)[0])


def test_another_model_than_the_named_one_is_refused(store: str, tmp_path: Path) -> None:
    release(store, tmp_path / "policy", policy_sha256="0" * 64)
    with pytest.raises(PolicyError, match="it is not the model that was released"):
        champion.load(store)


def test_files_that_are_gone_are_refused(store: str, tmp_path: Path) -> None:
    release(store, tmp_path / "policy", model_id="gone")
    with pytest.raises(PolicyError, match="no policy at"):
        champion.load(store)


def test_a_name_that_leads_out_of_the_store_is_refused(store: str, tmp_path: Path) -> None:
    release(store, tmp_path / "policy", model_id="../../etc")
    with pytest.raises(PolicyError, match=r"model id '\.\./\.\./etc'"):
        champion.load(store)


def test_a_damaged_channel_file_is_refused(store: str) -> None:
    storage.write_bytes(storage.join(store, *CHANNEL), b"{")
    with pytest.raises(ReleaseError, match=r"production\.json is not a channel file"):
        champion.load(store)


def test_another_contract_is_refused_by_name(store: str, tmp_path: Path) -> None:
    policy = release(store, tmp_path / "policy")
    where = storage.join(store, "models", policy.model_id, "manifest.json")
    changed = json.loads(storage.read_bytes(where)) | {"contract": "himari-state-12/7"}
    storage.write_bytes(where, json.dumps(changed).encode())
    with pytest.raises(ContractError, match="himari-state-12/7"):
        champion.load(store)


def like(policy: Policy, **changes: Any) -> Policy:
    return Policy(policy.tensors, {**policy.manifest, "synthetic": False, "data": DATA, **changes})


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return make_policy(tmp_path_factory.mktemp("policy"))


def test_a_champion_of_earlier_bars_is_a_fair_match(policy: Policy) -> None:
    assert champion.objection(like(policy), INFO, 3_600, HELD_OUT) is None


@pytest.mark.parametrize(
    "end",
    [
        "2023-01-10T00:00:00+00:00",
        "2024-01-01T00:00:00+00:00",
        "2023-01-09T20:00:00-05:00",
        "2300-01-01T00:00:00+00:00",
        "9999-12-31T23:00:00+00:00",
    ],
)
def test_one_that_knows_the_held_out_bars_is_not(policy: Policy, end: str) -> None:
    told = champion.objection(like(policy, data=DATA | {"end": end}), INFO, 3_600, HELD_OUT)
    assert told is not None
    assert policy.model_id in told
    assert "reach into the held-out bars from 2023-01-10T00:00:00+00:00 on" in told


@pytest.mark.parametrize(("sha256", "synthetic", "fair"), [("cd" * 32, True, True), ("ab" * 32, True, False)])
def test_another_simulated_market_has_only_its_dates_in_common(
    policy: Policy, sha256: str, synthetic: bool, fair: bool
) -> None:
    late = like(policy, synthetic=synthetic, data=DATA | {"sha256": sha256, "end": "2024-01-01T00:00:00+00:00"})
    assert (champion.objection(late, INFO | {"synthetic": synthetic}, 3_600, HELD_OUT) is None) is fair


def test_a_simulated_market_does_not_unseat_the_champion_of_a_real_one(policy: Policy) -> None:
    told = champion.objection(like(policy, synthetic=False), INFO | {"synthetic": True}, 3_600, HELD_OUT)
    assert told is not None
    assert "trained on a real market and these bars are simulated" in told
    assert champion.objection(like(policy, synthetic=True), INFO | {"synthetic": False}, 3_600, HELD_OUT) is None


@pytest.mark.parametrize(
    ("symbol", "fair"),
    [("BTC-USDT", True), ("BTC/USD", True), ("btcusdc", True), ("ETH-USDT", False), ("BTC-EUR", False)],
)
def test_a_champion_of_another_market_is_no_match(policy: Policy, symbol: str, fair: bool) -> None:
    real = INFO | {"synthetic": False, "symbol": symbol}
    told = champion.objection(like(policy, synthetic=False, symbol="BTC-USD"), real, 3_600, HELD_OUT)
    assert (told is None) is fair
    if told is not None:
        assert f"trained on BTC-USD, these bars are of {symbol}" in told


def test_another_bar_length_is_no_match(policy: Policy) -> None:
    told = champion.objection(like(policy), INFO, 86_400, HELD_OUT)
    assert told is not None
    assert "bars of 3,600 seconds, these have 86,400" in told


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        *(DATA | {"end": end} for end in ("long ago", "", "NaT", "2022", None, 1_672_531_200)),
        *(DATA | {"interval_seconds": seconds} for seconds in ("an hour", math.inf, math.nan)),
    ],
)
def test_one_of_unknown_training_is_no_match(policy: Policy, data: Any) -> None:
    told = champion.objection(like(policy, data=data), INFO, 3_600, HELD_OUT)
    assert told is not None
    assert "does not say what it was trained on" in told
