"""The policy's file and its inference: byte for byte, or refused with the reason."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from layer3 import contract
from layer3.agent.policy import (
    GOLDEN_PAIRS,
    LOG_SD_HIGH,
    LOG_SD_LOW,
    OBSERVATION_CLIP,
    PARITY,
    Policy,
    golden_pairs,
    load_policy,
    save_policy,
    stack,
)
from layer3.errors import ContractError, HimariError, PolicyError
from tests.agent.worlds import (
    constant_member,
    constant_tensors,
    make_details,
    make_member,
    make_policy,
    make_states,
    make_tensors,
)

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


def test_a_policy_is_never_made_of_unstacked_tensors() -> None:
    with pytest.raises(PolicyError, match="stack makes the tensors of a policy"):
        Policy(make_member(), {})


def test_stack_puts_members_side_by_side() -> None:
    members = [make_member(seed) for seed in (1, 2, 3)]
    stacked = stack(members)
    assert set(stacked) == set(members[0])
    for name, tensor in stacked.items():
        assert tensor.dtype == np.float32
        for k, member in enumerate(members):
            np.testing.assert_array_equal(tensor[k], member[name])
    doubled = stack([{name: tensor.astype(np.float64) for name, tensor in members[0].items()}])
    assert {tensor.dtype for tensor in doubled.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "at least one member, got none"),
        (
            [make_member(), make_member(hidden=9)],
            r"member 1's tensor w1 has shape \(16, 9\), member 0's \(16, 8\): .* one width",
        ),
        ([make_member(), {"w1": np.zeros((16, 8))}], r"member 1's tensors are \['w1'\], expected"),
        ([{**make_member(), "extra": np.zeros(1)}], r"member 0's tensors are .*'extra'"),
    ],
)
def test_members_that_do_not_fit_are_not_stacked(members: list[Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        stack(members)


@pytest.mark.parametrize("members", [1, 3])
def test_shapes_in_and_out(members: int) -> None:
    policy = Policy(make_tensors(members=members), {})
    states = make_states(24)
    flat = (*policy.act(states), policy.multipliers(states))
    assert [out.shape for out in flat] == [(24,), (24,), (members, 24)]
    deep = (*policy.act(states.reshape(2, 3, 4, 16)), policy.multipliers(states.reshape(2, 3, 4, 16)))
    single = (*policy.act(states[5].tolist()), policy.multipliers(states[5].tolist()))
    for one, many, alone, axes in zip(flat, deep, single, [(), (), (members,)], strict=True):
        assert many.shape == (*axes, 2, 3, 4)
        assert np.shape(alone) == axes
        assert one.dtype == many.dtype == alone.dtype == np.float32
        np.testing.assert_allclose(many.reshape(one.shape), one, atol=1e-6)
        np.testing.assert_allclose(alone, one[..., 5], atol=1e-6)
    assert policy.act(states[:0])[0].shape == (0,)
    assert policy.multipliers(states[:0]).shape == (members, 0)


@pytest.mark.parametrize("shape", [(), (1,), (15,), (17,), (16, 1), (3, 1)])
def test_states_of_another_shape_are_refused_and_not_broadcast(shape: tuple[int, ...]) -> None:
    policy = Policy(make_tensors(), {})
    for ask in (policy.act, policy.multipliers):
        with pytest.raises(ValueError, match=re.escape(f"states have shape {shape}")):
            ask(np.zeros(shape))


@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.01, 0.3, 1.0, 5.0, 100.0, 1e15]),
    members=st.sampled_from([1, 2, 3]),
)
def test_answers_stay_within_their_bounds_whatever_the_weights(seed: int, scale: float, members: int) -> None:
    policy = Policy(make_tensors(seed, scale=scale, members=members), {})
    states = make_states(64, seed)
    multiplier, confidence = policy.act(states)
    for answer in (multiplier, policy.multipliers(states), np.array([policy.act(state)[0] for state in states])):
        assert ((answer >= 0.0) & (answer <= 2.0)).all()
    assert ((confidence >= 0.0) & (confidence <= 1.0)).all()


@pytest.mark.parametrize("members", [1, 3])
def test_the_multiplier_spans_its_whole_range_and_confidence_varies(members: int) -> None:
    tensors = make_tensors(scale=2.0, members=members)
    tensors["w3"] *= np.float32([5.0, 0.5])
    multiplier, confidence = Policy(tensors, {}).act(make_states(2_000))
    assert multiplier.min() < 0.02
    assert multiplier.max() > 1.98
    assert np.ptp(confidence) > 0.3


@pytest.mark.parametrize("multiplier", [0.01, 0.7, 1.0, 1.5, 1.99])
@pytest.mark.parametrize("sd", [0.02, 0.1, 1.0, 1.6, 4.0])
def test_a_single_members_confidence_is_how_close_the_quartiles_of_its_own_distribution_are(
    multiplier: float, sd: float
) -> None:
    got = Policy(constant_tensors(multiplier, sd), {}).act(make_states(3))
    u = scipy.stats.norm(np.log(multiplier / (2.0 - multiplier)), sd)
    lower, middle, upper = 2.0 * scipy.special.expit(u.ppf([0.25, 0.5, 0.75]))
    assert middle == pytest.approx(multiplier)
    assert got[0] == pytest.approx(middle, abs=1e-6)
    assert got[1] == pytest.approx(max(0.0, 1.0 - (upper - lower)), abs=1e-6)


def test_a_policy_that_knows_nothing_has_no_confidence() -> None:
    """A distribution with the quartiles of the uniform one on [0, 2], 0.5 and 1.5, or even wider ones."""
    sd = np.log(3.0) / scipy.stats.norm.ppf(0.75)
    assert Policy(constant_tensors(1.0, sd), {}).act(make_states(1))[1] == pytest.approx(0.0, abs=1e-6)
    assert Policy(constant_tensors(1.0, 4.0), {}).act(make_states(1))[1] == 0.0


@pytest.mark.parametrize(("raw", "bound"), [(-50.0, LOG_SD_LOW), (-4.5, LOG_SD_LOW), (1.7, LOG_SD_HIGH), (90.0, 1.5)])
def test_the_spread_of_u_is_clipped(raw: float, bound: float) -> None:
    beyond, at = constant_tensors(0.05), constant_tensors(0.05)
    beyond["b3"][0, 1], at["b3"][0, 1] = raw, bound
    states = make_states(5)
    for one, other in zip(Policy(beyond, {}).act(states), Policy(at, {}).act(states), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("multipliers", "confidence"),
    [
        ((1.5, 1.5), 1.0),
        ((1e-9, 2.0 - 1e-9), 0.0),
        ((0.5, 1.5), 0.5),
        ((0.2, 0.8, 1.4), 1.0 - np.std([0.2, 0.8, 1.4])),
        ((0.1,) * 4 + (0.9,) * 4, 0.6),
    ],
)
def test_several_members_answer_their_mean_and_are_as_confident_as_they_agree(
    multipliers: tuple[float, ...], confidence: float
) -> None:
    # How wide each one's own distribution is does not matter.
    widths = np.geomspace(0.1, 4.0, len(multipliers))
    members = [constant_member(m, sd) for m, sd in zip(multipliers, widths, strict=True)]
    policy = Policy(stack(members), {})
    states = make_states(4)
    assert policy.members == len(multipliers)
    for ask in (states, states[0]):
        got = policy.act(ask)
        np.testing.assert_allclose(got[0], np.mean(multipliers), atol=1e-6)
        np.testing.assert_allclose(got[1], confidence, atol=1e-6)
        own = np.broadcast_to(np.array(multipliers).reshape(-1, *[1] * (ask.ndim - 1)), (len(members), *ask.shape[:-1]))
        np.testing.assert_allclose(policy.multipliers(ask), own, atol=1e-6)


def test_each_members_answer_is_what_it_answers_alone() -> None:
    members = [make_member(seed, hidden=32) for seed in (1, 2, 3)]
    together, states = Policy(stack(members), {}), make_states(40)
    for k, member in enumerate(members):
        alone = Policy(stack([member]), {})
        np.testing.assert_array_equal(together.multipliers(states)[k], alone.act(states)[0])
        np.testing.assert_array_equal(alone.multipliers(states)[0], alone.act(states)[0])
        np.testing.assert_array_equal(together.multipliers(states[7])[k], alone.act(states[7])[0])


@pytest.mark.parametrize("members", [1, 3])
def test_the_same_state_gives_the_same_bytes_alone_and_in_a_batch_of_any_size(members: int) -> None:
    policy = Policy(make_tensors(seed=3, hidden=128, scale=0.2, members=members), {})
    states = make_states(600, seed=5)
    batch = policy.act(states)
    for size in (1, 2, 7, 255, 257, 599):
        for one, many in zip(policy.act(states[:size]), batch, strict=True):
            assert one.tobytes() == many[:size].tobytes()
    for row, state in enumerate(states):
        for ask in (state, state.tolist(), state.astype(np.float64), state[np.newaxis], states[row : row + 1, ::1]):
            for one, many in zip(policy.act(ask), batch, strict=True):
                assert one.tobytes() == many[row].tobytes()


_OF_A_PROCESSOR = """
import hashlib, sys
from layer3.agent.policy import Policy
from tests.agent.worlds import make_states, make_tensors
for members in (1, 3):
    policy = Policy(make_tensors(seed=3, hidden=128, scale=0.2, members=members), {})
    states = make_states(1_500, seed=6)
    answers = [*policy.act(states), *(number for state in states[:500] for number in policy.act(state))]
    print(hashlib.sha256(b"".join(answer.tobytes() for answer in answers)).hexdigest())
"""


def test_the_same_bytes_whatever_vector_instructions_the_processor_has() -> None:
    """OpenBLAS and numpy choose their loops by the processor; here they are made to choose those of older ones."""
    umath = np._core._multiarray_umath
    here = [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__[name]]
    wide = [name for name in here if name == "X86_V4" or name.startswith("AVX512")]
    switches = [
        {},
        {"OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": " ".join(wide)},
        {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": " ".join(here)},
    ]
    digests = {
        subprocess.run(
            [sys.executable, "-c", _OF_A_PROCESSOR],
            cwd=ROOT,
            env={**os.environ, **switch},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for switch in switches
    }
    assert len(digests) == 1


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("seed", [4, 5])
def test_parity_with_an_independent_torch_network(seed: int, members: int) -> None:
    states = make_states(1_000, seed=8)
    states[0] = 50.0  # clipped at ten standard deviations
    states[1] = -50.0
    states[:, 13] = 0.5 + 1e-3 * (states[:, 13] - 0.5)  # hardly moves, far from 0
    trained = [make_member(seed + k, hidden=32) for k in range(members)]
    answers, gaps = [], []
    for tensors in trained:
        tensors["mean"][13], tensors["std"][13] = 0.5, 1e-4
        network = torch.nn.Sequential(
            torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2)
        ).double()
        with torch.no_grad():
            for layer, number in ((0, 1), (2, 2), (4, 3)):
                network[layer].weight.copy_(torch.from_numpy(tensors[f"w{number}"].T.copy()))
                network[layer].bias.copy_(torch.from_numpy(tensors[f"b{number}"]))
            mean, std = (torch.from_numpy(tensors[name]) for name in ("mean", "std"))
            seen = (torch.from_numpy(states).double() - mean) / std
            assert (seen.abs() > OBSERVATION_CLIP).any()
            m, raw = network(seen.clamp(-OBSERVATION_CLIP, OBSERVATION_CLIP)).unbind(-1)
            u = torch.distributions.Normal(m, raw.clamp(LOG_SD_LOW, LOG_SD_HIGH).exp())
            lower, middle, upper = (2.0 * torch.sigmoid(u.icdf(torch.tensor(p).double())) for p in (0.25, 0.5, 0.75))
            answers.append(middle.numpy())
            gaps.append((upper - lower).numpy())
    policy = Policy(stack(trained), {})
    multiplier, confidence = policy.act(states)
    np.testing.assert_allclose(multiplier, np.mean(answers, axis=0), atol=PARITY)
    np.testing.assert_allclose(policy.multipliers(states), answers, atol=PARITY)
    expected = 1.0 - (np.std(answers, axis=0) if members > 1 else gaps[0])
    np.testing.assert_allclose(confidence, np.maximum(expected, 0.0), atol=PARITY)


@pytest.mark.parametrize("members", [1, 3])
def test_a_number_that_is_none_comes_out_as_none(members: int) -> None:
    policy = Policy(make_tensors(members=members), {})
    state = make_states(2)
    state[1, 4] = np.nan
    assert np.isnan(policy.act(state[1])).all()
    assert np.isnan(policy.act(state)).tolist() == [[False, True]] * 2


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
