"""What fails while a schedule is kept, below the command line, so that no test waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from layer3.errors import ConfigurationError, RefusedError, SourceError
from pipelines.schedule import Scheduler, on_schedule
from pipelines.submit import Request
from tests.fakes.cloud import World
from tests.pipelines.schedules import CRON, there

FAULTS: list[dict[str, Any]] = [{"kind": "drop"}, {"kind": "lose"}, {"status": 503}, {"status": 429}]


@pytest.fixture
def request_(compiled: Path, cloud: World) -> Request:
    spec = yaml.safe_load(compiled.read_text())
    parameters = {"store": "gs://bucket", "data": "synthetic:default", "symbol": "SYNTH-USD", "data_version": ""}
    return on_schedule(Request(spec, parameters, {"contract": "himari-state-1"}))


@pytest.fixture
def scheduler(cloud: World) -> Scheduler:
    """One that does not wait before it asks again."""
    return Scheduler(cloud.cloud, sleep=lambda seconds: None)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["ListSchedules", "CreateSchedule", "UpdateSchedule"])
def test_a_call_that_got_no_answer_makes_no_second_schedule(
    cloud: World, scheduler: Scheduler, request_: Request, name: str, fault: dict[str, Any]
) -> None:
    if name == "UpdateSchedule":
        scheduler.put(request_, CRON)
    cloud.vertex.fail(name, **fault)
    made, _ = scheduler.put(request_, "0 8 * * *")
    assert [one.name for one in there(cloud)] == [made.name]
    assert made.cron == "0 8 * * *"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", ["pause", "resume", "delete"])
def test_no_answer_to_the_others_is_asked_again(
    cloud: World, scheduler: Scheduler, request_: Request, command: str, fault: dict[str, Any]
) -> None:
    scheduler.put(request_, CRON)
    if command == "resume":
        scheduler.pause()
    cloud.vertex.fail(f"{command.title()}Schedule", **fault)
    getattr(scheduler, command)()
    assert [one.state.name for one in there(cloud)] == {"pause": ["PAUSED"], "resume": ["ACTIVE"], "delete": []}[
        command
    ]


def test_a_service_that_is_away_is_told_and_the_same_again_ends_the_job(cloud: World, request_: Request) -> None:
    slept: list[float] = []
    scheduler = Scheduler(cloud.cloud, sleep=slept.append)
    cloud.vertex.fail("CreateSchedule", status=503, retry_after=3, times=4)
    with pytest.raises(SourceError, match=r"did not answer in 4 attempts.*run the same again"):
        scheduler.put(request_, CRON)
    assert slept == [3.0, 3.0, 3.0]
    assert there(cloud) == []
    assert scheduler.put(request_, CRON)[1] is True
    assert len(there(cloud)) == 1


@pytest.mark.parametrize("name", ["ListSchedules", "CreateSchedule"])
def test_a_refusal_names_the_role(cloud: World, request_: Request, name: str) -> None:
    cloud.vertex.fail(name, status=403, message="Permission 'aiplatform.schedules.create' denied")
    with pytest.raises(RefusedError, match=r"aiplatform\.schedules\.create' denied.*roles/aiplatform\.user"):
        Scheduler(cloud.cloud, sleep=pytest.fail).put(request_, CRON)
    assert there(cloud) == []


def test_what_the_service_refuses_is_told_as_it_says(cloud: World, compiled: Path) -> None:
    spec = yaml.safe_load(compiled.read_text())
    scheduler = Scheduler(cloud.cloud, sleep=pytest.fail)
    with pytest.raises(RefusedError, match="Invalid cron expression"):
        scheduler.put(Request(spec, {"store": "gs://bucket"}, {}), "every monday")
    with pytest.raises(RefusedError, match="Parameter sturdy is not an input"):
        scheduler.put(Request(spec, {"store": "gs://bucket", "sturdy": "yes"}, {}), CRON)
    assert there(cloud) == []


def test_two_that_are_made_at_the_same_time_are_told_at_once(
    cloud: World, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(cloud.cloud, sleep=pytest.fail)
    made = scheduler._client.create_schedule
    monkeypatch.setattr(scheduler._client, "create_schedule", lambda **said: (made(**said), made(**said))[1])
    with pytest.raises(ConfigurationError, match="there are 2 schedules named himari-training"):
        scheduler.put(request_, CRON)


@pytest.mark.parametrize("call", ["update_schedule", "pause_schedule", "resume_schedule", "delete_schedule"])
def test_one_that_is_deleted_while_it_is_looked_at(
    cloud: World, request_: Request, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    scheduler = Scheduler(cloud.cloud, sleep=pytest.fail)
    made, _ = scheduler.put(request_, CRON)
    if call == "resume_schedule":
        scheduler.pause()
    asked = getattr(scheduler._client, call)

    def deleted_first(**said: Any) -> Any:
        cloud.vertex.schedules.schedules.clear()
        return asked(**said)

    monkeypatch.setattr(scheduler._client, call, deleted_first)
    if call == "update_schedule":
        anew, new = scheduler.put(request_, CRON)
        assert new
        assert [one.name for one in there(cloud)] == [anew.name]
        assert anew.name != made.name
    elif call == "delete_schedule":
        assert made.name.rpartition("/")[2] in scheduler.delete()
    else:
        with pytest.raises(ConfigurationError, match="was deleted in between: `make schedule CRON="):
            getattr(scheduler, call.partition("_")[0])()
