"""The action's distribution: ``2 sigmoid(u)`` with ``u ~ Normal(m, s)``, a number in [0, 2]."""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import numpy as np
import torch
from torch import Tensor

from layer3.agent.policy import LOG_SD_HIGH, LOG_SD_LOW

__all__ = ["bounded_log_sd", "entropy", "entropy_slopes", "log_density"]

_NODES: Final = np.polynomial.hermite_e.hermegauss(16)


def log_density(action: Tensor, mean: Tensor, log_sd: Tensor) -> Tensor:
    """Log-density of u under Normal(m, s), less the constant -log(2 pi) / 2."""
    return -0.5 * ((action - mean) * torch.exp(-log_sd)).square_() - log_sd


def bounded_log_sd(raw: Tensor) -> Tensor:
    """The network's second number as a log standard deviation."""
    return raw.clamp(LOG_SD_LOW, LOG_SD_HIGH)


@cache
def _quadrature(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes (16, 1), and each one's weight, alone and times the node (2, 16)."""
    nodes, weights = (torch.as_tensor(part) for part in _NODES)
    weights = weights / math.sqrt(2.0 * math.pi)
    return nodes.unsqueeze(1).to(device, dtype), torch.stack((weights, weights * nodes)).to(device, dtype)


def entropy(mean: Tensor, log_sd: Tensor) -> Tensor:
    """Differential entropy (C, B) of ``2 sigmoid(u)`` on [0, 2], in nats.

    ``H(u) + E log |d action / d u|``, the expectation by Gauss-Hermite quadrature with 16 nodes.
    """
    nodes, weights = _quadrature(mean.dtype, mean.device)
    u = torch.addcmul(mean.unsqueeze(1), log_sd.exp().unsqueeze(1), nodes)
    stretch = torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u)
    return log_sd + 0.5 * math.log(2.0 * math.pi * math.e) + math.log(2.0) + weights[0] @ stretch


def entropy_slopes(mean: Tensor, sd: Tensor) -> Tensor:
    """By mean and log s (C, B) each, (C, 2, B): 1 - 2 E sigmoid(u) and 1 - 2 s E[n sigmoid(u)] over u = mean + s n."""
    nodes, weights = _quadrature(mean.dtype, mean.device)
    slopes = weights @ torch.addcmul(mean.unsqueeze(1), sd.unsqueeze(1), nodes).sigmoid_()
    slopes[:, 1].mul_(sd)
    return slopes.mul_(-2.0).add_(1.0)
