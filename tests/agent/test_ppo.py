"""PPO's mathematics against slow plain versions, scipy and autograd."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from layer3.agent import ppo
from layer3.agent.distribution import bounded_log_sd, entropy, log_density
from layer3.agent.networks import INPUTS, Adam, Layers, Network, initial_weights, layers_of, logistic
from layer3.agent.policy import LOG_SD_HIGH, LOG_SD_LOW
from layer3.agent.ppo import Columns, Experience, PPOConfig, actor_slope, generalised_advantages
from layer3.errors import ConfigurationError

CPU = torch.device("cpu")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    policies=st.integers(1, 3),
    steps=st.integers(1, 30),
    n=st.integers(1, 4),
)
def test_advantages_equal_a_slow_sum_over_the_future(seed: int, policies: int, steps: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, values, following = rng.standard_normal((3, policies, steps, n))
    ended = rng.random((policies, steps, n)) < 0.2
    gammas, lams = rng.uniform(0.5, 1.0, (policies, 1)), rng.uniform(0.0, 1.0, (policies, 1))
    arrays = (rewards, values, following, ended, gammas, gammas * lams)
    fast = generalised_advantages(*map(torch.from_numpy, arrays)).numpy()
    for policy, start, column in np.ndindex(policies, steps, n):
        total, weight, gamma, lam = 0.0, 1.0, gammas[policy, 0], lams[policy, 0]
        for k in range(start, steps):
            here = (policy, k, column)
            total += weight * (rewards[here] + gamma * following[here] - values[here])
            if ended[here]:
                break
            weight *= gamma * lam
        assert fast[policy, start, column] == pytest.approx(total, abs=1e-9)


class Constant(Network):
    """A critic whose value of a state is its first number."""

    def __init__(self) -> None:
        super().__init__(1, 1, 1, CPU)

    def forward(self, layers: Layers, x: Tensor) -> Tensor:
        return x[..., :1].mT


#: Weights that nobody looks at.
UNUSED = Layers(*[torch.zeros(1, 1, 1)] * 5)


def experience(steps: int, n: int, **changes: Tensor) -> Experience:
    """A rollout of one policy in which nothing happens; the critic sees 1, 2, 3, ... at successive states."""
    numbers = torch.arange(steps * n, dtype=torch.float32).view(1, steps, n)
    states = torch.zeros(1, steps, n, INPUTS)
    states[..., 0] = 1.0 + numbers
    zeros = torch.zeros(1, steps, n)
    last = torch.zeros(1, n, INPUTS)
    last[..., 0] = 100.0
    seen = Experience(
        states=states,
        last_states=last,
        actions=zeros,
        log_density=zeros,
        rewards=zeros.clone(),
        terminated=zeros.bool(),
        truncated=zeros[0].bool(),
        final_states=torch.zeros(1, 0, INPUTS),
    )
    return replace(seen, **changes)


def goals(seen: Experience, config: PPOConfig) -> Tensor:
    """Values plus advantages, (steps, n), which is what the critic is taught."""
    _, taught, _ = ppo.advantages_of(Constant(), UNUSED, seen, Columns.of([config], 0, CPU), config.batch)
    return taught.view(seen.rewards.shape[1:])


PLAIN = PPOConfig(gamma=0.9, gae_lambda=1e-9, batch=3)


def test_the_value_of_what_follows_is_the_next_states_and_at_the_end_the_last_ones() -> None:
    taught = goals(experience(3, 2), PLAIN)
    torch.testing.assert_close(taught, 0.9 * torch.tensor([[3.0, 4.0], [5.0, 6.0], [100.0, 100.0]]))


def test_a_time_limit_is_bootstrapped_from_what_would_have_been_seen() -> None:
    truncated = torch.tensor([[False, True], [False, False], [True, False]])
    final = torch.zeros(1, 2, INPUTS)
    final[0, :, 0] = torch.tensor([50.0, 70.0])
    taught = goals(experience(3, 2, truncated=truncated, final_states=final), PLAIN)
    torch.testing.assert_close(taught, 0.9 * torch.tensor([[3.0, 50.0], [5.0, 6.0], [70.0, 100.0]]))


def test_ruin_is_the_end_and_worth_nothing_afterwards() -> None:
    terminated = torch.tensor([[[False, False], [True, False], [False, False]]])
    rewards = torch.tensor([[[0.0, 0.0], [-7.0, 0.0], [0.0, 0.0]]])
    taught = goals(experience(3, 2, terminated=terminated, rewards=rewards), PLAIN)
    assert taught[1].tolist() == pytest.approx([-7.0, 0.9 * 6.0])
    # Nothing that came after the ruin flows back into it, nor past it.
    far = goals(experience(3, 2, terminated=terminated, rewards=rewards), replace(PLAIN, gae_lambda=1.0))
    assert far[0, 0] == pytest.approx(0.9 * -7.0)


@pytest.mark.parametrize(
    ("count", "batch", "rows"),
    [
        (200, 128, [128, 72]),
        (129, 128, [128, 64]),
        (128, 128, [128]),
        (3, 128, [64]),
        (50, 40, [40, 40]),
        (3, 40, [40]),
    ],
)
def test_no_product_has_so_few_rows_that_it_is_summed_otherwise(count: int, batch: int, rows: list[int]) -> None:
    asked = []

    class Watched(Constant):
        def forward(self, layers: Layers, x: Tensor) -> Tensor:
            asked.append(x.shape[1])
            return super().forward(layers, x)

    states = torch.randn(1, count, INPUTS, generator=generator(11))
    assert torch.equal(ppo.values_of(Watched(), UNUSED, states, batch), states[..., 0])
    assert asked == rows


def test_advantages_are_normalised_per_policy() -> None:
    stream = generator(1)
    seen = experience(4, 3, rewards=torch.randn(1, 4, 3, generator=stream))
    many = Experience(**{name: _twice(getattr(seen, name), name) for name in Experience.__slots__})
    columns = Columns.of([PPOConfig()] * 2, 0, CPU)
    advantages, _, explained = ppo.advantages_of(Constant(), UNUSED, many, columns, 1_024)
    torch.testing.assert_close(advantages.mean(1), torch.zeros(2), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(advantages.std(1), torch.ones(2), atol=1e-5, rtol=0.0)
    assert explained.shape == (2,)


def _twice(tensor: Tensor, name: str) -> Tensor:
    """Two policies, the second with ten times the rewards."""
    if name == "truncated":
        return tensor
    return torch.cat((tensor, 10.0 * tensor if name == "rewards" else tensor))


@given(mean=st.floats(-6.0, 6.0), log_sd=st.floats(LOG_SD_LOW, LOG_SD_HIGH), action=st.floats(-8.0, 8.0))
def test_the_density_is_the_normal_ones_up_to_its_constant(mean: float, log_sd: float, action: float) -> None:
    ours = log_density(*(torch.tensor(x, dtype=torch.float64) for x in (action, mean, log_sd)))
    theirs = scipy.stats.norm.logpdf(action, mean, math.exp(log_sd)) + 0.5 * math.log(2.0 * math.pi)
    assert float(ours) == pytest.approx(theirs, rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(mean=st.floats(-4.0, 4.0), log_sd=st.floats(LOG_SD_LOW, LOG_SD_HIGH))
def test_the_entropy_is_that_of_the_multiplier(mean: float, log_sd: float) -> None:
    sd = math.exp(log_sd)

    def surprise(u: float) -> float:
        density = scipy.stats.norm.pdf(u, mean, sd)
        # The multiplier's density: that of u over the slope of 2 sigmoid(u).
        slope = 2.0 * scipy.stats.logistic.pdf(u)
        return float(-density * (scipy.stats.norm.logpdf(u, mean, sd) - math.log(slope)))

    exact, _ = scipy.integrate.quad(surprise, mean - 10.0 * sd, mean + 10.0 * sd, limit=200)
    ours = entropy(*(torch.full((1, 1), x, dtype=torch.float64) for x in (mean, log_sd)))
    assert float(ours) == pytest.approx(exact, abs=0.02)
    assert float(ours) <= math.log(2.0) + 0.02


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    policies=st.integers(1, 3),
    batch=st.integers(1, 50),
    drift=st.floats(0.0, 0.5),
)
def test_the_actors_slope_is_autograds(seed: int, policies: int, batch: int, drift: float) -> None:
    rng = np.random.default_rng(seed)
    configs = [PPOConfig(clip=rng.uniform(0.05, 0.5), entropy=rng.uniform(0.0, 0.1)) for _ in range(policies)]
    columns = Columns.of(configs, 0, CPU, torch.float64)
    clip = torch.tensor([[config.clip] for config in configs], dtype=torch.float64)
    weight = torch.tensor([config.entropy for config in configs], dtype=torch.float64)
    stream = generator(seed)
    outputs = torch.randn(policies, 2, batch, generator=stream, dtype=torch.float64)
    # Some log standard deviations lie outside their bounds.
    outputs[:, 1] *= 2.0
    actions = torch.randn(policies, batch, generator=stream, dtype=torch.float64)
    advantages = torch.randn(policies, batch, generator=stream, dtype=torch.float64)
    before = outputs + drift * torch.randn(outputs.shape, generator=stream, dtype=torch.float64)
    old = log_density(actions, before[:, 0], bounded_log_sd(before[:, 1]))

    leaf = outputs.clone().requires_grad_()
    # The clamp lets slopes through here; which of them count is looked at below.
    log_sd = leaf[:, 1] + (leaf[:, 1].clamp(LOG_SD_LOW, LOG_SD_HIGH) - leaf[:, 1]).detach()
    normal = torch.distributions.Normal(leaf[:, 0], log_sd.exp())
    ratio = (normal.log_prob(actions) + 0.5 * math.log(2.0 * math.pi) - old).exp()
    assume(1e-6 < float(ratio.detach().min()) <= float(ratio.detach().max()) < 1e6)
    surrogate = torch.min(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages)
    loss = -surrogate.mean(1) - weight * entropy(leaf[:, 0], log_sd).mean(1)
    loss.sum().backward()

    slope, kl, clipped = actor_slope(outputs, actions, old, advantages, columns)
    assert leaf.grad is not None
    expected = leaf.grad.clone()
    # A step goes against the slope: outside the bounds only the way back is open.
    expected[:, 1][(outputs[:, 1] > LOG_SD_HIGH) & (expected[:, 1] < 0.0)] = 0.0
    expected[:, 1][(outputs[:, 1] < LOG_SD_LOW) & (expected[:, 1] > 0.0)] = 0.0
    torch.testing.assert_close(slope, expected, rtol=1e-8, atol=1e-10)
    detached = ratio.detach()
    torch.testing.assert_close(kl, (detached - 1.0 - detached.log()).mean(1))
    torch.testing.assert_close(clipped, ((detached - 1.0).abs() > clip).float().mean(1))


def seen_as_input(states: Tensor) -> Tensor:
    """States, and the one behind them."""
    return torch.nn.functional.pad(states, (0, 1), value=1.0)


def rollout(policies: int, seed: int) -> Experience:
    """Random states, actions near what a fresh actor does."""
    stream, t, n = generator(seed), 8, 16
    shape = (policies, t, n)
    return Experience(
        states=seen_as_input(torch.randn(*shape, 16, generator=stream)),
        last_states=seen_as_input(torch.randn(policies, n, 16, generator=stream)),
        actions=torch.randn(shape, generator=stream),
        log_density=torch.randn(shape, generator=stream) * 0.01 - 0.5,
        rewards=torch.randn(shape, generator=stream),
        terminated=torch.zeros(shape, dtype=torch.bool),
        truncated=torch.zeros(t, n, dtype=torch.bool),
        final_states=torch.zeros(policies, 0, INPUTS),
    )


def learner(policies: int, outputs: int) -> Adam:
    weights = torch.stack([initial_weights(8, [0.0] * outputs, 1.0, generator(i)) for i in range(policies)])
    return Adam(weights, torch.zeros_like(weights), torch.zeros_like(weights), torch.zeros(policies, 1))


SMALL = PPOConfig(steps=256, environments=16, rollout=8, batch=48, epochs=3, hidden=8, learning_rate=1e-3)


def columns_of(policies: int, **changes: float) -> Columns:
    """SMALL's first update, for so many policies."""
    return Columns.of([replace(SMALL, **changes)] * policies, 0, CPU)  # type: ignore[arg-type]


def order(policies: int, seed: int = 9) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(
        np.stack([[rng.permutation(SMALL.samples) for _ in range(SMALL.epochs)] for _ in range(policies)])
    )


def test_the_critics_update_is_autograds_and_adams() -> None:
    seen, taught = rollout(1, 3), torch.randn(1, SMALL.samples, generator=generator(4))
    adam = learner(1, 1)
    leaf = adam.weights.clone().requires_grad_()
    optimiser = torch.optim.Adam([leaf], lr=1e-3, eps=1e-5)
    turns = order(1)
    ppo.improve_critic(Network(1, SMALL.batch, 8, CPU), adam, seen, taught, turns, columns_of(1), SMALL.batch)
    states = seen.states.flatten(1, 2)
    for epoch in turns[0]:
        # 128 samples in batches of 48: the last is shorter.
        for rows in epoch.split(SMALL.batch):
            w1, w2, b2, w3, b3 = layers_of(leaf, 8, 1)
            h = torch.tanh(torch.tanh(states[:, rows] @ w1) @ w2 + b2)
            loss = SMALL.value * torch.nn.functional.mse_loss((w3 @ h.mT + b3)[:, 0], taught[:, rows])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([leaf], SMALL.max_gradient)
            optimiser.step()
    torch.testing.assert_close(adam.weights, leaf.detach(), rtol=1e-5, atol=1e-6)


def answers(adam: Adam, seen: Experience) -> Tensor:
    """The actors' outputs (C, 2, T n) in every state of the rollout."""
    network = Network(len(adam.weights), SMALL.samples, 8, CPU)
    return network.forward(logistic(layers_of(adam.weights, 8, 2)), seen.states.flatten(1, 2))


def acting(adam: Adam, seed: int) -> tuple[Experience, Tensor]:
    """A rollout whose actions the policies in ``adam`` drew, and the noise that they drew it with."""
    seen, policies = rollout(len(adam.weights), seed), len(adam.weights)
    outputs = answers(adam, seen)
    noise = torch.randn(policies, SMALL.samples, generator=generator(seed + 1))
    mean, log_sd = outputs[:, 0], bounded_log_sd(outputs[:, 1])
    actions = mean + log_sd.exp() * noise
    shape = seen.actions.shape
    density = log_density(actions, mean, log_sd)
    return replace(seen, actions=actions.view(shape), log_density=density.view(shape)), noise


def test_a_policy_that_has_moved_far_enough_stands_still_and_the_others_go_on() -> None:
    turns = order(2)
    gains = torch.randn(2, SMALL.samples, generator=generator(6))

    def improve(target: float, epochs: int) -> Tensor:
        adam = learner(2, 2)
        seen, _ = acting(adam, 5)
        # As if a policy far away had drawn the second's actions: its divergence is large from the first batch on.
        seen.log_density[1] -= 2.0
        columns = columns_of(2, target_kl=target)
        network = Network(2, SMALL.batch, 8, CPU)
        figures = ppo.improve_actor(network, adam, seen, gains, turns[:, :epochs], columns, SMALL.batch)
        assert torch.isfinite(figures.kl).all()
        assert figures.kl[0] < 0.1 < 1.0 < figures.kl[1]
        return adam.weights

    cut, once, free = improve(0.5, 3), improve(1e9, 1), improve(1e9, 3)
    assert torch.equal(cut[1], once[1])
    assert torch.equal(cut[0], free[0])
    assert not torch.equal(free[1], once[1])


def test_an_update_follows_the_advantages() -> None:
    """Where higher actions paid and lower ones cost, the mean moves up."""
    adam = learner(1, 2)
    seen, noise = acting(adam, 7)
    network = Network(1, SMALL.samples, 8, CPU)
    before = answers(adam, seen)
    figures = ppo.improve_actor(network, adam, seen, noise, order(1), columns_of(1, entropy=0.0), SMALL.batch)
    after = answers(adam, seen)
    assert (after[:, 0] > before[:, 0]).float().mean() > 0.75
    assert 0.0 < float(figures.kl) < 0.1
    assert float(figures.gradient) > 0.0
    assert float(figures.entropy) < math.log(2.0)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 100},
        {"steps": 0},
        {"batch": 0},
        {"batch": 1.5},
        {"epochs": 0},
        {"hidden": 0},
        {"environments": 0},
        {"environments": 1, "rollout": 1},
        {"rollout": -1},
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"final_rate": 0.0},
        {"gamma": 1.5},
        {"gae_lambda": 0.0},
        {"clip": -0.1},
        {"entropy": -1e-3},
        {"value": math.nan},
        {"target_kl": 0.0},
        {"max_gradient": math.nan},
        {"log_sd_start": 1.6},
        {"log_sd_start": math.nan},
    ],
)
def test_a_bad_hyperparameter_is_refused_by_name(change: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        PPOConfig(**change)  # type: ignore[arg-type]


def test_the_rate_falls_to_its_share_and_the_defaults_are_the_guides_where_it_learns() -> None:
    config = PPOConfig(steps=4_096_000)
    assert config.rate(0) == config.learning_rate
    assert config.rate(config.updates) == pytest.approx(0.05 * config.learning_rate)
    assert (config.gamma, config.gae_lambda, config.clip, config.hidden) == (0.99, 0.95, 0.2, 128)
    assert (config.batch, config.epochs, config.environments, config.rollout) == (1_024, 4, 128, 16)
