"""The one schedule of the training pipeline on Vertex: set, list, pause, resume, delete.

    python -m pipelines.schedule set --cron "TZ=Etc/UTC 0 6 * * 1" --data coinbase:BTC-USD     (make schedule CRON=…)

A scheduled run is a submitted one that ingests the newest data: what it takes is decided when it runs, so ingest is
not served from the cache there. It begins only when the one before it has ended, and missed runs are not made up for.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from google.api_core import exceptions
from google.cloud import aiplatform_v1 as v1

from layer3.errors import ConfigurationError, HimariError, RefusedError
from layer3.market import sources
from pipelines.cron import EXAMPLE, checked_cron, runs_per_month
from pipelines.labels import data_label
from pipelines.prices import load_prices
from pipelines.submit import Request, add_request_options, prepared
from pipelines.training import NAME
from serving.cloud import CLOUD, Cloud, load_cloud
from serving.vertex import SECONDS, Waiter, asked, client

__all__ = ["NEWEST", "Scheduler", "described", "main", "on_schedule"]

#: The pipeline's parameter data_version: what there is when ingest runs.
NEWEST: Final = "newest"
_STEP: Final = "ingest"
_MASK: Final = ("cron", "max_concurrent_run_count", "allow_queueing", "create_pipeline_job_request")
_T = TypeVar("_T")
_COLUMNS: Final = ("schedule", "state", "when", "next run", "runs")


def on_schedule(request: Request) -> Request:
    """The same run over the newest data, which ingest therefore does not take from the cache.

    Its label ``data`` names them: which they will have been, each run's own record says.
    """
    spec = copy.deepcopy(dict(request.spec))
    for component in [spec["root"], *spec["components"].values()]:
        task = component.get("dag", {}).get("tasks", {}).get(_STEP)
        if task is not None:
            task["cachingOptions"] = {}
    parameters = dict(request.parameters) | {"data_version": NEWEST}
    labels = dict(request.labels) | {"data": data_label(str(parameters["data"]), NEWEST)}
    return dataclasses.replace(request, spec=spec, parameters=parameters, labels=labels)


class Scheduler:
    """The schedules of a cloud that bear the pipeline's name: there should be one."""

    def __init__(self, cloud: Cloud, *, sleep: Waiter = time.sleep) -> None:
        self._cloud = cloud
        self._client = client(v1.ScheduleServiceClient, cloud)
        self._sleep = sleep

    def put(self, request: Request, cron: str) -> tuple[v1.Schedule, bool]:
        """Create the schedule, or let the one that is there run ``request`` at ``cron``; and whether it is new.

        A paused one stays paused.

        Raises
        ------
        ConfigurationError : there are several, or the one there has come to its end
        SourceError, RefusedError : as :func:`serving.vertex.asked`
        """
        wanted = v1.Schedule(
            display_name=NAME,
            cron=cron,
            max_concurrent_run_count=1,
            allow_queueing=False,
            create_pipeline_job_request=v1.CreatePipelineJobRequest(
                parent=self._cloud.parent, pipeline_job=request.job(self._cloud, NAME)
            ),
        )
        return self._ask("set the schedule", lambda: self._put(wanted))

    def found(self) -> list[v1.Schedule]:
        """Every schedule of this name, the oldest first."""
        return self._ask("list the schedules", self._list)

    def pause(self) -> str:
        """Let no more runs begin; a sentence that says so. Raises as :meth:`put`, or where there is no schedule."""
        return self._ask("pause the schedule", self._pause)

    def resume(self) -> str:
        """Let runs begin again, without those that were missed; a sentence that says so. Raises as :meth:`pause`."""
        return self._ask("resume the schedule", self._resume)

    def delete(self) -> str:
        """Delete every schedule of this name; a sentence that says how many. Runs that are under way go on."""
        return self._ask("delete the schedule", self._delete)

    def _ask(self, what: str, call: Callable[[], _T]) -> _T:
        try:
            return asked(what, call, sleep=self._sleep)
        except exceptions.NotFound as error:
            raise RefusedError(
                f"cannot {what}: Vertex AI finds nothing at {self._cloud.parent}: check project and region in the "
                "cloud's configuration"
            ) from error

    # What follows looks first, so that it may be done again.

    def _list(self) -> list[v1.Schedule]:
        request = v1.ListSchedulesRequest(parent=self._cloud.parent, filter=f'display_name="{NAME}"')
        found = self._client.list_schedules(request=request, timeout=SECONDS)
        return sorted(found, key=lambda schedule: (schedule.create_time, schedule.name))

    def _one(self) -> v1.Schedule | None:
        found = self._list()
        if len(found) > 1:
            names = ", ".join(_id(schedule) for schedule in found)
            raise ConfigurationError(
                f"there are {len(found)} schedules named {NAME} in {self._cloud.parent} ({names}): `make "
                "schedule-delete` deletes them all, then make the one that you want again"
            )
        return found[0] if found else None

    def _there(self) -> v1.Schedule:
        found = self._one()
        if found is None:
            raise ConfigurationError(
                f"there is no schedule named {NAME} in {self._cloud.parent}: `make schedule CRON='…'` makes it"
            )
        return found

    def _put(self, wanted: v1.Schedule) -> tuple[v1.Schedule, bool]:
        there = self._one()
        if there is not None:
            if there.state == v1.Schedule.State.COMPLETED:
                raise ConfigurationError(
                    f"the schedule {_id(there)} has come to its end and cannot be changed: `make schedule-delete`, "
                    "then make it again"
                )
            wanted.name = there.name
            try:
                changed = self._client.update_schedule(
                    schedule=wanted, update_mask={"paths": list(_MASK)}, timeout=SECONDS
                )
                return changed, False
            except exceptions.NotFound:
                wanted.name = ""  # deleted since we looked
        made = self._client.create_schedule(parent=self._cloud.parent, schedule=wanted, timeout=SECONDS)
        self._one()  # refuses where somebody else has made one at the same time
        return made, True

    def _pause(self) -> str:
        there = self._there()
        if there.state == v1.Schedule.State.PAUSED:
            return f"schedule {_id(there)} is paused already"
        self._gone(there, lambda: self._client.pause_schedule(name=there.name, timeout=SECONDS))
        return f"schedule {_id(there)} is paused; `make schedule-resume` lets it go on"

    def _resume(self) -> str:
        there = self._there()
        if there.state == v1.Schedule.State.ACTIVE:
            return f"schedule {_id(there)} is active already"
        request = v1.ResumeScheduleRequest(name=there.name, catch_up=False)
        self._gone(there, lambda: self._client.resume_schedule(request=request, timeout=SECONDS))
        return f"schedule {_id(there)} goes on; what was missed is not made up for"

    def _delete(self) -> str:
        found = self._list()
        for schedule in found:
            try:
                self._client.delete_schedule(name=schedule.name, timeout=SECONDS).result(timeout=SECONDS)
            except exceptions.NotFound:
                continue  # somebody else's wish was the same
        if not found:
            return f"there is no schedule named {NAME} in {self._cloud.parent}"
        return f"deleted {', '.join(_id(schedule) for schedule in found)}; a run that is under way goes on"

    def _gone(self, schedule: v1.Schedule, call: Any) -> None:
        try:
            call()
        except exceptions.NotFound as error:
            raise ConfigurationError(
                f"schedule {_id(schedule)} was deleted in between: `make schedule CRON='…'` makes it anew"
            ) from error


def described(schedules: Sequence[v1.Schedule]) -> list[str]:
    """One line per schedule below a line of headings, and a warning where there are several."""
    rows = [_COLUMNS, *((_id(one), one.state.name, one.cron, _next(one), _runs(one)) for one in schedules)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(schedules) > 1:
        lines.append(f"WARNING: {len(schedules)} schedules bear this name: `make schedule-delete` deletes them all")
    return lines


def _next(schedule: v1.Schedule) -> str:
    if schedule.state != v1.Schedule.State.ACTIVE or not schedule.next_run_time:
        return "none"
    return f"{schedule.next_run_time:%Y-%m-%d %H:%M} UTC"


def _runs(schedule: v1.Schedule) -> str:
    last = schedule.last_scheduled_run_response
    if not last.scheduled_run_time:
        return f"{schedule.started_run_count} begun"
    return f"{schedule.started_run_count} begun, last {last.scheduled_run_time:%Y-%m-%d %H:%M} UTC: {last.run_response}"


def _id(schedule: v1.Schedule) -> str:
    return str(schedule.name.rpartition("/")[2])


def _set(options: argparse.Namespace) -> int:
    cron = checked_cron(options.cron)
    if Path(options.data).exists():
        raise ConfigurationError(
            f"{options.data} lies on this machine, where no later run finds it changed: a schedule takes "
            "DATA=exchange:SYMBOL, or a gs:// file that somebody replaces"
        )
    if options.override_name or options.override_reason:
        raise ConfigurationError(
            "an override is somebody's word on one run that they looked at, a schedule begins runs that nobody has: "
            "leave OVERRIDE_NAME and OVERRIDE_REASON out"
        )
    cloud, request, estimate = prepared(options)
    prices, runs = load_prices(options.prices), runs_per_month(cron)
    made, new = Scheduler(cloud).put(on_schedule(request), cron)
    print(f"schedule   {'created' if new else 'updated'}; every run begins with the newest data of {options.data}")
    print(f"a month    at most {runs:,.1f} runs, {runs * estimate.cad:,.2f} CAD")
    if runs * estimate.cad > (budget := prices.budget_cad / prices.budget_months):
        print(f"WARNING: the budget is {budget:.2f} CAD a month ({options.prices}), and MAX_COST is of one run alone")
    if sources.is_synthetic(options.data):
        print("WARNING: a synthetic market never has newer data: DATA=exchange:SYMBOL trains on a real one")
    print("\n".join(described([made])))
    console = "https://console.cloud.google.com/vertex-ai/pipelines/schedules"
    print(f"console    {console}?project={cloud.project}")
    if made.state == v1.Schedule.State.PAUSED:
        print("It is paused: `make schedule-resume` lets it go on.")
    return 0


def _act(options: argparse.Namespace) -> int:
    cloud = load_cloud(Path(options.cloud))
    scheduler = Scheduler(cloud)
    if options.command == "list":
        found = scheduler.found()
        missing = f"there is no schedule named {NAME} in {cloud.parent}: `make schedule CRON='{EXAMPLE}'` makes it"
        print("\n".join(described(found)) if found else missing)
    else:
        print({"pause": scheduler.pause, "resume": scheduler.resume, "delete": scheduler.delete}[options.command]())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.schedule", description="The schedule of the pipeline.")
    commands = parser.add_subparsers(dest="command", required=True)
    put = commands.add_parser("set", help="create the schedule, or change the one that is there")
    add_request_options(put)
    put.add_argument("--cron", required=True, help=f"when, such as {EXAMPLE!r}")
    put.set_defaults(run=_set)
    for name, words in (
        ("list", "show it, and when it runs next"),
        ("pause", "let no more runs begin"),
        ("resume", "let runs begin again"),
        ("delete", "remove it; a run that is under way goes on"),
    ):
        command = commands.add_parser(name, help=words)
        command.add_argument("--cloud", default=str(CLOUD), metavar="FILE", help="which cloud (%(default)s)")
        command.set_defaults(run=_act)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when done, 2 when it was not, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except HimariError as error:
        print(f"schedule: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nschedule: stopped; `make schedule-list` shows what there is, the same again goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
