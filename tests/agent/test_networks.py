"""The batched networks against torch's own autograd, Adam and clipping."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from layer3.agent.networks import (
    Adam,
    Network,
    initial_weights,
    layers_of,
    logistic,
    single_threaded,
    weights_size,
)

CPU = torch.device("cpu")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def population(count: int, hidden: int, outputs: int, seed: int = 1) -> Tensor:
    stream = generator(seed)
    return torch.stack([initial_weights(hidden, [0.1] * outputs, 0.7, stream) for _ in range(count)])


def plainly(flat: Tensor, x: Tensor, hidden: int, outputs: int) -> Tensor:
    w1, w2, b2, w3, b3 = layers_of(flat, hidden, outputs)
    h = torch.tanh(x[..., :-1] @ w1[:, :-1] + w1[:, -1:])
    h = torch.tanh(h @ w2 + b2)
    return w3 @ h.mT + b3


def inputs(count: int, rows: int, seed: int, scale: float = 1.0) -> Tensor:
    """States, and the one behind them."""
    states = scale * torch.randn(count, rows, 16, generator=generator(seed))
    return torch.nn.functional.pad(states, (0, 1), value=1.0)


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 5),
    rows=st.integers(1, 70),
    hidden=st.integers(1, 40),
    outputs=st.integers(1, 2),
    scale=st.floats(0.01, 5.0),
    seed=st.integers(0, 1_000),
)
def test_forward_and_backward_are_autograds(
    count: int, rows: int, hidden: int, outputs: int, scale: float, seed: int
) -> None:
    flat = population(count, hidden, outputs, seed)
    x = inputs(count, rows, seed, scale)
    slope = torch.randn(count, outputs, rows, generator=generator(seed + 1))
    # Larger than needed, as for the last batch of an epoch.
    network = Network(count + 1, rows + 3, hidden, CPU)
    gradient = torch.full_like(flat, torch.nan)
    layers = logistic(layers_of(flat, hidden, outputs))
    ours = network.forward(layers, x)
    network.backward(layers, x, slope, layers_of(gradient, hidden, outputs))
    leaf = flat.clone().requires_grad_()
    theirs = plainly(leaf, x, hidden, outputs)
    (theirs * slope).sum().backward()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-5)
    assert leaf.grad is not None
    # Sums over up to 70 rows in another order.
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-4, atol=1e-5 * max(1.0, scale) * rows)


def test_one_network_among_many_is_that_network_alone() -> None:
    flat, x = population(6, 128, 2), inputs(6, 256, 2)
    slope = torch.randn(6, 2, 256, generator=generator(3))
    together, alone = torch.empty_like(flat), torch.empty_like(flat)
    with single_threaded():
        many, one = Network(6, 256, 128, CPU), Network(1, 256, 128, CPU)
        layers = logistic(layers_of(flat, 128, 2))
        outputs = many.forward(layers, x)
        many.backward(layers, x, slope, layers_of(together, 128, 2))
        for i in range(6):
            row = slice(i, i + 1)
            own = logistic(layers_of(flat[row], 128, 2))
            torch.testing.assert_close(one.forward(own, x[row]), outputs[row], rtol=0.0, atol=1e-6)
            one.backward(own, x[row], slope[row], layers_of(alone[row], 128, 2))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_adam_with_clipping_is_torchs() -> None:
    stream = generator(4)
    rates, largest = torch.tensor([[3e-3], [1e-2], [5e-4]]), torch.tensor([[0.5], [0.05], [20.0]])
    start = torch.randn(3, 50, generator=stream)
    ours = Adam(start.clone(), torch.zeros(3, 50), torch.zeros(3, 50), torch.zeros(3, 1))
    theirs = [row.clone().requires_grad_() for row in start]
    optimisers = [torch.optim.Adam([row], lr=float(rate), eps=1e-5) for row, rate in zip(theirs, rates, strict=True)]
    for step in range(30):
        gradient = torch.randn(3, 50, generator=stream) * torch.tensor([[0.01], [1.0], [30.0]]) * (1 + step % 3)
        ours.gradient.copy_(gradient)
        norms = ours.step(rates, largest, torch.ones(3, 1))
        torch.testing.assert_close(norms[:, 0], gradient.norm(dim=1))
        for row, optimiser, own, most in zip(theirs, optimisers, gradient, largest, strict=True):
            row.grad = own.clone()
            torch.nn.utils.clip_grad_norm_([row], float(most))
            optimiser.step()
    torch.testing.assert_close(ours.weights, torch.stack([row.detach() for row in theirs]), rtol=1e-5, atol=1e-6)


def test_a_row_that_stands_still_keeps_every_bit_and_its_moments() -> None:
    stream = generator(5)
    parts = [torch.randn(2, 9, generator=stream).abs() for _ in range(3)]
    adam = Adam(parts[0].clone(), parts[1].clone(), parts[2].clone(), torch.tensor([[3.0], [0.0]]))
    for alive in (torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0]])):
        still = int(alive[0, 0])
        before = [part[still].clone() for part in (adam.weights, adam._mean, adam._square, adam._steps)]
        adam.gradient.copy_(torch.randn(2, 9, generator=stream))
        moved = adam.weights[1 - still].clone()
        adam.step(torch.full((2, 1), 1e-2), torch.full((2, 1), 0.5), alive)
        for kept, part in zip(before, (adam.weights, adam._mean, adam._square, adam._steps), strict=True):
            assert torch.equal(kept, part[still])
        assert not torch.equal(moved, adam.weights[1 - still])


def test_a_row_that_never_moved_and_may_not_stays_as_it_is() -> None:
    """Nothing is divided by nothing where there are no steps, no moments and no slope."""
    adam = Adam(torch.tensor([[0.5, -0.25], [0.5, 0.0]]), torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2, 1))
    adam.gradient.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    adam.step(torch.full((2, 1), 1e-2), torch.full((2, 1), 0.5), torch.tensor([[0.0], [1.0]]))
    assert adam.weights[0].tolist() == [0.5, -0.25]
    assert adam.weights[1].tolist() == pytest.approx([0.49, 0.0], abs=1e-6)
    assert adam._steps.tolist() == [[0.0], [1.0]]


def test_first_weights_are_orthogonal_and_come_from_the_given_stream() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    flat = initial_weights(128, [0.0, 0.5], 0.01, generator(7))
    assert torch.equal(state, torch.get_rng_state())
    assert flat.shape == (weights_size(128, 2),) == (128 * 16 + 128 + 128 * 128 + 128 + 2 * 128 + 2,)
    w1, w2, b2, w3, b3 = (part[0] for part in layers_of(flat.unsqueeze(0), 128, 2))
    torch.testing.assert_close(w1[:-1] @ w1[:-1].T, 2.0 * torch.eye(16), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(w2 @ w2.T, 2.0 * torch.eye(128), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(w3 @ w3.T, 1e-4 * torch.eye(2), atol=1e-8, rtol=0.0)
    assert b3.tolist() == [[0.0], [0.5]]
    assert not w1[-1].any()
    assert not b2.any()
    assert torch.equal(flat, initial_weights(128, [0.0, 0.5], 0.01, generator(7)))


def test_products_stay_exact_and_what_was_set_comes_back() -> None:
    products = torch.backends.mkldnn.matmul
    before = torch.get_num_threads(), products.fp32_precision
    left, right = torch.randn(512, 128, generator=generator(8)), torch.randn(128, 64, generator=generator(9))
    with single_threaded():
        assert torch.get_num_threads() == 1
        # bfloat16 inputs would be off by 0.05.
        assert float((left @ right - left.double() @ right.double()).abs().max()) < 1e-4
    assert (torch.get_num_threads(), products.fp32_precision) == before
    with pytest.raises(KeyboardInterrupt), single_threaded():
        raise KeyboardInterrupt
    assert (torch.get_num_threads(), products.fp32_precision) == before
