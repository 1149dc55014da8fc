"""The steps of the workflow as plain functions over files; a pipeline component only adapts one of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from layer3 import contract, storage, trials
from layer3.agent.bars import Bars, load_bars, prepare, save_bars
from layer3.agent.environment import Account, EnvironmentConfig
from layer3.agent.policy import Policy, stack
from layer3.agent.policy_file import GOLDEN_PAIRS, save_policy
from layer3.backtest.engine import Decide, asking, run
from layer3.backtest.metrics import summarise
from layer3.backtest.record import KELLY_ONLY, POLICY
from layer3.errors import ConfigurationError, DataError, NothingToLearnError, TrainingError
from layer3.market import sources
from layer3.market.candles import CandleReport
from layer3.market.features import bars_of
from layer3.market.splits import PURGE_HOURS, Splits, split
from layer3.sizing.config import parse_chain_config
from layer3.version import source_sha256

if TYPE_CHECKING:
    from layer3.agent.population import Report, Settings, Trained

__all__ = ["MAX_MEMBERS", "Fitted", "checkpoint_address", "curves_page", "fit", "ingest", "load_candles", "splits_of"]

#: Largest ensemble; every member costs the server one more pass through a network.
MAX_MEMBERS: Final = 64


def ingest(
    data: str, symbol: str, data_version: str, sizing: str, candles_path: Path, features_path: Path
) -> dict[str, Any]:
    """Load, check and store candles; run features, signals and the sizing chain over them once.

    ``data`` and ``data_version`` are as :func:`layer3.market.sources.load` takes them, except that data
    which can change must be pinned by a version: this step may be served from a cache, which would
    otherwise return old candles for a file that was replaced or a window that has moved on.
    ``sizing`` is the text of a YAML file like ``config/sizing.yaml``. Returns what lineage needs:
    symbol, source, synthetic, period, sha256 of the candles file, every count of repairs, where the
    signals came from. Too few bars to split are refused here, before anything trains.
    """
    synthetic = sources.is_synthetic(data)
    if not data_version and not synthetic:
        raise ConfigurationError(
            f"{data} is not pinned: give data_version, from layer3.market.sources.version_of (a file's sha256, "
            "or the end of an exchange's window)"
        )
    config = parse_chain_config(sizing, "sizing")
    frame, report = load_candles(data, symbol, data_version)
    frame.to_parquet(candles_path, index=False)
    bars, signals = prepare(frame, symbol, report.interval_seconds, config)
    info: dict[str, Any] = {
        **report.to_metadata(),
        "symbol": symbol,
        "source": f"{data} (SYNTHETIC, simulated)" if synthetic else data,
        "synthetic": synthetic,
        "data_sha256": _sha256(candles_path),
        "data_version": data_version,
        "signals": signals,
        "sizing_sha256": hashlib.sha256(sizing.encode()).hexdigest(),
        "code_version": source_sha256()[:12],
    }
    save_bars(features_path, bars, info)
    return info


def load_candles(data: str, symbol: str, data_version: str) -> tuple[pd.DataFrame, CandleReport]:
    """Candles that pass every check (:func:`layer3.market.sources.load`), and are enough to split."""
    # How many rows it takes to split says the split itself, which knows the bars' length.
    frame, report = sources.load(data, symbol, version=data_version, min_rows=2)
    try:
        _split(report.rows, report.interval_seconds)
    except DataError as error:
        raise DataError(f"{data}: {error}") from error
    return frame, report


def splits_of(bars: Bars) -> Splits:
    """The one split of this project: 60 % train, 15 % validation, the rest test, a week purged between."""
    return _split(len(bars), bars.interval_seconds)


def _split(bars: int, interval_seconds: int) -> Splits:
    return split(bars, purge=bars_of(PURGE_HOURS, interval_seconds))


@dataclass(frozen=True)
class Fitted:
    """A policy in its folder, its ``metrics`` on training and validation, and the training of each member.

    ``refusal`` says why nothing was trained, where the history holds nothing to learn: the policy then answers 1
    whatever it sees, has no members, and its manifest carries the same sentence, which the gate fails on.
    """

    policy: Policy
    metrics: dict[str, float]
    members: tuple[Trained, ...]
    refusal: str = ""


def fit(
    features_path: Path,
    folder: Path,
    *,
    seed: int,
    steps: int,
    members: int = 1,
    device: str = "cpu",
    store: str | None = None,
    now: datetime | None = None,
    on_progress: Callable[[Report], None] = lambda _: None,
) -> Fitted:
    """Train one policy on the training part and write it to ``folder``. Nothing of the test part is looked at.

    Parameters
    ----------
    seed : of the first member; the others follow it
    steps : environment steps of each member
    members : policies that are trained together, and whose mean multiplier is the policy's answer
    store : folder or ``gs://`` address where checkpoints go while it trains, under ``checkpoints/``, named
        after what is trained, so that the same training goes on from there; and where the training is
        written down as tried, under ``trials/``, at the time ``now``. Without it neither is kept.

    Raises
    ------
    TrainingError, ContractError : as :func:`layer3.agent.population.train`; or the policy cannot be written, and
        its checkpoint stays
    """
    # Only this step needs torch, whose import takes longer than most of the others run.
    from layer3.agent.population import Settings, train
    from layer3.agent.ppo import PPOConfig

    if not 1 <= members <= MAX_MEMBERS:
        raise ConfigurationError(f"members is {members}, expected 1 to {MAX_MEMBERS} policies in an ensemble")
    bars, info = load_bars(features_path)
    task = _Task(bars, info, splits_of(bars), Settings(PPOConfig(steps=steps)), range(seed, seed + members))
    checkpoint = None
    if store is not None:
        checkpoint = checkpoint_address(store, info, [seed, members, asdict(task.settings), device])
    try:
        trained = train(
            bars,
            seeds=task.seeds,
            folds=[task.splits.train],
            settings=[task.settings],
            device=device,
            checkpoint=checkpoint,
            on_progress=on_progress,
        )
    except NothingToLearnError as error:
        # A finding for the verdict, not a failure of the workflow.
        return _untrained(folder, task, str(error))
    draft = Policy(stack([member.tensors for member in trained]), {})
    metrics, own, returns = _measured(bars, task.splits, draft, trained)
    if store is not None:
        metrics["trials"] = float(_tried(store, task, own, returns, now or datetime.now(UTC)))
    policy = _saved(folder, draft, _details(task, metrics), trained[0].states, checkpoint)
    return Fitted(policy, metrics, trained)


@dataclass(frozen=True)
class _Task:
    """What is trained: the members of one policy, by their seeds, on the training part of one history."""

    bars: Bars
    info: Mapping[str, Any]
    splits: Splits
    settings: Settings
    seeds: range


def _untrained(folder: Path, task: _Task, refusal: str) -> Fitted:
    """A policy that answers 1 whatever it sees: what there is where nothing could be learnt."""
    d, wide = contract.STATE_DIM, 1
    shapes = {"mean": (d,), "w1": (d, wide), "b1": (wide,), "w2": (wide, wide), "b2": (wide,), "w3": (wide, 2)}
    tensors = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    tensors |= {"std": np.ones(d, dtype=np.float32), "b3": np.zeros(2, dtype=np.float32)}
    part = task.splits.train
    seen = Account(task.bars, 1, EnvironmentConfig()).flat_states[part.start : part.stop]
    metrics = {"steps": 0.0}
    details = _details(task, metrics) | {"refusal": refusal}
    policy = save_policy(folder, stack([tensors]), details, seen[: 4 * GOLDEN_PAIRS])
    return Fitted(policy, metrics, (), refusal)


def _tried(
    store: str, task: _Task, scores: Sequence[float | None], returns: trials.Returns | None, now: datetime
) -> int:
    """Write the training down as tried, and say how many trials of its data there are with it."""
    data = task.info["data_sha256"]
    trials.record(
        store,
        kind="run",
        data=trials.Data.of(task.info),
        seeds=list(task.seeds),
        folds=[{data: [task.splits.train]}],
        settings=[asdict(task.settings)],
        scores={trials.VALIDATION_SHARPE: scores},
        code_version=source_sha256()[:12],
        now=now,
        returns=returns,
    )
    return trials.count(store, data)


def _saved(
    folder: Path, draft: Policy, details: Mapping[str, Any], states: NDArray[np.float32], checkpoint: str | None
) -> Policy:
    """The policy in ``folder``, from where on its checkpoint is not needed any more."""
    try:
        policy = save_policy(folder, draft.tensors, details, states)
    except OSError as error:
        kept = f"; the finished training is {checkpoint}" if checkpoint else ""
        raise TrainingError(
            f"cannot write the policy {storage.disk_trouble(error, str(folder))} and run again{kept}"
        ) from error
    if checkpoint is not None:
        storage.remove(checkpoint)
    return policy


def curves_page(fitted: Fitted, device: str) -> str:
    """The page of the training, which was on ``device``: what every member went through, or why there was none."""
    from layer3.backtest.learning import TrainingContext, render_curves, render_untrained

    manifest, members = fitted.policy.manifest, fitted.members
    context = TrainingContext(
        symbol=manifest["symbol"],
        source=manifest["data"]["source"],
        synthetic=manifest["synthetic"],
        seeds=tuple(member.seed for member in members),
        device=device,
        model_id=fitted.policy.model_id,
        settings=asdict(members[0].settings) if members else {},
    )
    if fitted.refusal:
        return render_untrained(context, fitted.refusal)
    return render_curves(context, {f"seed-{member.seed}": member.curves for member in members})


def checkpoint_address(store: str, info: Mapping[str, Any], training: Sequence[Any]) -> str:
    """Where the checkpoint of a training lies: named after the data and the code, and ``training``, plain JSON that
    says everything else of it."""
    what = [info["data_sha256"], info["sizing_sha256"], *training, source_sha256()[:12]]
    name = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]
    return storage.join(store, "checkpoints", f"{name}.safetensors")


def _measured(
    bars: Bars, splits: Splits, draft: Policy, trained: Sequence[Trained]
) -> tuple[dict[str, float], list[float | None], trials.Returns | None]:
    """What the policy came to on training and validation, and each member's own Sharpe ratio and returns per bar
    (bars, members) on validation; no returns where a member lost its account."""
    last = [member.curves[-1] for member in trained]
    metrics = {
        "steps": float(last[0].steps),
        "members": float(len(trained)),
        **{
            f"final_{name}": sum(getattr(progress, name) for progress in last) / len(trained)
            for name in ("entropy", "explained_variance", "multiplier_sd")
        },
    }
    strategies: dict[str, Decide] = {POLICY: asking(draft), KELLY_ONLY: lambda *_: 1.0}
    alone = {f"member {k}": asking(Policy(stack([one.tensors]), {})) for k, one in enumerate(trained)}
    for part, walked in (("train", strategies), ("validation", strategies | alone)):
        tracks = run(bars, getattr(splits, part), walked)
        figures = {name: summarise(track, bars.interval_seconds) for name, track in tracks.items()}
        for name in strategies:
            for figure in ("sharpe", "total_return"):
                value = figures[name][figure]
                if value is not None:
                    metrics[f"{part}_{name}_{figure}"] = value
    equity = np.stack([tracks[name].equity for name in alone], axis=1)
    returns = (equity[1:] / equity[:-1] - 1.0).astype(np.float32) if (equity > 0.0).all() else None
    return metrics, [figures[name]["sharpe"] for name in alone], returns


def _details(task: _Task, metrics: Mapping[str, float]) -> dict[str, Any]:
    """What the manifest says of how the policy came to be."""
    bars, info, part = task.bars, task.info, task.splits.train
    return {
        "symbol": info["symbol"],
        "synthetic": info["synthetic"],
        "data": {
            "source": info["source"],
            "sha256": info["data_sha256"],
            "sizing_sha256": info["sizing_sha256"],
            "start": _time(bars, part.start),
            "end": _time(bars, part.stop - 1),
            "interval_seconds": bars.interval_seconds,
        },
        "seed": task.seeds.start,
        "code_version": source_sha256()[:12],
        "training": asdict(task.settings.ppo),
        "environment": asdict(task.settings.environment),
        "metrics": metrics,
    }


def _time(bars: Bars, at: int) -> str:
    return f"{np.datetime64(int(bars.timestamp[at]), 'ns').astype('datetime64[s]')}+00:00"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
