"""One measurement in a process of its own, with its thread counts in place before numpy is imported."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from layer3 import machine

__all__ = ["Run", "alone", "measure"]


@dataclass(frozen=True)
class Run:
    """What one training took and what it came to on bars that it had not seen.

    ``seconds`` in all, ``steps`` of the environment per policy; ``scores`` of the policies, and as
    ``shares`` of the rule's; ``excess``, the mean score less that of multiplier 1, with its standard
    error ``noise``; ``peak_bytes``, the most memory that the process held.
    """

    seconds: float
    steps: int
    scores: tuple[float, ...]
    shares: tuple[float, ...]
    excess: float
    noise: float
    peak_bytes: int

    def seconds_each(self, steps: int) -> float:
        """Seconds per policy, scaled to ``steps`` of the environment."""
        return self.seconds / len(self.scores) * steps / self.steps


def alone(module: str, function: str, *arguments: Any, **named: Any) -> Any:
    """``module.function(*arguments, **named)`` in a fresh process, every library on one thread.

    Whoever wants more threads than that starts them in ``function``. Modules go by name, so that
    the process loads no trainer's libraries but its own.
    """
    os.environ |= machine.ONE_THREAD
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_call, module, function, arguments, named).result()


def measure(text: str, module: str, function: str, *arguments: Any) -> Any:
    """Have :func:`alone` do it in bench, telling whoever waits what it is."""
    print(f"  … {text}", file=sys.stderr, flush=True)
    return alone(f"bench.{module}", function, *arguments)


def _call(module: str, function: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return getattr(importlib.import_module(module), function)(*arguments, **named)
