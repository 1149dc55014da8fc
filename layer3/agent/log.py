"""What a training says while it goes: a line every tenth of the way, warnings, and a bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from layer3.agent import health

if TYPE_CHECKING:
    from tqdm import tqdm

    from layer3.agent.population import Report
    from layer3.agent.ppo import Progress

__all__ = ["TrainingLog", "duration", "line", "shown"]


def line(report: Report, episode_steps: int) -> str:
    """Where the training stands, in one line; an episode is ``episode_steps`` decisions of one window.

    Of several policies it gives the mean, and for reward and Sharpe ratio also lowest and highest.
    """
    figures = report.figures
    total = f"{report.total_steps // episode_steps:,}"
    done = f"{report.steps // episode_steps:,}"
    parts = [
        f"Episode {done:>{len(total)}}/{total}",
        f"Reward {_mean_and_range(figures, 'reward', '+.4f')}",
        f"Sharpe {_mean_and_range(figures, 'sharpe', '+.2f')}",
        f"Multiplier {_mean(figures, 'multiplier_mean'):.2f} ± {_mean(figures, 'multiplier_sd'):.2f}",
        f"Entropy {_mean(figures, 'entropy'):+.2f}",
        f"KL {_mean(figures, 'kl'):.4f}",
        f"Time {duration(report.seconds)}",
    ]
    if len(figures) > 1:
        parts.insert(1, f"{len(figures)} policies")
    return " | ".join(parts)


class TrainingLog:
    """Hand it every :class:`~layer3.agent.population.Report`: it says a line every tenth of the way at most.

    A warning (:mod:`layer3.agent.health`) is said once per policy and kind, when it first shows.
    """

    def __init__(self, names: Sequence[str], episode_steps: int, say: Callable[[str], None]) -> None:
        """``names[i]`` is what policy i is called; ``say`` gets one line at a time."""
        self._names = tuple(names)
        self._episode_steps = episode_steps
        self._say = say
        self._tenths = 0
        self._curves: dict[int, list[Progress]] = {}
        self._said: set[tuple[int, str]] = set()

    def __call__(self, report: Report) -> None:
        for policy, progress in zip(report.policies, report.figures, strict=True):
            self._curves.setdefault(policy, []).append(progress)
        tenths = 10 * report.steps // report.total_steps
        if tenths == self._tenths:
            return
        self._tenths = tenths
        self._say(line(report, self._episode_steps))
        fresh: dict[str, dict[str, str]] = {name: {} for name in self._names}
        for policy in report.policies:
            found = health.warnings_of(self._curves[policy])
            fresh[self._names[policy]] = {
                kind: text for kind, text in found.items() if (policy, kind) not in self._said
            }
            self._said |= {(policy, kind) for kind in found}
        for text in health.summary(fresh):
            self._say(f"WARNING: {text}")


@contextmanager
def shown(names: Sequence[str], episode_steps: int) -> Iterator[Callable[[Report], None]]:
    """For ``on_progress`` of a command line: the lines, and below them on a terminal a bar.

    The bar shows steps per second and the time left. Where standard output is no terminal, there
    are the lines alone.
    """
    out = sys.stdout
    if not out.isatty():
        yield TrainingLog(names, episode_steps, lambda text: print(text, file=out, flush=True))
        return
    from tqdm import tqdm

    bar: tqdm[Any] | None = None
    log = TrainingLog(names, episode_steps, lambda text: tqdm.write(text, file=out))

    def tell(report: Report) -> None:
        nonlocal bar
        if bar is None:
            # What was done before (a checkpoint, or the first update) would make it look too fast.
            bar = tqdm(
                total=report.total_steps,
                initial=report.steps,
                unit=" steps",
                unit_scale=True,
                leave=False,
                dynamic_ncols=True,
                file=out,
                desc="training",
            )
        bar.update(report.steps - bar.n)
        log(report)

    try:
        yield tell
    finally:
        if bar is not None:
            bar.close()


def duration(seconds: float) -> str:
    """A length of time as a reader wants it: 3.1 s, 12.5 min, 2.0 h."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5_997 else f"{seconds / 3_600:.1f} h"


def _mean(figures: Sequence[Progress], name: str) -> float:
    return float(sum(getattr(progress, name) for progress in figures) / len(figures))


def _mean_and_range(figures: Sequence[Progress], name: str, form: str) -> str:
    mean = format(_mean(figures, name), form)
    if len(figures) == 1:
        return mean
    values = [getattr(progress, name) for progress in figures]
    return f"{mean} ({min(values):{form}} to {max(values):{form}})"
