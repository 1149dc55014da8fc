"""Vertex Pipelines' schedules on this machine; :meth:`Schedules.fire` is what the clock does at the real service."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo, available_timezones

from google.cloud import aiplatform_v1 as v1
from google.cloud.aiplatform_v1.services.schedule_service.transports.rest_base import _BaseScheduleServiceRestTransport
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2

from tests.fakes.google import FakeGoogle, Refused, page

if TYPE_CHECKING:
    from tests.fakes.vertex.pipelines import Pipelines
    from tests.fakes.vertex.server import Place

__all__ = ["Schedules"]

_CRON: Final = re.compile(r"(?:(?:CRON_)?TZ=(\S+) )?(\S+) (\S+) (\S+) (\S+) (\S+)")
_BOUNDS: Final = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_MONTHS: Final = ("", *["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"])
_DAYS: Final = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_MUTABLE: Final = {
    "cron",
    "display_name",
    "start_time",
    "end_time",
    "max_run_count",
    "max_concurrent_run_count",
    "allow_queueing",
    "create_pipeline_job_request",
}
_STATE: Final = v1.Schedule.State
_ENDED: Final = ("PIPELINE_STATE_SUCCEEDED", "PIPELINE_STATE_FAILED", "PIPELINE_STATE_CANCELLED")


class Schedules:
    """State and handlers of the service; ``schedules`` by full name."""

    def __init__(self, google: FakeGoogle, place: Place, pipelines: Pipelines) -> None:
        self.schedules: dict[str, v1.Schedule] = {}
        self._google = google
        self._place = place
        self._pipelines = pipelines
        for name, request, handler in (
            ("CreateSchedule", v1.CreateScheduleRequest, self._create),
            ("GetSchedule", v1.GetScheduleRequest, self._get),
            ("ListSchedules", v1.ListSchedulesRequest, self._list),
            ("UpdateSchedule", v1.UpdateScheduleRequest, self._update),
            ("PauseSchedule", v1.PauseScheduleRequest, self._pause),
            ("ResumeSchedule", v1.ResumeScheduleRequest, self._resume),
            ("DeleteSchedule", v1.DeleteScheduleRequest, self._delete),
        ):
            google.serve(_BaseScheduleServiceRestTransport, name, request, handler)

    def fire(self, name: str) -> v1.PipelineJob | None:
        """Begin the run that is due; None where the schedule does not, because it is paused or has runs enough."""
        with self._google.lock:
            schedule = self.schedules[name]
            mine = [job for job in self._pipelines.jobs.values() if job.schedule_name == name]
            active = [job for job in mine if job.state.name not in _ENDED]
            if schedule.state != _STATE.ACTIVE or len(active) >= schedule.max_concurrent_run_count:
                return None
            job = v1.PipelineJob(schedule.create_pipeline_job_request.pipeline_job)
            job.schedule_name = name
            schedule.started_run_count += 1
            pipeline = job.pipeline_spec["pipelineInfo"]["name"]
            return self._pipelines.submit(job, f"{pipeline}-{datetime.now(UTC):%Y%m%d%H%M%S}{secrets.randbelow(1000)}")

    # Handlers.

    def _create(self, request: v1.CreateScheduleRequest) -> v1.Schedule:
        parent = self._place.canonical(request.parent)
        self._check(request.schedule)
        stored = v1.Schedule(request.schedule)
        stored.name = f"{parent}/schedules/{secrets.randbits(60)}"
        stored.state = _STATE.ACTIVE
        stored.create_time = datetime.now(UTC)
        self.schedules[stored.name] = _timed(stored)
        return stored

    def _get(self, request: v1.GetScheduleRequest) -> v1.Schedule:
        return self._find(request.name)

    def _list(self, request: v1.ListSchedulesRequest) -> v1.ListSchedulesResponse:
        self._place.canonical(request.parent)
        wanted = re.fullmatch(r'display_name="([^"]*)"', request.filter)
        if request.filter and wanted is None:
            raise Refused("INVALID_ARGUMENT", f"Invalid filter: {request.filter}")
        found = [one for one in self.schedules.values() if wanted is None or one.display_name == wanted[1]]
        schedules, token = page(found, request.page_size, request.page_token)
        return v1.ListSchedulesResponse(schedules=schedules, next_page_token=token)

    def _update(self, request: v1.UpdateScheduleRequest) -> v1.Schedule:
        stored = self._find(request.schedule.name)
        if stored.state == _STATE.COMPLETED:
            raise Refused("FAILED_PRECONDITION", f"Schedule {stored.name} is completed and cannot be updated.")
        unknown = set(request.update_mask.paths) - _MUTABLE
        if unknown or not request.update_mask.paths:
            raise Refused("INVALID_ARGUMENT", f"update_mask cannot hold {sorted(unknown) or 'nothing'}.")
        changed = v1.Schedule(stored)
        for path in request.update_mask.paths:
            setattr(changed, path, getattr(request.schedule, path))
        self._check(changed)
        self.schedules[stored.name] = _timed(changed)
        return changed

    def _pause(self, request: v1.PauseScheduleRequest) -> empty_pb2.Empty:
        stored = self._find(request.name)
        if stored.state != _STATE.ACTIVE:
            raise Refused("FAILED_PRECONDITION", f"Schedule {stored.name} is {stored.state.name}, not ACTIVE.")
        stored.state, stored.last_pause_time = _STATE.PAUSED, datetime.now(UTC)
        return empty_pb2.Empty()

    def _resume(self, request: v1.ResumeScheduleRequest) -> empty_pb2.Empty:
        stored = self._find(request.name)
        if stored.state != _STATE.PAUSED:
            raise Refused("FAILED_PRECONDITION", f"Schedule {stored.name} is {stored.state.name}, not PAUSED.")
        stored.state, stored.last_resume_time = _STATE.ACTIVE, datetime.now(UTC)
        stored.catch_up = request.catch_up
        _timed(stored)
        return empty_pb2.Empty()

    def _delete(self, request: v1.DeleteScheduleRequest) -> operations_pb2.Operation:
        stored = self._find(request.name)
        del self.schedules[stored.name]
        return self._google.operation(stored.name, lambda: None)

    def _find(self, name: str) -> v1.Schedule:
        schedule = self.schedules.get(self._place.canonical(name))
        if schedule is None:
            raise Refused("NOT_FOUND", f"Schedule {name} does not exist.")
        return schedule

    def _check(self, schedule: v1.Schedule) -> None:
        _cron(schedule.cron)
        if not 1 <= len(schedule.display_name) <= 128:
            raise Refused("INVALID_ARGUMENT", "display_name must be 1 to 128 characters long.")
        if schedule.max_concurrent_run_count < 1:
            raise Refused("INVALID_ARGUMENT", "max_concurrent_run_count must be at least 1.")
        request = schedule.create_pipeline_job_request
        if not request.parent:
            raise Refused("INVALID_ARGUMENT", "create_pipeline_job_request.parent is required.")
        self._place.canonical(request.parent)
        if request.pipeline_job_id:
            raise Refused(
                "INVALID_ARGUMENT", "create_pipeline_job_request.pipeline_job_id cannot be set in a schedule."
            )
        self._pipelines._check(request.pipeline_job, "scheduled")


def _cron(text: str) -> tuple[ZoneInfo, list[set[int]]]:
    """The zone and the five sets of a cron expression; refused as the service refuses it."""
    found = _CRON.fullmatch(text)
    if found is None:
        raise Refused("INVALID_ARGUMENT", f"Invalid cron expression: {text!r}.")
    zone = found[1] or "Etc/UTC"
    if zone not in available_timezones():
        raise Refused("INVALID_ARGUMENT", f"Invalid time zone in the cron expression: {zone!r}.")
    names: tuple[tuple[str, ...], ...] = ((), (), (), _MONTHS, tuple(_DAYS))
    sets = []
    for field, (low, high), words in zip(found.groups()[1:], _BOUNDS, names, strict=True):
        values: set[int] = set()
        for piece in field.lower().split(","):
            match = re.fullmatch(r"(\*|\w+)(?:-(\w+))?(?:/(\d+))?", piece)
            try:
                assert match is not None
                start, end = (
                    words.index(w) if w in words else int(w)
                    for w in (
                        (str(low), str(high))
                        if match[1] == "*"
                        else (match[1], match[2] or (str(high) if match[3] else match[1]))
                    )
                )
                step = int(match[3] or 1)
                assert low <= start <= end <= high
                values.update(range(start, end + 1, step))
            except (AssertionError, ValueError) as error:
                raise Refused("INVALID_ARGUMENT", f"Invalid cron expression: {text!r}: {piece!r}.") from error
        sets.append(values)
    return ZoneInfo(zone), sets


def _timed(schedule: v1.Schedule) -> v1.Schedule:
    """With the time of its next run, minute by minute, and that of its last change."""
    zone, (minutes, hours, days, months, weekdays) = _cron(schedule.cron)
    fields = schedule.cron.split()[-5:]
    moment = datetime.now(UTC).replace(second=0, microsecond=0)
    schedule.update_time = datetime.now(UTC)
    for _ in range(60 * 24 * 366):
        moment += timedelta(minutes=1)
        here = moment.astimezone(zone)
        if here.minute not in minutes or here.hour not in hours or here.month not in months:
            continue
        either = [here.day in days, bool({here.isoweekday(), here.isoweekday() % 7} & weekdays)]
        if (any if "*" not in (fields[2], fields[4]) else all)(either):
            schedule.next_run_time = moment
            break
    return schedule
