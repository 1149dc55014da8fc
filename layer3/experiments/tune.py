"""Search the hyperparameters on one market: ``make tune TRIALS=20``.

Each trial trains a few seeds together on the training part and is scored on the validation part; the
test part is not looked at, and nothing is released. Every trial goes into the ledger of trials.
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from layer3 import machine, storage, trials
from layer3.agent.bars import Bars
from layer3.agent.search import Values
from layer3.backtest.comparison import MEASURES, Reference, in_words, render_comparison
from layer3.errors import HimariError
from layer3.experiments.market import Market, load_market
from layer3.experiments.options import check_bounds, for_reading
from layer3.experiments.report import (
    SHOWN_IN_TERMINAL,
    TABLE_UNITS,
    Scored,
    comparison_of,
    in_order,
    rows_of,
    selection_note,
    terminal_table,
    validation_period,
)
from layer3.experiments.scoring import OBJECTIVE, Result, note, references, train_and_score
from layer3.experiments.study import Finished, finished, open_study, search, study_name
from layer3.experiments.workers import workers
from layer3.sizing.config import chain_config_text
from layer3.version import source_sha256

__all__ = ["main"]

#: The search's own stream of random numbers.
_SEED = 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m layer3.experiments.tune", description=__doc__)
    parser.add_argument("--data", default="synthetic:default", help="candles, as run-local takes them")
    parser.add_argument("--symbol", default="", help="name of the market, e.g. BTC-USDT (from the data where possible)")
    parser.add_argument("--trials", type=int, default=20, help="settings to try, the defaults first (20)")
    parser.add_argument("--seeds", type=int, default=3, help="policies per setting (3)")
    parser.add_argument("--steps", type=int, default=500_000, help="environment steps per policy (500000)")
    parser.add_argument("--jobs", type=int, default=2, help="settings that are trained side by side (2)")
    parser.add_argument("--sizing", type=Path, help="settings of the sizing chain, like config/sizing.yaml (its own)")
    parser.add_argument("--store", default=".", help="folder for tune/ and trials/ (this one)")
    return parser


def _work(
    bars: Bars, seeds: Sequence[int], steps: int, device: str, cores: int, values: Values, tell: Callable[[int], None]
) -> Result:
    return train_and_score(bars, values, seeds=seeds, steps=steps, device=device, workers=cores, on_progress=tell)


def _tune(options: argparse.Namespace) -> None:
    check_bounds(options, ("trials", "seeds", "steps", "jobs"))
    store = storage.local_folder(options.store)
    market = load_market(options.data, options.symbol, chain_config_text(options.sizing))
    # What cannot be scored is refused before anything is trained.
    measured = references(market.bars)
    seeds = range(1, options.seeds + 1)
    name = study_name(
        market.symbol,
        {
            "data": market.data.sha256,
            "sizing": market.data.sizing_sha256,
            "steps": options.steps,
            "seeds": options.seeds,
            "code": source_sha256(),
        },
    )
    folder = store / "tune" / name
    # Workers share the cores; more processes than cores would only wait for each other.
    cores = max(1, machine.cores() // options.jobs)
    work = functools.partial(_work, market.bars, seeds, options.steps, machine.compute_device(), cores)
    with open_study(folder) as study:
        before = finished(study)
        print(
            f"Study {name}: {market.symbol} from {market.info['source']}, {market.data.start[:10]} to "
            f"{market.data.end[:10]}, {options.seeds} seeds x {options.steps:,} steps; {len(before)} of "
            f"{options.trials} trials done, {options.jobs} at a time"
        )
        size = options.seeds * options.steps
        with (
            workers(min(options.jobs, max(options.trials - len(before), 0)), work) as crew,
            tqdm(
                total=max(options.trials, len(before)) * size,
                initial=len(before) * size,
                unit=" steps",
                unit_scale=True,
                dynamic_ncols=True,
                leave=False,
                # On a terminal only.
                disable=None,
            ) as bar,
        ):

            def ended(trial: Finished) -> None:
                note(
                    str(store),
                    market.data,
                    market.bars,
                    trial.values,
                    trial.result,
                    seeds=seeds,
                    steps=options.steps,
                    now=datetime.now(UTC),
                )
                tqdm.write(_line(trial))

            search(study, crew, options.trials, seed=_SEED, on_progress=bar.update, on_end=ended)
        done = finished(study)
    _conclude(market, done, measured, folder, trials.count(str(store), market.data.sha256), options)


def _line(trial: Finished) -> str:
    name = f"  trial {trial.number:<4}{'defaults' if trial.defaults else '':<10}"
    if trial.refusal:
        return f"{name}no score: {trial.refusal}"
    mean, reach = in_words(MEASURES[0], trial.scores[OBJECTIVE])
    return f"{name}reward {mean} ({reach})"


def _conclude(
    market: Market,
    done: Sequence[Finished],
    measured: Sequence[Reference],
    folder: Path,
    tried: int,
    options: argparse.Namespace,
) -> None:
    scored = [
        Scored("Defaults" if trial.defaults else f"Trial {trial.number}", trial.values, trial.defaults, trial.scores)
        for trial in done
        if not trial.refusal
    ]
    page = comparison_of(
        market,
        scored,
        measured,
        seeds=options.seeds,
        steps=options.steps,
        trials=tried,
        refused=len(done) - len(scored),
        name=folder.name,
    )
    path = folder / "comparison.html"
    storage.write_bytes(str(path), render_comparison(page).encode())
    print(f"\nValidation part of {market.symbol}, {validation_period(market)}. {TABLE_UNITS}\n")
    print(terminal_table(rows_of(in_order(scored, SHOWN_IN_TERMINAL)), measured))
    print()
    print(f"{len(done)} trials, {len(done) * options.seeds} policies; on record for these data: {tried:,} trainings.")
    print(selection_note(scored))
    if market.synthetic:
        print("SYNTHETIC market: this search says nothing about real trading.")
    print("Nothing was released, and the test part was not looked at.")
    print(f"\n  comparison  {for_reading(path)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: 0 when all trials have ended, 1 if a worker died or a file cannot be written, 2 for a bad
    argument, 130 when stopped."""
    again = "run the same command again to go on"
    try:
        _tune(_parser().parse_args(arguments))
    except HimariError as error:
        print(f"tune: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"tune: {storage.disk_trouble(error)}; what has ended is kept: {again}.", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"tune: {error} What has ended is kept: {again}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ntune: stopped; what has ended is kept: {again}.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
