from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from layer3.agent.environment import EnvironmentConfig
from layer3.agent.networks import INPUTS, Network, initial_weights
from layer3.agent.population import Settings
from layer3.agent.ppo import Experience, PPOConfig
from layer3.agent.team import Member, Team
from tests.agent.worlds import planted

CONFIG = PPOConfig(steps=4_096, environments=16, rollout=64, batch=300, hidden=16)
#: Shorter than a rollout, so that windows run into their time limit within one.
ENVIRONMENT = EnvironmentConfig(episode_steps=50)


def rollout(device: str, *, on_host: bool) -> tuple[Team, Experience, Tensor]:
    bars, _ = planted(2_000)
    members = [
        Member(seed, (range(1_000 + 300 * seed),), Settings(CONFIG, ENVIRONMENT), f"seed {seed}") for seed in (1, 2)
    ]
    network = Network(1, CONFIG.environments, CONFIG.hidden, torch.device(device))
    team = Team(bars, [slice(0, 1), slice(1, 2)], members, network, torch.device(device), on_host)
    shape = (2, CONFIG.rollout, CONFIG.environments)
    seen = Experience(
        states=torch.ones(*shape, INPUTS, device=device),
        last_states=torch.ones(2, CONFIG.environments, INPUTS, device=device),
        actions=torch.empty(shape, device=device),
        log_density=torch.empty(shape, device=device),
        rewards=torch.empty(shape, device=device),
        terminated=torch.zeros(shape, dtype=torch.bool, device=device),
        truncated=torch.zeros(shape[1:], dtype=torch.bool, device=device),
        final_states=torch.empty(2, 0, INPUTS, device=device),
    )
    growth = torch.empty(shape, dtype=torch.float64, device=device)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    weights = torch.stack([initial_weights(CONFIG.hidden, [0.0, 0.5], 0.5, one) for one in generators]).to(device)
    return team, team.walk(weights, seen, growth), growth


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))],
)
def test_accounts_of_torch_walk_as_those_of_numpy(device: str) -> None:
    team, seen, growth = rollout("cpu", on_host=True)
    other, met, grown = rollout(device, on_host=False)
    assert seen.truncated.any()
    assert seen.final_states.shape[1] == int(seen.truncated.sum())
    np.testing.assert_array_equal(team.kept, other.kept)
    for ours, theirs in (
        (team.mean, other.mean),
        (team.std, other.std),
        (growth, grown),
        (seen.final_states, met.final_states),
        (seen.states, met.states),
        (seen.last_states, met.last_states),
        (seen.actions, met.actions),
        (seen.log_density, met.log_density),
        (seen.rewards, met.rewards),
    ):
        torch.testing.assert_close(ours, theirs.cpu(), rtol=1e-4, atol=1e-5)
    for ours, theirs in ((seen.terminated, met.terminated), (seen.truncated, met.truncated)):
        assert torch.equal(ours, theirs.cpu())


def test_every_epoch_sees_each_sample_once_and_reads_a_batch_forwards() -> None:
    team, _, _ = rollout("cpu", on_host=True)
    orders = team.orders()
    samples = CONFIG.environments * CONFIG.rollout
    assert orders.shape == (2, CONFIG.epochs, samples)
    np.testing.assert_array_equal(np.sort(orders, axis=-1), np.broadcast_to(np.arange(samples), orders.shape))
    for first in range(0, samples, CONFIG.batch):
        assert (np.diff(orders[..., first : first + CONFIG.batch]) > 0).all()
    batches = {order[: CONFIG.batch].tobytes() for order in orders.reshape(-1, samples)}
    # Nobody's epochs are alike.
    assert len(batches) == 2 * CONFIG.epochs
