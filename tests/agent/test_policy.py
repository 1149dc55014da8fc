"""A policy's inference: its tensors, its answers, and the same bytes on every processor."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from layer3.agent.policy import LOG_SD_HIGH, LOG_SD_LOW, OBSERVATION_CLIP, Policy, stack
from layer3.agent.policy_file import PARITY
from layer3.errors import PolicyError
from tests.agent.worlds import constant_member, constant_tensors, make_member, make_states, make_tensors

ROOT = Path(__file__).parents[2]


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
