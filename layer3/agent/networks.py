"""Many small networks of one shape at once: every layer is one batched matrix product.

C networks ``16 -> h -> h -> out`` with tanh between are C rows of one matrix of weights, so that
forward, backward, clipping and Adam are each a handful of calls for all of them, on a CPU and on a
GPU alike. The backward pass is written out: against autograd it saves every allocation of
half a megabyte and the passes over memory that come with it, which cost as much as the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from layer3 import contract

__all__ = [
    "INPUTS",
    "Adam",
    "Layers",
    "Network",
    "initial_weights",
    "layers_of",
    "logistic",
    "single_threaded",
    "weights_size",
]

#: The numbers of the state and a one, by which the first product adds its bias.
INPUTS: Final = contract.STATE_DIM + 1
_EPSILON: Final = 1e-5
_DECAYS: Final = (0.9, 0.999)


class Layers(NamedTuple):
    """What C networks compute with, or its slopes.

    ``w1`` (C, 17, h) the first layer, its bias as the last row; ``w2`` (C, h, h) from the first hidden layer to the
    second, with ``b2`` (C, 1, h); ``w3`` (C, out, h) and ``b3`` (C, out, 1).
    """

    w1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor


def _shapes(hidden: int, outputs: int) -> tuple[tuple[int, int], ...]:
    return (INPUTS, hidden), (hidden, hidden), (1, hidden), (outputs, hidden), (outputs, 1)


def weights_size(hidden: int, outputs: int) -> int:
    """Numbers that one network holds."""
    return sum(rows * columns for rows, columns in _shapes(hidden, outputs))


def layers_of(flat: Tensor, hidden: int, outputs: int) -> Layers:
    """Views of ``flat`` (C, N)."""
    shapes = _shapes(hidden, outputs)
    pieces = flat.split([rows * columns for rows, columns in shapes], dim=1)
    return Layers(*(piece.unflatten(1, shape) for piece, shape in zip(pieces, shapes, strict=True)))


def logistic(layers: Layers) -> Layers:
    """What gives the same outputs with the logistic function in tanh's place.

    ``tanh(z) = 2 s(2 z) - 1``: the factors and the one go into weights and biases. A CPU computes s several times as
    fast as tanh, and no pass over the activations is left to do.
    """
    w1, w2, b2, w3, b3 = layers
    return Layers(w1 * 2.0, w2 * 4.0, (b2 - w2.sum(1, keepdim=True)).mul_(2.0), w3 * 2.0, b3 - w3.sum(2, keepdim=True))


def initial_weights(hidden: int, last_bias: list[float], last_gain: float, generator: torch.Generator) -> Tensor:
    """Orthogonal weights (Saxe et al. 2014, arXiv:1312.6120) and zero biases but for the last, (N,) on the CPU."""
    flat = torch.zeros(1, weights_size(hidden, len(last_bias)))
    w1, w2, _, w3, b3 = (part[0] for part in layers_of(flat, hidden, len(last_bias)))
    for weights, gain in ((w1[:-1].mT, 2**0.5), (w2.mT, 2**0.5), (w3, last_gain)):
        weights.copy_(torch.nn.init.orthogonal_(torch.empty(weights.shape), gain, generator=generator))
    b3[:, 0] = torch.tensor(last_bias)
    return flat[0]


class Network:
    """Forward and backward passes for up to ``policies`` networks on up to ``rows`` inputs each.

    It owns the buffers and no weights. :meth:`backward` belongs to the last :meth:`forward`, and uses up what that
    one kept.
    """

    def __init__(self, policies: int, rows: int, hidden: int, device: torch.device) -> None:
        self.hidden = hidden
        self._buffers = [torch.empty(policies * rows * hidden, device=device) for _ in range(3)]
        # Making views takes as long as a small product: those of the last call are kept.
        self._inputs: tuple[int, ...] = ()
        self._activations: list[Tensor] = []

    def forward(self, layers: Layers, x: Tensor) -> Tensor:
        """Outputs (C, out, B) for inputs ``x`` (C, B, 17) and weights :func:`logistic`."""
        if x.shape[:2] != self._inputs:
            self._inputs = x.shape[:2]
            shape = (*self._inputs, self.hidden)
            self._activations = [buffer[: math.prod(shape)].view(shape) for buffer in self._buffers]
        s1, s2, _ = self._activations
        torch.bmm(x, layers.w1, out=s1).sigmoid_()
        torch.bmm(s1, layers.w2, out=s2).add_(layers.b2).sigmoid_()
        # Few rows times many columns takes a third less time than many rows times few.
        return torch.baddbmm(layers.b3, layers.w3, s2.mT)

    def backward(self, layers: Layers, x: Tensor, slope: Tensor, slopes: Layers) -> None:
        """Write the loss's ``slopes`` by the weights that :func:`logistic` was given; ``slope`` (C, out, B) is by the
        outputs."""
        s1, s2, spare = self._activations
        twice = slope * 2.0
        torch.sum(slope, 2, keepdim=True, out=slopes.b3)
        torch.baddbmm(slopes.b3, twice, s2, beta=-1.0, out=slopes.w3)
        torch.bmm(twice.mT, layers.w3, out=spare)
        by_second = torch.ops.aten.sigmoid_backward.grad_input(spare, s2, grad_input=s2)
        torch.sum(by_second, 1, keepdim=True, out=slopes.b2)
        torch.baddbmm(slopes.b2, s1.mT, by_second, alpha=2.0, beta=-1.0, out=slopes.w2)
        torch.bmm(by_second, layers.w2.mT, out=spare)
        by_first = torch.ops.aten.sigmoid_backward.grad_input(spare, s1, grad_input=s1)
        torch.bmm(x.mT, by_first, out=slopes.w1)


class Adam:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980) for the rows of one matrix, each with its own clipped gradient.

    ``weights``, ``mean``, ``square`` (C, N) and ``steps`` (C, 1) may be views of a larger population's.
    """

    def __init__(self, weights: Tensor, mean: Tensor, square: Tensor, steps: Tensor) -> None:
        self.weights, self._mean, self._square, self._steps = weights, mean, square, steps
        self.gradient = torch.zeros_like(weights)

    def step(self, rate: Tensor, largest: Tensor, alive: Tensor) -> Tensor:
        """One step along ``gradient``, whose norm is cut to ``largest`` (C, 1), at ``rate`` (C, 1); norms before the
        cut (C, 1).

        Rows where ``alive`` (C, 1) is 0 stay as they are to the last bit.
        """
        norm: Tensor = torch.linalg.vector_norm(self.gradient, dim=1, keepdim=True)
        self.gradient.mul_((norm + 1e-6).reciprocal_().mul_(largest).clamp_max_(1.0))
        first, second = _DECAYS
        self._steps += alive
        self._mean.lerp_(self.gradient, alive * (1.0 - first))
        self._square.lerp_(self.gradient.square_(), alive * (1.0 - second))
        # A row that never moved has no steps: its correction is anything but zero.
        count = self._steps.clamp_min(1.0)
        # 1 - decay^count, by a quicker and closer way than a power.
        by_mean, by_square = (torch.expm1(count * math.log(decay)).neg_() for decay in _DECAYS)
        spread = by_square.sqrt_()
        # Infinite where nothing may move. The gradient has served: its memory is at hand.
        slowness = by_mean.div_(spread * rate * alive)
        torch.sqrt(self._square, out=self.gradient).add_(spread.mul_(_EPSILON)).mul_(slowness)
        self.weights.addcdiv_(self._mean, self.gradient, value=-1.0)
        return norm


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread per product, oneDNN's where they are exact; what was set before comes back afterwards.

    Torch's own choice on x86 for float32 is MKL, which on AMD reaches half the rate. oneDNN is asked
    for by allowing it bfloat16; a CPU with bfloat16 matrix units would then round the inputs, so a
    trial product decides whether the permission stays.
    """
    threads = torch.get_num_threads()
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at import
    precision = products.fp32_precision
    torch.set_num_threads(1)
    try:
        products.fp32_precision = "bf16"
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.randn(1024, 128, generator=generator), torch.randn(128, 128, generator=generator))
        exact = left.double() @ right.double()
        if float((left @ right - exact).abs().max()) > 1e-4:
            products.fp32_precision = precision
        yield
    finally:
        products.fp32_precision = precision
        torch.set_num_threads(threads)
