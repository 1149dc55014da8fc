"""Does what is learned on some markets hold on another? ``make assets ASSETS=BTC,ETH,SOL``.

One policy on all markets together, one on all but each, one on each alone, every one with several
seeds, and all judged on hours that no training saw. Nothing is chosen and nothing is released; every
policy goes into the ledger of trials.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from layer3 import machine, storage, trials
from layer3.agent.bars import concatenate
from layer3.agent.log import shown
from layer3.backtest.comparison import render_comparison
from layer3.backtest.holdout import decider
from layer3.errors import HimariError
from layer3.experiments.calendar import common_calendar
from layer3.experiments.market import data_of, load_market
from layer3.experiments.options import check_bounds, folder_name, for_reading
from layer3.experiments.report import TABLE_UNITS, terminal_table
from layer3.experiments.transfer import Experiment, comparison_of, folds_of, note, references_of, rows_of
from layer3.sizing.config import chain_config_text
from layer3.version import source_sha256

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m layer3.experiments.assets", description=__doc__)
    parser.add_argument("--assets", required=True, help="names, separated by commas: BTC,ETH,SOL")
    parser.add_argument(
        "--data",
        default="coinbase:{asset}-USD",
        help="candles, as run-local takes them, with {asset} where the name stands (coinbase:{asset}-USD); of "
        "synthetic:NAME every asset is another seed",
    )
    parser.add_argument("--seeds", type=int, default=5, help="policies for each row (5)")
    parser.add_argument("--steps", type=int, default=500_000, help="environment steps per policy (500000)")
    parser.add_argument("--sizing", type=Path, help="settings of the sizing chain, like config/sizing.yaml (its own)")
    parser.add_argument("--store", default=".", help="folder for assets/ and trials/ (this one)")
    return parser


def _load(options: argparse.Namespace) -> Experiment:
    assets = [asset.strip() for asset in options.assets.split(",") if asset.strip()]
    sizing = chain_config_text(options.sizing)
    markets = tuple(load_market(data, symbol, sizing) for data, symbol in data_of(options.data, assets))
    return Experiment(markets, common_calendar(markets), folds_of(len(markets)))


def _compare(options: argparse.Namespace) -> None:
    check_bounds(options, ("seeds", "steps"))
    store = storage.local_folder(options.store)
    experiment = _load(options)
    # What cannot be judged is refused before anything is trained.
    references = [references_of(experiment, number) for number in range(len(experiment.markets))]

    from layer3.agent.population import Settings, train
    from layer3.agent.ppo import PPOConfig

    seeds, settings = range(1, options.seeds + 1), Settings(PPOConfig(steps=options.steps))
    identity = {
        "data": [asdict(market.data) for market in experiment.markets],
        "seeds": options.seeds,
        "steps": options.steps,
        "code": source_sha256(),
    }
    folder = store / "assets" / folder_name(" ".join(market.symbol for market in experiment.markets), identity)
    policies = len(experiment.folds) * len(seeds)
    sets = f"{len(experiment.folds)} sets of markets x {len(seeds)} seeds"
    print(f"{policies} policies: {sets}, {options.steps:,} steps each")
    checkpoint = folder / "checkpoint.safetensors"
    names = [f"set {number} seed {seed}" for number in range(1, len(experiment.folds) + 1) for seed in seeds]
    with shown(names, settings.environment.episode_steps) as tell:
        trained = train(
            concatenate(experiment.calendar.bars),
            seeds=seeds,
            folds=[experiment.windows(fold) for fold in experiment.folds],
            settings=[settings],
            device=machine.compute_device(),
            checkpoint=str(checkpoint),
            on_progress=tell,
        )
    answers = iter([decider(policy.tensors) for policy in trained])
    deciders = {fold: [next(answers) for _ in seeds] for fold in experiment.folds}
    rows, tried = [], {}
    for number, market in enumerate(experiment.markets):
        rows.append(rows_of(experiment, number, deciders))
        note(experiment, number, rows[-1], store=str(store), seeds=seeds, settings=settings, now=datetime.now(UTC))
        tried[market.symbol] = trials.count(str(store), market.data.sha256)
    page = comparison_of(experiment, rows, references, seeds=options.seeds, steps=options.steps, tried=tried)
    path = folder / "comparison.html"
    storage.write_bytes(str(path), render_comparison(page).encode())
    storage.remove(str(checkpoint))
    print(TABLE_UNITS)
    for group in page.groups:
        print(f"\n{group.title}, {group.note}\n{terminal_table(group.rows, group.references)}")
    print("\n" + "\n".join(page.notes))
    if page.synthetic:
        print("SYNTHETIC markets: this says nothing about real trading.")
    print(f"\n  comparison  {for_reading(path)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: 0 when the page is written, 1 if a file cannot be, 2 for a bad argument, 130 when stopped."""
    try:
        _compare(_parser().parse_args(arguments))
    except HimariError as error:
        print(f"assets: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"assets: {storage.disk_trouble(error)}; then run the same command again to go on.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nassets: stopped; run the same command again to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
