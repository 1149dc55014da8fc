"""What a training run is asked for: the options of its command lines, checked before anything runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from layer3 import workflow
from layer3.backtest.folds import KINDS, shared_out
from layer3.backtest.gate import gate_config_text, parse_override
from layer3.errors import ConfigurationError
from layer3.market import exchange, simulator, sources
from layer3.sizing.config import chain_config_text
from pipelines.defaults import MEMBERS

__all__ = ["add_options", "checked"]


def add_options(parser: argparse.ArgumentParser, *, folds: int, fold_seeds: int) -> None:
    """Give ``parser`` the options that :func:`checked` reads, with these defaults of the walk-forward."""
    parser.add_argument(
        "--data",
        default="synthetic:default",
        help="candles: a CSV or Parquet file (plain or compressed, path or gs:// URI), exchange:SYMBOL such as "
        "coinbase:BTC-USD, or synthetic:NAME with NAME default, no-edge, or settings such as edge=0.5,seed=3 "
        "(synthetic:default)",
    )
    parser.add_argument("--symbol", default="", help="name of the market, e.g. BTC-USDT (from the data where possible)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the training (1)")
    parser.add_argument("--steps", type=int, default=500_000, help="environment steps of the training (500000)")
    parser.add_argument(
        "--members", type=int, default=MEMBERS, help="policies trained together, whose mean is served (%(default)s)"
    )
    parser.add_argument("--folds", type=int, default=folds, help="folds of the walk-forward, 0 for none (%(default)s)")
    parser.add_argument("--fold-seeds", type=int, default=fold_seeds, help="policies per fold (%(default)s)")
    parser.add_argument("--fold-kind", choices=KINDS, default="rolling", help="training windows of the folds (rolling)")
    parser.add_argument("--threshold", type=float, help="least annualised Sharpe ratio (1.0), where there is no --gate")
    parser.add_argument("--gate", type=Path, help="what the gate asks, like config/gate.yaml (its own)")
    parser.add_argument("--override-name", default="", help="who releases what the gate refuses (nobody)")
    parser.add_argument("--override-reason", default="", help="why")
    parser.add_argument("--sizing", type=Path, help="settings of the sizing chain, like config/sizing.yaml (its own)")


def checked(options: argparse.Namespace) -> dict[str, Any]:
    """The pipeline's parameters that ``options`` mean, all but where it runs (store, fold_groups).

    A file on this machine is read, so that what ingest would refuse is refused here, in one sentence.

    Raises
    ------
    ConfigurationError, DataError : an option is out of range, or the data cannot be used
    """
    if not 0 <= options.seed < 2**32:
        raise ConfigurationError(f"seed is {options.seed}, expected an integer in [0, 2^32)")
    threshold = 1.0 if options.threshold is None else options.threshold
    if not -100.0 <= threshold <= 100.0:
        raise ConfigurationError(f"threshold is {threshold}, expected a Sharpe ratio in [-100, 100]")
    if options.gate is not None and options.threshold is not None:
        raise ConfigurationError(
            f"threshold is {threshold} and the gate's limits come from {options.gate}: write sharpe: {threshold:g} "
            "into that file and leave the threshold out"
        )
    if not 1 <= options.members <= workflow.MAX_MEMBERS:
        raise ConfigurationError(f"members is {options.members}, expected 1 to {workflow.MAX_MEMBERS} policies")
    if options.seed + options.members > 2**32:
        raise ConfigurationError(
            f"seed is {options.seed} and members is {options.members}: the last member's seed would be "
            f"{options.seed + options.members - 1}, expected below 2^32; take a smaller seed"
        )
    shared_out(options.folds, 1)
    if not 1 <= options.fold_seeds <= workflow.MAX_MEMBERS:
        raise ConfigurationError(f"fold_seeds is {options.fold_seeds}, expected 1 to {workflow.MAX_MEMBERS} policies")
    if not 2_048 <= options.steps <= 10**9:
        raise ConfigurationError(f"steps is {options.steps:,}, expected 2,048 (one rollout) to 1,000,000,000")
    limits = gate_config_text(options.gate)
    override = parse_override(options.override_name, options.override_reason)
    data = options.data
    if not data.strip():
        raise ConfigurationError("no data named: DATA=FILE, DATA=exchange:SYMBOL, or MARKET=default")
    if Path(data).exists():
        data = str(Path(data).resolve())
    symbol = options.symbol or sources.symbol_of(data)
    version = sources.version_of(data)
    if sources.is_synthetic(data):
        simulator.named(data, symbol)
    elif Path(data).exists():
        # What ingest would refuse is refused here, in one sentence and before a run begins.
        workflow.load_candles(data, symbol, version)
    elif not data.startswith("gs://"):
        exchange.connect(data.partition(":")[0]).close()
    return {
        "data": data,
        "symbol": symbol,
        "data_version": version,
        "seed": options.seed,
        "train_steps": options.steps,
        "members": options.members,
        "folds": options.folds,
        "fold_seeds": options.fold_seeds,
        "fold_kind": options.fold_kind,
        "sharpe_threshold": threshold,
        "gate_limits": limits,
        "override_name": override.name if override else "",
        "override_reason": override.reason if override else "",
        "sizing": chain_config_text(options.sizing),
    }
