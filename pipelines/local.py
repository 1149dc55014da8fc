"""Run the compiled training pipeline on this machine: no Docker, no cloud, the same YAML."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import platform
import secrets
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml

from layer3.errors import ConfigurationError, HimariError, PipelineError
from layer3.market import simulator, sources
from layer3.notification import check_webhook
from layer3.version import source_sha256
from layer3.workflow import SYNTHETIC_PREFIX
from pipelines import spec as specs
from pipelines.manifest import SCHEMA, write_manifest
from pipelines.observe import observed
from pipelines.records import refresh_index
from pipelines.trace import Trace

__all__ = ["main", "run"]

ROOT: Final = Path(__file__).resolve().parents[1]
_VERSIONED: Final = ("kfp", "google-cloud-pipeline-components", "torch", "numpy", "pandas", "safetensors", "fastapi")


def run(
    spec_path: Path,
    arguments: Mapping[str, Any],
    *,
    store: Path,
    root: Path = ROOT,
    caching: bool = True,
    live: bool = False,
) -> dict[str, Any]:
    """Execute the spec with ``arguments``; the run's manifest, also written to ``store/runs/<run id>``.

    Parameters
    ----------
    spec_path : a YAML file that ``compile.py`` wrote
    store : folder that holds ``runs/``, ``models/`` and ``channels/``
    root : the project, whose components run
    live : draw a progress bar (for terminals)

    Raises
    ------
    PipelineError : a step failed (its own last lines are in the message), or not exactly one
        branch of a condition ran; the manifest is written in either case
    """
    from kfp import components, local
    from kfp.local import pipeline_orchestrator

    text = _read_spec(spec_path)
    spec = yaml.safe_load(text)
    started = datetime.now(UTC)
    run_id = f"{spec['pipelineInfo']['name']}-{started:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder = store / "runs" / run_id
    (folder / "logs").mkdir(parents=True)
    source = _source_hash(root)
    trace = Trace(specs.leaves(spec), store, live=live)
    print(
        f"Run {run_id}: {arguments.get('symbol', '')} from {arguments.get('data', '')}, seed {arguments.get('seed', 1)}"
    )
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "run_id": run_id,
        "pipeline": spec["pipelineInfo"]["name"],
        "status": "RUNNING",
        "started": started.isoformat(timespec="milliseconds"),
        "parameters": dict(arguments),
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in _VERSIONED},
        "git": _git(root),
        "source_sha256": source_sha256(root),
        "spec_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "synthetic": str(arguments.get("data", "")).startswith(SYNTHETIC_PREFIX),
    }
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(store / "runs"),
        workspace_root=str(folder / ".workspace"),
        enable_caching=caching,
        cache_root=str(store / "runs" / ".cache"),
    )
    error = None
    try:
        with (
            warnings.catch_warnings(),
            (folder / "kfp.log").open("w", encoding="utf-8") as log,
            observed(run_id, folder / "logs", root, trace.watcher) as executions,
        ):
            # kfp warns once per setting that only Vertex heeds (accelerator, display name).
            warnings.simplefilter("ignore")
            twin = components.load_component_from_text(yaml.safe_dump(specs.localised(spec, source)))
            with contextlib.redirect_stdout(log):
                pipeline_orchestrator.run_local_pipeline(twin.pipeline_spec, dict(arguments))
            _assert_one_branch(spec, {execution.name for execution in executions})
    except RuntimeError as failure:
        error = trace.failure() or str(failure)
    except BaseException as failure:
        error = f"{type(failure).__name__}: {failure}" if str(failure) else type(failure).__name__
        raise
    finally:
        ended = datetime.now(UTC)
        manifest |= trace.record()
        manifest |= {
            "status": "FAILED" if error else "SUCCEEDED",
            "error": error,
            "ended": ended.isoformat(timespec="milliseconds"),
            "seconds": round((ended - started).total_seconds(), 3),
        }
        shutil.rmtree(folder / ".workspace", ignore_errors=True)
        write_manifest(folder, manifest)
        refresh_index(store / "runs")
    if error:
        raise PipelineError(f"run {run_id} failed: {error}")
    return manifest


def _assert_one_branch(spec: Mapping[str, Any], ran: set[str]) -> None:
    for group in specs.branches(spec):
        taken = [sorted(branch) for branch in group if branch & ran]
        if len(taken) != 1:
            names = " / ".join(", ".join(sorted(branch)) for branch in group)
            raise PipelineError(
                f"exactly one of the branches ({names}) must run, but {len(taken)} did: the condition was not "
                "answered with true or false; look at the gate's log"
            )


def _read_spec(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no compiled pipeline at {path}: run `make compile`") from error


def _source_hash(root: Path) -> str:
    """Names the local image: everything that may change what a step answers."""
    digest = hashlib.sha256(source_sha256(root).encode())
    for name in ("requirements.lock", "pyproject.toml"):
        if (root / name).exists():
            digest.update((root / name).read_bytes())
    digest.update(f"{sys.version}{platform.machine()}".encode())
    return digest.hexdigest()[:16]


def _git(root: Path) -> dict[str, Any]:
    def ask(*words: str) -> str | None:
        try:
            answer = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    changes = ask("status", "--porcelain")
    return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(changes)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.local", description=__doc__)
    parser.add_argument(
        "--data",
        default="synthetic:default",
        help="candles: a CSV or Parquet file (plain or compressed, path or gs:// URI), exchange:SYMBOL such as "
        "coinbase:BTC-USD, or synthetic:NAME with NAME default, no-edge, or settings such as edge=0.5,seed=3 "
        "(synthetic:default)",
    )
    parser.add_argument("--symbol", default="", help="name of the market, e.g. BTC-USDT (from the data where possible)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the training (1)")
    parser.add_argument("--steps", type=int, default=250_000, help="environment steps of the training (250000)")
    parser.add_argument("--threshold", type=float, default=1.0, help="least annualised Sharpe ratio (1.0)")
    parser.add_argument("--webhook", default="", help="address that is told how the run ended (none)")
    parser.add_argument("--store", type=Path, default=ROOT, help="folder for runs/, models/, channels/ (the project)")
    parser.add_argument("--spec", type=Path, default=ROOT / "build" / "training.yaml", help="the compiled pipeline")
    parser.add_argument("--no-cache", action="store_true", help="run every step anew")
    return parser


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Check what can be checked before anything runs; the pipeline's parameters."""
    if not 0 <= options.seed < 2**32:
        raise ConfigurationError(f"seed is {options.seed}, expected an integer in [0, 2^32)")
    if not -100.0 <= options.threshold <= 100.0:
        raise ConfigurationError(f"threshold is {options.threshold}, expected a Sharpe ratio in [-100, 100]")
    if options.steps < 2_048:
        raise ConfigurationError(f"steps is {options.steps}, expected at least 2,048 (one rollout)")
    check_webhook(options.webhook)
    data = options.data
    if Path(data).exists():
        data = str(Path(data).resolve())
    symbol = options.symbol or _symbol_of(data)
    if data.startswith(SYNTHETIC_PREFIX):
        simulator.named(data, symbol)
    return {
        "data": data,
        "symbol": symbol,
        "data_version": sources.version_of(data),
        "seed": options.seed,
        "train_steps": options.steps,
        "sharpe_threshold": options.threshold,
        "store": str(options.store.resolve()),
        "webhook": options.webhook,
    }


def _symbol_of(data: str) -> str:
    if data.startswith(SYNTHETIC_PREFIX):
        return "SYNTH-USD"
    if ":" in data and not data.startswith("gs://") and not Path(data).exists():
        return data.partition(":")[2]
    raise ConfigurationError(f"which market is {data}? Name it with SYMBOL=…, for example SYMBOL=BTC-USDT")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: 0 for a run that ended, whatever the verdict; 1 if a step failed; 2 for a bad argument."""
    options = _parser().parse_args(arguments)
    store = options.store.resolve()
    try:
        chosen = _arguments(options)
        manifest = run(options.spec, chosen, store=store, caching=not options.no_cache, live=sys.stdout.isatty())
    except PipelineError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except HimariError as error:
        print(f"run-local: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrun-local: stopped; nothing was released. Run it again to go on from the cache.", file=sys.stderr)
        return 130
    _conclude(manifest, store)
    return 0


def _conclude(manifest: Mapping[str, Any], store: Path) -> None:
    verdict = manifest["verdict"]
    print()
    for criterion in verdict["criteria"]:
        print(f"  {'pass' if criterion['passed'] else 'FAIL'}  {criterion['name']:<21} {criterion['sentence']}")
    print()
    if manifest["released"]:
        print(f"RELEASED {manifest['released']['model_id']}: `make serve` serves it, `make rollback` takes it back.")
    else:
        print("REJECTED: nothing was released; what serves is unchanged.")
    if manifest["synthetic"]:
        print("SYNTHETIC market: this run shows that the workflow works, and says nothing about real trading.")
    folder = store / "runs"
    print(f"\nRun in {manifest['seconds']:.1f} s")
    print(f"  tear sheet  {folder / manifest['run_id'] / 'tear_sheet.html'}")
    print(f"  all runs    {folder / 'index.html'}")


if __name__ == "__main__":
    sys.exit(main())
