"""Follow a run on Vertex to its end: the states of its steps as they change, then the verdict.

    python -m pipelines.watch --run himari-training-…            (make watch-pipeline RUN=…)
    python -m pipelines.watch --run himari-training-… --cancel   (make cancel-pipeline RUN=…)

0 for a run that succeeded, whatever the verdict; 1 for one that failed, was cancelled, or goes on after all patience;
2 for a wrong argument or no answer; 130 after Ctrl-C, which stops the watching and not the run.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from google.cloud import aiplatform_v1 as v1

from layer3 import storage
from layer3.errors import ConfigurationError, HimariError, PipelineError
from layer3.market.sources import utc_now
from pipelines import console, job
from pipelines.conclusion import verdict_lines
from pipelines.training import NAME
from serving.cloud import CLOUD, Cloud, load_cloud
from serving.vertex import SECONDS, Waiter, asked, client

__all__ = ["HOURS", "catch_up", "conclude", "main", "pipeline_client", "watch"]

#: A run that has not ended after this long is no longer waited for.
HOURS: Final = 12.0
#: Seconds between two looks: short at first, when an error shows, then longer.
_FIRST_LOOK: Final = 1.0
_LONGEST_LOOK: Final = 15.0
#: Successful runs that are looked at for a record: what they cost is estimated by no more.
_NEWEST: Final = 5
_COLOURS: Final = {"FAILED": "red", "RUNNING": "cyan", "SUCCEEDED": "green", "CACHED": "green", "CANCELLED": "red"}

#: Of a pipeline job.
_RUN_ID: Final = re.compile(r"[a-z][a-z0-9-]{0,127}")

Show = Callable[[v1.PipelineJob], None]


def pipeline_client(cloud: Cloud) -> Any:
    """Vertex's service of pipelines."""
    return client(v1.PipelineServiceClient, cloud)


def name_of(cloud: Cloud, run_id: str) -> str:
    """The full name of a run."""
    return f"{cloud.parent}/pipelineJobs/{run_id}"


def watch(
    pipelines: Any,
    name: str,
    show: Show,
    *,
    hours: float = HOURS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Waiter = time.sleep,
) -> v1.PipelineJob:
    """Look at the run ``name`` until it has ended, and show it after every look; how it ended.

    Raises
    ------
    PipelineError : it has not ended after ``hours``
    SourceError, RefusedError : Vertex does not answer, or refuses
    """
    deadline, pause = clock() + hours * 3600.0, _FIRST_LOOK
    while True:
        run: v1.PipelineJob = asked(
            "look at the run", lambda: pipelines.get_pipeline_job(name=name, timeout=SECONDS), sleep=sleep
        )
        show(run)
        if job.ended(run):
            return run
        if clock() >= deadline:
            raise PipelineError(f"run {job.run_id_of(run)} is {job.state_of(run)} after {hours:g} hours, and goes on")
        sleep(pause)
        pause = min(pause * 1.3, _LONGEST_LOOK)


@contextmanager
def shown(live: bool) -> Iterator[Show]:
    """A table that changes in place on a terminal, else a line for every change."""
    if not live:
        yield _Lines()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False, vertical_overflow="visible") as display:
        yield lambda run: display.update(_table(run, utc_now()), refresh=True)


class _Lines:
    """Prints a step's line when its state has changed."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, int]] = {}

    def __call__(self, run: v1.PipelineJob) -> None:
        found = job.steps(run)
        for number, step in enumerate(found, start=1):
            if step.state != "PENDING" and self._said.get(step.name) != (step.state, step.done):
                self._said[step.name] = (step.state, step.done)
                place = f"[{number}/{len(found)}]"
                print(f"{place:<7} {step.display_name:<26} {step.state:<10} {_time(step, None)}".rstrip())
        state = job.state_of(run)
        if self._said.get("") != (state, 0):
            self._said[""] = (state, 0)
            print(f"run {state}")
        sys.stdout.flush()


def _table(run: v1.PipelineJob, now: datetime) -> Any:
    from rich.table import Table

    table = Table(title=f"{job.run_id_of(run)}: {job.state_of(run)}", title_justify="left", box=None)
    for heading in ("", "step", "state", "time"):
        table.add_column(heading)
    for number, step in enumerate(job.steps(run), start=1):
        table.add_row(str(number), step.display_name, step.state, _time(step, now), style=_COLOURS.get(step.state, ""))
    return table


def _time(step: job.StepState, now: datetime | None) -> str:
    """How long it took, or has taken until ``now``; and how many of its tasks are done, where it has several."""
    seconds = step.seconds
    if seconds is None and step.started and now:
        seconds = (now - datetime.fromisoformat(step.started)).total_seconds()
    took = "" if seconds is None else f"{seconds:.0f} s"
    return f"{took} {step.done}/{step.tasks}".strip() if step.tasks > 1 else took


def conclude(cloud: Cloud, run: v1.PipelineJob, file: str) -> int:
    """Write the run's record into the store and tell how it ended; the command's exit code."""
    record, uri = _recorded(cloud, run)
    run_id = record["run_id"]
    print()
    if record["verdict"]:
        print("\n".join(verdict_lines(record["verdict"])))
        print()
    if record["status"] != "SUCCEEDED":
        print(f"run {run_id} {record['status']}: {record['error'] or 'Vertex says no more'}", file=sys.stderr)
        for step in record["steps"]:
            if step["status"] == "FAILED":
                print(f"step {step['display_name']!r} failed: {step['error'] or 'see its log'}", file=sys.stderr)
        print(f"  logs    {console.links(cloud, run_id)['run']}", file=sys.stderr)
        status = f"make release-status CLOUD={shlex.quote(file)}"
        print(
            f"What serves is unchanged unless the failed step says otherwise (`{status}`). Correct the cause and run "
            "the same again: steps that succeeded come from the cache.",
            file=sys.stderr,
        )
        return 1
    if record["released"]:
        print(f"RELEASED {record['released']['model_id']}: `make rollback CLOUD={shlex.quote(file)}` takes it back.")
    elif record["verdict"]:
        print("REJECTED: nothing was released; what serves is unchanged.")
    else:
        print("SUCCEEDED: this pipeline releases nothing.")
    if record["synthetic"]:
        print("SYNTHETIC market: this run shows that the workflow works, and says nothing about real trading.")
    print(f"\nRun in {record['seconds']:.0f} s; record {uri}")
    return 0


def catch_up(cloud: Cloud, *, sleep: Waiter = time.sleep) -> list[str]:
    """Write the records that the newest successful runs lack, which nobody watched to their end; their ids.

    A schedule's runs are such.

    Raises
    ------
    SourceError, RefusedError : Vertex or the store does not answer, or refuses
    """
    pipelines = pipeline_client(cloud)
    request = v1.ListPipelineJobsRequest(
        parent=cloud.parent,
        filter=f'pipeline_name="{NAME}" AND state="PIPELINE_STATE_SUCCEEDED"',
        order_by="create_time desc",
        page_size=_NEWEST,
    )

    def ended() -> list[str]:
        page = next(pipelines.list_pipeline_jobs(request=request, timeout=SECONDS).pages)
        ours = storage.join(cloud.store, "runs")
        return [run.name for run in page.pipeline_jobs if run.runtime_config.gcs_output_directory == ours]

    written = []
    for name in asked("list the runs", ended, sleep=sleep):
        run_id = name.rpartition("/")[2]
        if not storage.exists(_record_uri(cloud, run_id)):
            look = partial(pipelines.get_pipeline_job, name=name, timeout=SECONDS)
            _recorded(cloud, asked("look at a run", look, sleep=sleep))
            written.append(run_id)
    return written


def _record_uri(cloud: Cloud, run_id: str) -> str:
    return storage.join(cloud.store, "runs", run_id, "manifest.json")


def _recorded(cloud: Cloud, run: v1.PipelineJob) -> tuple[dict[str, Any], str]:
    """The run's record, and where it is written."""
    record = job.manifest(run)
    uri = _record_uri(cloud, record["run_id"])
    storage.write_bytes(uri, (json.dumps(record, allow_nan=False, ensure_ascii=False, indent=1) + "\n").encode())
    return record, uri


def follow(
    cloud: Cloud,
    run_id: str,
    file: str,
    *,
    hours: float = HOURS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Waiter = time.sleep,
) -> int:
    """Watch the run to its end and tell how it ended, or how to go on where it was not seen; the exit code."""
    try:
        with shown(sys.stdout.isatty()) as show:
            pipelines, name = pipeline_client(cloud), name_of(cloud, run_id)
            run = watch(pipelines, name, show, hours=hours, clock=clock, sleep=sleep)
        return conclude(cloud, run, file)
    except KeyboardInterrupt:
        print(f"\nstopped watching; {_goes_on(run_id, file)}", file=sys.stderr)
        return 130
    except PipelineError as error:
        print(f"\n{error}; {_goes_on(run_id, file)}", file=sys.stderr)
        return 1
    except HimariError as error:
        print(f"\n{error}\n{_goes_on(run_id, file)}", file=sys.stderr)
        return 2


def _goes_on(run_id: str, file: str) -> str:
    return (
        f"whatever happens to run {run_id} happens without this terminal:\n"
        f"  follow it  {console.watch_command(run_id, file)}\n"
        f"  stop it    {console.cancel_command(run_id, file)}"
    )


def cancel(cloud: Cloud, run_id: str, file: str) -> int:
    """Ask Vertex to stop the run."""
    from google.api_core.exceptions import NotFound

    pipelines, name = pipeline_client(cloud), name_of(cloud, run_id)
    try:
        run: v1.PipelineJob = asked("look at the run", lambda: pipelines.get_pipeline_job(name=name, timeout=SECONDS))
        if job.ended(run):
            print(f"run {run_id} has ended already: {job.state_of(run)}")
            return 0
        asked("cancel the run", lambda: pipelines.cancel_pipeline_job(name=name, timeout=SECONDS))
    except NotFound as error:
        raise _unknown(cloud, run_id) from error
    status = f"make release-status CLOUD={shlex.quote(file)}"
    print(f"run {run_id} is being cancelled; what serves is unchanged unless it was releasing: `{status}`")
    return 0


def _unknown(cloud: Cloud, run_id: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is no run {run_id} in {cloud.parent}: see https://console.cloud.google.com/vertex-ai/pipelines/runs"
        f"?project={cloud.project}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    from google.api_core.exceptions import NotFound

    parser = argparse.ArgumentParser(
        prog="python -m pipelines.watch", description="Follow a run on Vertex, or stop it."
    )
    parser.add_argument("--run", required=True, help="the run's id")
    parser.add_argument("--cloud", default=str(CLOUD), metavar="FILE", help="which cloud (%(default)s)")
    parser.add_argument("--hours", type=float, default=HOURS, help="longest to wait (%(default)g)")
    parser.add_argument("--cancel", action="store_true", help="stop the run")
    chosen = parser.parse_args(arguments)
    try:
        cloud = load_cloud(Path(chosen.cloud))
        cloud.use_storage()
        if not _RUN_ID.fullmatch(chosen.run):
            raise ConfigurationError(
                f"which run? RUN is {chosen.run!r}; it must be a run's id, as `make run-pipeline` printed it"
            )
        if chosen.cancel:
            return cancel(cloud, chosen.run, chosen.cloud)
        return follow(cloud, chosen.run, chosen.cloud, hours=chosen.hours)
    except NotFound:
        print(f"watch: {_unknown(cloud, chosen.run)}", file=sys.stderr)
        return 2
    except HimariError as error:
        print(f"watch: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
