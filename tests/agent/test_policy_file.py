"""The policy's file: byte for byte, or refused with the reason."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from layer3 import contract
from layer3.agent.policy import LOG_SD_HIGH, LOG_SD_LOW, OBSERVATION_CLIP, Policy
from layer3.agent.policy_file import GOLDEN_PAIRS, golden_pairs, load_policy, save_policy
from layer3.errors import ContractError, HimariError, PolicyError
from tests.agent.worlds import make_details, make_member, make_policy, make_states, make_tensors

ROOT = Path(__file__).parents[2]
Manifest = dict[str, Any]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_policy(tmp_path / "policy")
    return tmp_path / "policy"


def rewrite(folder: Path, change: Callable[[Manifest], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace_weights(folder: Path, tensors: dict[str, Any]) -> None:
    """Other weights under a manifest that vouches for them: what a hash alone does not catch."""
    blob = safetensors.numpy.save(tensors)
    (folder / "policy.safetensors").write_bytes(blob)
    rewrite(folder, lambda manifest: manifest.update(policy_sha256=hashlib.sha256(blob).hexdigest()))


@pytest.mark.parametrize("members", [1, 3])
def test_a_saved_policy_comes_back_and_answers_the_same(saved: Path, members: int) -> None:
    first = make_policy(saved, make_tensors(members=members))
    loaded = load_policy(saved)
    states = make_states(500, seed=9)
    for mine, theirs in zip(first.act(states), loaded.act(states), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert loaded.manifest == first.manifest
    assert loaded.manifest["contract"] == contract.VERSION
    assert loaded.members == members
    assert loaded.manifest["architecture"] == {
        "members": members,
        "layers": [16, 8, 8, 2],
        "activation": "tanh",
        "distribution": "logit-normal on [0, 2]",
        "log_sd_bounds": [LOG_SD_LOW, LOG_SD_HIGH],
        "observation_clip": OBSERVATION_CLIP,
    }
    assert len(loaded.manifest["golden"]) == GOLDEN_PAIRS == 32
    for name in ("mean", "std"):  # a list for each member
        np.testing.assert_array_equal(np.float32(loaded.manifest["normalisation"][name]), loaded.tensors[name])
    digest = hashlib.sha256((saved / "policy.safetensors").read_bytes()).hexdigest()
    assert loaded.manifest["policy_sha256"] == digest
    assert loaded.model_id == f"synthetic-20221231-{digest[:12]}"


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    make_policy(tmp_path / "one")
    # Another order of the tensors is the same policy.
    make_policy(tmp_path / "two", dict(sorted(make_tensors().items())))
    for name in ("policy.safetensors", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["manifest.json", "policy.safetensors"]


@pytest.mark.parametrize(("synthetic", "start"), [(True, "synthetic-20221231-"), (False, "20221231-")])
def test_a_policy_of_simulated_data_says_so_in_its_name(tmp_path: Path, synthetic: bool, start: str) -> None:
    policy = make_policy(tmp_path, synthetic=synthetic)
    assert load_policy(tmp_path).model_id == policy.model_id == start + policy.manifest["policy_sha256"][:12]


def test_details_cannot_overwrite_what_the_file_says_of_itself(tmp_path: Path) -> None:
    policy = make_policy(tmp_path, contract="forged", policy_sha256="forged", model_id="forged", extra=1)
    assert policy.manifest["contract"] == contract.VERSION
    assert "forged" not in json.dumps(policy.manifest)
    assert load_policy(tmp_path).manifest["extra"] == 1


def test_golden_pairs_are_spread_over_the_states() -> None:
    states = make_states(1_000)
    policy = Policy(make_tensors(), {})
    pairs = golden_pairs(policy, states)
    assert np.array_equal(np.float32(pairs[0]["state"]), states[0])
    assert np.array_equal(np.float32(pairs[-1]["state"]), states[-1])
    assert len({tuple(pair["state"]) for pair in pairs}) == GOLDEN_PAIRS
    with pytest.raises(PolicyError, match="32 states are needed for golden pairs, got 31"):
        golden_pairs(policy, states[:31])


DAMAGES: dict[str, tuple[Callable[[Path], object], type[HimariError], str]] = {
    "empty folder": (
        lambda f: [path.unlink() for path in f.iterdir()],
        PolicyError,
        "no policy at .*No such file",
    ),
    "no weights": (lambda f: (f / "policy.safetensors").unlink(), PolicyError, "no policy at .*policy.safetensors"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), PolicyError, "no policy at .*manifest.json"),
    "cut short": (
        lambda f: (f / "policy.safetensors").write_bytes((f / "policy.safetensors").read_bytes()[:-7]),
        PolicyError,
        "was changed or cut short; copy it again",
    ),
    "empty weights": (lambda f: (f / "policy.safetensors").write_bytes(b""), PolicyError, "changed or cut short"),
    "not JSON": (lambda f: (f / "manifest.json").write_text("{"), PolicyError, "is not JSON"),
    "binary manifest": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x80\x81\x00"), PolicyError, "not JSON"),
    "a JSON list": (lambda f: (f / "manifest.json").write_text("[1]"), PolicyError, "holds a list, no object"),
    "JSON null": (lambda f: (f / "manifest.json").write_text("null"), PolicyError, "holds a NoneType, no object"),
    "hash of another kind": (
        lambda f: rewrite(f, lambda m: m.update(policy_sha256=None)),
        PolicyError,
        "its manifest says None",
    ),
    "no golden pairs": (lambda f: rewrite(f, lambda m: m.update(golden=[])), PolicyError, "expected 32 golden pairs"),
    "a golden pair lost": (lambda f: rewrite(f, lambda m: m["golden"].pop()), PolicyError, "expected 32 golden pairs"),
    "golden of another kind": (lambda f: rewrite(f, lambda m: m.update(golden=7)), PolicyError, "are malformed"),
    "golden without its answer": (
        lambda f: rewrite(f, lambda m: m["golden"][3].pop("multiplier")),
        PolicyError,
        "malformed .*multiplier",
    ),
    "a short golden state": (lambda f: rewrite(f, lambda m: m["golden"][3]["state"].pop()), PolicyError, "malformed"),
    "a word in a golden state": (
        lambda f: rewrite(f, lambda m: m["golden"][3]["state"].__setitem__(0, "x")),
        PolicyError,
        "malformed",
    ),
    "a golden number beyond floats": (
        lambda f: rewrite(f, lambda m: m["golden"][3]["state"].__setitem__(0, 10**400)),
        PolicyError,
        "malformed",
    ),
    "golden multiplier edited": (
        lambda f: rewrite(f, lambda m: m["golden"][3].update(multiplier=m["golden"][3]["multiplier"] + 1e-4)),
        PolicyError,
        "golden pairs come out 1.00e-04 off in multiplier",
    ),
    "golden confidence edited": (
        lambda f: rewrite(f, lambda m: m["golden"][31].update(confidence=0.999)),
        PolicyError,
        "off in confidence",
    ),
    "golden NaN": (
        lambda f: rewrite(f, lambda m: m["golden"][0].update(multiplier=float("nan"))),
        PolicyError,
        "come out nan off in multiplier",
    ),
    "the old distribution": (
        lambda f: rewrite(f, lambda m: m["architecture"].update(distribution="beta on [0, 2]")),
        PolicyError,
        r"manifest.json: .*'beta on \[0, 2\]', this program by 'logit-normal .*another version .* train it again",
    ),
    "no architecture": (
        lambda f: rewrite(f, lambda m: m.update(architecture=None)),
        PolicyError,
        "distribution None, this program",
    ),
    "another number of members": (
        lambda f: rewrite(f, lambda m: m["architecture"].update(members=2)),
        PolicyError,
        "its architecture is .*'members': 2.*the weights and this program make .*'members': 1",
    ),
    "another clip": (
        lambda f: rewrite(f, lambda m: m["architecture"].update(observation_clip=5.0)),
        PolicyError,
        "its architecture is .*'observation_clip': 5.0",
    ),
    "another contract": (
        lambda f: rewrite(f, lambda m: m.update(contract="himari-state-17/2")),
        ContractError,
        r"himari-state-17/2.*himari-state-16/1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_refused_with_its_reason(saved: Path, damage: str) -> None:
    harm, kind, message = DAMAGES[damage]
    harm(saved)
    with pytest.raises(kind, match=message):
        load_policy(saved)


@pytest.mark.parametrize("key", ["contract", "policy_sha256", "model_id", "architecture", "golden"])
def test_a_manifest_that_lacks_a_key_is_refused(saved: Path, key: str) -> None:
    rewrite(saved, lambda manifest: manifest.pop(key))
    with pytest.raises(PolicyError, match=f"lacks {key}"):
        load_policy(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_id": "20300101-000000000000"}, r"its model id is '20300101-0+', that of its content '"),
        ({"model_id": 5}, "its model id is 5, that of its content"),
        ({"synthetic": False}, "its model id is 'synthetic-.*', that of its content '2022"),
        ({"data": {"end": "2030-01-01"}}, "that of its content 'synthetic-20300101-"),
        ({"data": {}}, "does not say when its data end"),
        ({"data": None}, "does not say when its data end"),
    ],
)
def test_the_name_follows_from_the_content(saved: Path, changes: Manifest, message: str) -> None:
    rewrite(saved, lambda manifest: manifest.update(changes))
    with pytest.raises(PolicyError, match=message):
        load_policy(saved)


def test_any_flipped_byte_of_the_weights_is_refused(saved: Path) -> None:
    path = saved / "policy.safetensors"
    blob = path.read_bytes()
    for position in range(0, len(blob), 97):
        path.write_bytes(blob[:position] + bytes([blob[position] ^ 1]) + blob[position + 1 :])
        with pytest.raises(PolicyError, match="was changed or cut short"):
            load_policy(saved)


WRONG_TENSORS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "one is missing": (lambda t: t.pop("b2"), r"policy tensors are \[.*expected"),
    "one too many": (lambda t: t.update(extra=np.zeros(1, np.float32)), "policy tensors are"),
    "transposed": (
        lambda t: t.update(w1=np.ascontiguousarray(t["w1"].swapaxes(1, 2))),
        r"w1 is float32\(2, 8, 16\), expected float32\(2, 16, 8\)",
    ),
    "a scalar": (lambda t: t.update(w1=np.array(1.0, np.float32)), r"w1 is float32\(\), expected"),
    "three outputs": (lambda t: t.update(w3=np.zeros((2, 8, 3), np.float32)), r"w3 is float32\(2, 8, 3\)"),
    "another state": (lambda t: t.update(mean=np.zeros((2, 15), np.float32)), r"mean is float32\(2, 15\)"),
    "no members' axis": (lambda t: t.update(make_member()), r"b1 has shape \(8,\), expected \(members, .*stack"),
    "no members": (lambda t: t.update({n: a[:0] for n, a in t.items()}), r"b1 has shape \(0, 8\), expected"),
    "a member less in one": (lambda t: t.update(w2=t["w2"][:1].copy()), r"w2 is float32\(1, 8, 8\), expected"),
    "double precision": (lambda t: t.update(b3=t["b3"].astype(np.float64)), "b3 is float64"),
    "integers": (lambda t: t.update(b3=t["b3"].astype(np.int32)), "b3 is int32"),
    "a NaN": (lambda t: t["w2"].__setitem__((1, 3, 4), np.nan), "w2 holds numbers that are not finite"),
    "an infinity": (lambda t: t["b1"].__setitem__((1, 0), np.inf), "b1 holds numbers that are not finite"),
    "no scale": (lambda t: t["std"].__setitem__((1, 2), 0.0), "std must be positive"),
    "a negative scale": (lambda t: t["std"].__setitem__((1, 2), -1.0), "std must be positive"),
    "next to no scale": (lambda t: t["std"].__setitem__((1, 2), 1e-40), "from 1.0e-40 to .*lose its digits"),
    "a mean far away": (lambda t: t["mean"].__setitem__((1, 2), -1e9), r"a mean is \d.*e\+0\d of them away from 0"),
}


@pytest.mark.parametrize("wrong", WRONG_TENSORS)
def test_wrong_tensors_are_refused_although_the_hash_agrees(saved: Path, wrong: str) -> None:
    change, message = WRONG_TENSORS[wrong]
    tensors: dict[str, Any] = make_tensors(members=2)
    change(tensors)
    replace_weights(saved, tensors)
    with pytest.raises(PolicyError, match=message):
        load_policy(saved)


@pytest.mark.parametrize("wrong", sorted(set(WRONG_TENSORS) - {"one is missing", "one too many", "double precision"}))
def test_wrong_tensors_are_never_written(tmp_path: Path, wrong: str) -> None:
    tensors: dict[str, Any] = make_tensors(members=2)
    WRONG_TENSORS[wrong][0](tensors)
    if wrong == "integers":  # cast to what they mean
        assert save_policy(tmp_path / "p", tensors, make_details(), make_states(100)).tensors["b3"].dtype == np.float32
        return
    with pytest.raises(PolicyError):
        save_policy(tmp_path / "p", tensors, make_details(), make_states(100))
    assert not (tmp_path / "p").exists()


def test_a_type_that_numpy_does_not_have_is_refused(saved: Path) -> None:
    header = json.dumps({"w1": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    blob = len(header).to_bytes(8, "little") + header + b"\0\0"
    (saved / "policy.safetensors").write_bytes(blob)
    rewrite(saved, lambda manifest: manifest.update(policy_sha256=hashlib.sha256(blob).hexdigest()))
    with pytest.raises(PolicyError):
        load_policy(saved)


def test_what_is_no_safetensors_file_is_refused_although_the_hash_agrees(saved: Path) -> None:
    blob = b"\x80\x04\x95pickle"
    (saved / "policy.safetensors").write_bytes(blob)
    rewrite(saved, lambda manifest: manifest.update(policy_sha256=hashlib.sha256(blob).hexdigest()))
    with pytest.raises(PolicyError, match="is not a safetensors file"):
        load_policy(saved)


def test_other_weights_do_not_reproduce_the_golden_pairs(saved: Path) -> None:
    replace_weights(saved, make_tensors(seed=2))
    with pytest.raises(PolicyError, match="does not hold the network that was trained"):
        load_policy(saved)


def test_a_file_of_the_first_version_is_refused_with_what_to_do(saved: Path) -> None:
    """Two-dimensional weights of a Beta distribution, under a manifest of that time that vouches for them."""
    replace_weights(saved, make_member())
    rewrite(saved, lambda m: m["architecture"].pop("members"))
    rewrite(saved, lambda m: m["architecture"].update(distribution="beta on [0, 2]"))
    with pytest.raises(PolicyError, match=r"another version of the program trained it; train it again"):
        load_policy(saved)


@pytest.mark.parametrize("package", ["components", "layer3", "pipelines", "serving"])
def test_nothing_anywhere_unpickles(package: str) -> None:
    forbidden = re.compile(
        r"^\s*(?:import|from)\s+(?:c?pickle|cloudpickle|dill|joblib|shelve|marshal)\b"
        r"|torch\.load\(|allow_pickle\s*=\s*True|read_pickle\(|joblib\.load|yaml\.(?:unsafe_load|load)\(",
        re.MULTILINE,
    )
    sources = sorted((ROOT / package).rglob("*.py"))
    assert sources
    found = [(path.name, match[0]) for path in sources for match in forbidden.finditer(path.read_text())]
    assert not found
