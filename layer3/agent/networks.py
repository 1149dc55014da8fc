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
from typing import Any, Final

import torch
from torch import Tensor

from layer3 import contract

__all__ = ["Adam", "Network", "initial_weights", "single_threaded", "weights_of", "weights_size"]

_EPSILON: Final = 1e-5
_DECAYS: Final = (0.9, 0.999)


def _shapes(hidden: int, outputs: int) -> tuple[tuple[int, int], ...]:
    return (hidden, contract.STATE_DIM), (1, hidden), (hidden, hidden), (1, hidden), (outputs, hidden), (1, outputs)


def weights_size(hidden: int, outputs: int) -> int:
    """Numbers that one network holds."""
    return sum(rows * columns for rows, columns in _shapes(hidden, outputs))


def weights_of(flat: Tensor, hidden: int, outputs: int) -> list[Tensor]:
    """Views of ``flat`` (C, N): w1 (C, h, 16), b1 (C, 1, h), w2 (C, h, h), b2 (C, 1, h), w3 (C, out, h), b3."""
    shapes = _shapes(hidden, outputs)
    pieces = flat.split([rows * columns for rows, columns in shapes], dim=1)
    return [piece.unflatten(1, shape) for piece, shape in zip(pieces, shapes, strict=True)]


def initial_weights(hidden: int, last_bias: list[float], last_gain: float, generator: torch.Generator) -> Tensor:
    """Orthogonal weights (Saxe et al. 2014, arXiv:1312.6120) and zero biases but for the last, (N,) on the CPU."""
    flat = torch.zeros(1, weights_size(hidden, len(last_bias)))
    w1, _, w2, _, w3, b3 = weights_of(flat, hidden, len(last_bias))
    for weights, gain in ((w1, 2**0.5), (w2, 2**0.5), (w3, last_gain)):
        torch.nn.init.orthogonal_(weights[0], gain, generator=generator)
    b3[0, 0] = torch.tensor(last_bias)
    return flat[0]


class Network:
    """Forward and backward passes for up to ``policies`` networks on up to ``rows`` inputs each.

    It owns the buffers and no weights. :meth:`backward` belongs to the last :meth:`forward`, whose
    inputs and weights must still be there.
    """

    def __init__(self, policies: int, rows: int, hidden: int, outputs: int, device: torch.device) -> None:
        self._hidden, self._outputs = hidden, outputs
        self._buffers = [torch.empty(policies * rows * hidden, device=device) for _ in range(4)]
        # Making views takes as long as a small product: those of the last call are kept.
        self._inputs: tuple[int, ...] = ()
        self._activations: list[Tensor] = []
        self._weights, self._layers = torch.empty(0), list[Tensor]()
        self._slopes, self._gradient = torch.empty(0), list[Tensor]()

    def forward(self, flat: Tensor, x: Tensor) -> Tensor:
        """Outputs (C, B, out) for inputs ``x`` (C, B, 16) and weights ``flat`` (C, N)."""
        if flat is not self._weights:
            w1, b1, w2, b2, w3, b3 = weights_of(flat, self._hidden, self._outputs)
            self._weights, self._layers = flat, [w1.mT, b1, w2.mT, b2, w3.mT, b3, w2, w3]
        if x.shape[:2] != self._inputs:
            self._inputs = x.shape[:2]
            shape = (*self._inputs, self._hidden)
            self._activations = [buffer[: math.prod(shape)].view(shape) for buffer in self._buffers]
        w1, b1, w2, b2, w3, b3, _, _ = self._layers
        h1, h2, _, _ = self._activations
        # tanh(z) = 2 sigmoid(2 z) - 1, several times as fast on a CPU; the product doubles z on its way.
        torch.baddbmm(b1, x, w1, alpha=2.0, beta=2.0, out=h1).sigmoid_().mul_(2.0).sub_(1.0)
        torch.baddbmm(b2, h1, w2, alpha=2.0, beta=2.0, out=h2).sigmoid_().mul_(2.0).sub_(1.0)
        return torch.baddbmm(b3, h2, w3)

    def backward(self, x: Tensor, slope: Tensor, gradient: Tensor) -> None:
        """Write the loss's slope by the weights into ``gradient`` (C, N); ``slope`` (C, B, out) is by the outputs."""
        if gradient is not self._slopes:
            self._slopes, self._gradient = gradient, weights_of(gradient, self._hidden, self._outputs)
        w2, w3 = self._layers[-2:]
        g1, c1, g2, c2, g3, c3 = self._gradient
        h1, h2, d1, d2 = self._activations
        torch.bmm(slope.mT, h2, out=g3)
        torch.sum(slope, 1, keepdim=True, out=c3)
        torch.bmm(slope, w3, out=d2)
        torch.ops.aten.tanh_backward.grad_input(d2, h2, grad_input=d2)
        torch.bmm(d2.mT, h1, out=g2)
        torch.sum(d2, 1, keepdim=True, out=c2)
        torch.bmm(d2, w2, out=d1)
        torch.ops.aten.tanh_backward.grad_input(d1, h1, grad_input=d1)
        torch.bmm(d1.mT, x, out=g1)
        torch.sum(d1, 1, keepdim=True, out=c1)


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
        scale = torch.sqrt(self._square).div_((1.0 - second**count).sqrt_()).add_(_EPSILON)
        correction = (1.0 - first**count).reciprocal_()
        self.weights.addcdiv_(self._mean * (alive * correction.mul_(rate)), scale, value=-1.0)
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
