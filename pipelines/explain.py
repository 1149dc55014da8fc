"""Say in words why a run's candidate was released or not: ``python -m pipelines.explain`` (``make explain``)."""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from layer3 import storage
from layer3.backtest.explain import clean, explain_verdict, wrapped
from layer3.errors import ConfigurationError, HimariError, PipelineError
from pipelines.manifest import read_manifest

__all__ = ["explain_run", "find_run", "main"]

#: The word for the run that started last.
LATEST: Final = "latest"
#: Last lines of an error that are shown.
_ERROR_LINES: Final = 12


def find_run(runs: Path, wanted: str) -> Path:
    """The folder in ``runs`` of the run ``wanted``: its id, the only one that begins so, or "latest".

    Raises
    ------
    ConfigurationError : there is no such run, or there are several; the message names the nearest
    """
    names = sorted(path.parent.name for path in runs.glob("*/manifest.json"))
    if not names:
        raise ConfigurationError(
            f"there are no runs in {runs}: `make run-local` makes one, STORE=… names another place"
        )
    if wanted in names:
        return runs / wanted
    if wanted == LATEST:
        return runs / max(names, key=lambda name: (_started(runs / name), name))
    fitting = [name for name in names if wanted and name.startswith(wanted)]
    if len(fitting) == 1:
        return runs / fitting[0]
    if fitting:
        raise ConfigurationError(f"{len(fitting)} runs begin with {wanted!r}: {_some(fitting)}; say more of the id")
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4)
    hint = f"did you mean {_some(near)}?" if near else f"there are {_some(names[::-1])};"
    raise ConfigurationError(f"there is no run {wanted!r} in {runs}; {hint} RUN={LATEST} is the last one")


def explain_run(folder: Path, width: int) -> str:
    """What became of the run in ``folder``, in lines of at most ``width`` columns.

    Raises
    ------
    PipelineError : its manifest cannot be read, or is none
    """
    try:
        manifest = read_manifest(folder / "manifest.json")
        verdict = manifest["verdict"]
        said = explain_verdict(verdict, _context(manifest), width) if verdict else ""
    except (OSError, ValueError) as error:
        raise PipelineError(f"the record of run {folder.name} cannot be read: {error}") from error
    lines = [*wrapped(f"Run {folder.name}, started {manifest['started']}", width), ""]
    return "\n".join([*lines, said, *_ending(manifest, folder, width)]).rstrip() + "\n"


def _ending(manifest: Mapping[str, Any], folder: Path, width: int) -> list[str]:
    """How the run ended, as far as the verdict does not say it."""
    status, verdict, error = manifest["status"], manifest["verdict"], manifest["error"]
    released = manifest["released"].get("model_id")
    lines: list[str] = []
    if status == "FAILED":
        when = "after the gate had judged" if verdict else "before the gate had judged: there is no verdict"
        lines += wrapped(f"FAILED {when}. {_failed_step(manifest)}The error ends with", width)
        lines += [f"    {clean(line)[: width - 4]}" for line in (error or "no word").splitlines()[-_ERROR_LINES:]]
        lines += ["", *wrapped(f"All that its steps said: {folder / 'logs'}", width)]
    elif status == "RUNNING":
        lines += wrapped(
            "RUNNING: it is still at work, or it was killed before it could say how it ended. There is no verdict. "
            f"What its steps said so far: {folder / 'logs'}",
            width,
        )
    elif not verdict:
        lines += wrapped(f"{status}, and no gate judged anything in it: there is no verdict to explain.", width)
    if released:
        lines += wrapped(f"Released: {released}", width)
    elif verdict and verdict["passed"]:
        lines += wrapped("Nothing was released, although the verdict allowed it.", width)
    if verdict and (folder / "tear_sheet.html").is_file():
        lines += wrapped(f"The evidence in pictures: {folder / 'tear_sheet.html'}", width)
    return lines


def _failed_step(manifest: Mapping[str, Any]) -> str:
    names = [step["display_name"] or step["name"] for step in manifest["steps"] if step["status"] == "FAILED"]
    return f"The step that failed: {names[0]}. " if names else ""


def _context(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What was judged: what the evaluation said of itself, else what the run was asked for."""
    parameters = manifest["parameters"]
    context: dict[str, Any] = {
        "symbol": parameters.get("symbol"),
        "source": parameters.get("data"),
        "seed": parameters.get("seed"),
    }
    made = [step["outputs"]["artifacts"] for step in manifest["steps"]]
    told = next((artifacts["evaluation"]["metadata"] for artifacts in made if "evaluation" in artifacts), {})
    context |= {key: value for key, value in told.items() if not key.startswith(("period_", "training_period_"))}
    for period in ("period", "training_period"):
        if f"{period}_start" in told:
            context[period] = {side: told.get(f"{period}_{side}") for side in ("start", "end")}
    return context | {"synthetic": manifest["synthetic"]}


def _started(folder: Path) -> datetime:
    """When a run started; the beginning of time where its manifest does not say."""
    try:
        moment = datetime.fromisoformat(read_manifest(folder / "manifest.json")["started"])
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (OSError, ValueError, OverflowError):
        return datetime.min.replace(tzinfo=UTC)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.explain", description=__doc__)
    parser.add_argument("--run", default=LATEST, metavar="ID", help="the run's id, its beginning, or latest (latest)")
    parser.add_argument("--store", default=".", metavar="DIR", help="folder that holds runs/ (.)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: 0 for a run that could be explained, whatever became of it; 1 if its record cannot be read;
    2 for a run that is not there."""
    options = _parser().parse_args(arguments)
    width = max(80, min(shutil.get_terminal_size((96, 24)).columns, 100))
    try:
        if storage.is_remote(options.store):
            raise ConfigurationError(
                f"{options.store} is a bucket, and here the runs of this machine are explained: `make watch-pipeline "
                "RUN=<run id>` tells the verdict on a run of Vertex, also on one that has ended"
            )
        text = explain_run(find_run(storage.local_folder(options.store) / "runs", options.run or LATEST), width)
    except HimariError as error:
        print(f"explain: {clean(str(error))}", file=sys.stderr)
        return 1 if isinstance(error, PipelineError) else 2
    encoding = sys.stdout.encoding or "utf-8"
    # A terminal that lacks a sign shows another one; it does not end in a traceback.
    print(text.encode(encoding, "replace").decode(encoding), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
