"""Run the compiled training pipeline on this machine: no Docker, no cloud, the same YAML."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import secrets
import shlex
import signal
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml

from layer3 import storage
from layer3.errors import ConfigurationError, HimariError, PipelineError
from layer3.market import sources
from pipelines import spec as specs
from pipelines.arguments import add_options, checked
from pipelines.conclusion import verdict_lines
from pipelines.manifest import SCHEMA, write_manifest
from pipelines.observe import Execution, Watcher, observed
from pipelines.provenance import local_tag, provenance
from pipelines.records import refresh_index
from pipelines.trace import Trace

__all__ = ["execute", "main", "run"]

ROOT: Final = Path(__file__).resolve().parents[1]


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
    text = _read_spec(spec_path)
    spec = yaml.safe_load(text)
    name = spec["pipelineInfo"]["name"]
    started = datetime.now(UTC)
    run_id = f"{name}-{started:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder = store / "runs" / run_id
    try:
        (folder / "logs").mkdir(parents=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make {folder} ({error.strerror}): name another folder, STORE=…") from error
    parameters = specs.defaults(spec) | arguments
    print(f"Run {run_id}: {parameters['symbol']} from {parameters['data']}, seed {parameters['seed']}")
    trace = Trace(specs.leaves(spec), store, live=live)
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "run_id": run_id,
        "pipeline": name,
        "started": started.isoformat(timespec="milliseconds"),
        "parameters": parameters,
        "synthetic": sources.is_synthetic(parameters["data"]),
        **provenance(root),
        "spec_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    # A run that is killed stays in the index as one that never said how it ended.
    write_manifest(folder, manifest | trace.record() | {"status": "RUNNING"})
    refresh_index(store / "runs")
    error = None
    try:
        execute(spec, arguments, folder, root, trace.watcher, caching=caching)
    except BaseException as failure:
        error = _why(failure, trace)
        # kfp says that a step failed with a bare RuntimeError; the step's own words are raised below instead.
        if not isinstance(failure, RuntimeError):
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
        write_manifest(folder, manifest)
        refresh_index(store / "runs")
    if error:
        raise PipelineError(f"run {run_id} failed: {error}")
    return manifest


def _why(failure: BaseException, trace: Trace) -> str:
    if isinstance(failure, RuntimeError):
        return trace.failure() or str(failure)
    if isinstance(failure, KeyboardInterrupt):
        return "stopped by Ctrl-C or SIGTERM before it had ended"
    return f"{type(failure).__name__}: {failure}"


def execute(
    spec: Mapping[str, Any], arguments: Mapping[str, Any], folder: Path, root: Path, watcher: Watcher, *, caching: bool
) -> list[Execution]:
    """Let kfp's local runner execute the twin of any compiled spec, as the run ``folder.name`` in ``folder``; what ran.

    ``folder`` must hold an empty folder ``logs``. Raises a RuntimeError where a step failed, and a
    PipelineError where not exactly one branch of a condition ran.
    """
    from kfp import components, local
    from kfp.local import pipeline_orchestrator

    with (
        tempfile.TemporaryDirectory(prefix="himari-") as workspace,
        warnings.catch_warnings(),
        (folder / "kfp.log").open("w", encoding="utf-8") as log,
        observed(folder.name, folder / "logs", root, watcher) as executions,
    ):
        # kfp warns once per setting that only Vertex heeds (accelerator, display name).
        warnings.simplefilter("ignore")
        local.init(
            runner=local.SubprocessRunner(use_venv=False),
            pipeline_root=str(folder.parent),
            workspace_root=str(Path(workspace) / "kfp"),
            enable_caching=caching,
            cache_root=str(folder.parent / ".cache"),
        )
        twin = components.load_component_from_text(yaml.safe_dump(specs.localised(spec, local_tag(root))))
        with contextlib.redirect_stdout(log):
            pipeline_orchestrator.run_local_pipeline(twin.pipeline_spec, dict(arguments))
        _assert_one_branch(spec, {execution.name for execution in executions})
    return executions


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.local", description=__doc__)
    add_options(parser, folds=6, fold_seeds=2)
    parser.add_argument("--store", default=str(ROOT), help="folder for runs/, models/, channels/ (the project)")
    parser.add_argument("--spec", type=Path, default=ROOT / "build" / "training.yaml", help="the compiled pipeline")
    parser.add_argument("--no-cache", action="store_true", help="run every step anew")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: 0 for a run that ended, whatever the verdict; 1 if a step failed or a file cannot be written; 2 for
    a bad argument."""
    options = _parser().parse_args(arguments)
    try:
        store = storage.local_folder(options.store)
        # One process trains all folds together: there is one machine.
        chosen = checked(options) | {"fold_groups": 1, "store": str(store)}
        manifest = run(options.spec, chosen, store=store, caching=not options.no_cache, live=sys.stdout.isatty())
    except PipelineError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except HimariError as error:
        print(f"run-local: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"\nrun-local: {storage.disk_trouble(error)}; then run it again to go on.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrun-local: stopped; `make release-status` says what serves. Run it again to go on.", file=sys.stderr)
        return 130
    _conclude(manifest, store)
    return 0


def _conclude(manifest: Mapping[str, Any], store: Path) -> None:
    print("", *verdict_lines(manifest["verdict"]), sep="\n")
    print()
    there = "" if store == ROOT else f" STORE={shlex.quote(str(store))}"
    if manifest["released"]:
        model = manifest["released"]["model_id"]
        print(f"RELEASED {model}: `make serve{there}` serves it, `make rollback{there}` takes it back.")
    else:
        print("REJECTED: nothing was released; what serves is unchanged.")
    if manifest["synthetic"]:
        print("SYNTHETIC market: this run shows that the workflow works, and says nothing about real trading.")
    folder = store / "runs"
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    print(f"\nRun in {manifest['seconds']:.1f} s")
    print(f"  tear sheet  {folder / manifest['run_id'] / 'tear_sheet.html'}")
    print(f"  training    {folder / manifest['run_id'] / 'curves.html'}")
    print(f"  all runs    {folder / 'index.html'}")


if __name__ == "__main__":
    # A run that a supervisor ends says so in its manifest, and takes its step along, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
