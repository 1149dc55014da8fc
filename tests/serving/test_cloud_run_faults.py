"""Whatever fails in a release on Cloud Run: the champion serves, and the same command, run again, finishes the job."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from layer3.champion import Channel, read
from layer3.errors import HimariError, ReleaseError
from serving.platforms.run_api import RunApi, retry_after
from serving.platforms.watch import Monitoring
from tests.serving.cloud import CANARY, IMAGE, STEPS, STORE, Desk, Ground
from tests.serving.support import ROOT

CALLS = [
    "GetService",
    "UpdateService",
    "GetOperation",
    "GetRevision",
    "ListRevisions",
    "DeleteRevision",
    "GetIamPolicy",
    "ListTimeSeries",
]


@pytest.fixture
def served(served: Desk) -> Desk:
    """As everywhere, but that each canary is looked at once."""
    served.watcher = served.glance
    return served


class Killed(BaseException):
    """The process is gone: nothing more of it happens."""


def kill_at(cloud: Desk, line: str) -> Callable[[str], None]:
    """A log that ends its process when ``line`` comes, as a kill would: no call of it gets through any more."""

    def log(said: str) -> None:
        if said.startswith(line):
            for call in CALLS:
                cloud.run.google.fail(call, status=403, times=1000)
            raise Killed

    return log


# No answer


@pytest.mark.parametrize(
    ("kind", "status", "retry_after"),
    [("drop", 0, None), ("lose", 0, None), ("status", 503, 0.0), ("status", 429, 2.0)],
)
def test_every_second_call_fails_and_the_release_is_made_all_the_same(
    served: Desk, kind: str, status: int, retry_after: float | None
) -> None:
    for call in CALLS:
        for _ in range(40):
            served.run.google.fail(call, kind, status=status or 503, retry_after=retry_after, skip=1)
    old, before = served.champion(), len(served.run.google.named("UpdateService"))
    assert served.release(2).outcome == "released"
    assert (served.champion(), served.serving()) == (served.model(2), {served.model(2): 100})
    assert served.rollback().champion.model_id == old
    assert served.serving() == {old: 100}
    assert len(served.run.revisions) == 2
    asked = len(served.run.google.named("UpdateService")) - before
    # Seven changes, and each attempt that did nothing; what was done but not heard of is not asked for again.
    assert (asked == 7) == (kind == "lose"), asked


@pytest.mark.parametrize("kind", ["drop", "lose"])
def test_the_first_release_over_a_bad_line(cloud: Desk, kind: str) -> None:
    cloud.run.google.fail("CreateService", kind)
    assert cloud.release(1).outcome == "released"
    assert len(cloud.run.revisions) == 1


@pytest.mark.parametrize(
    ("said", "waited"), [(7, [7.0, 7.0]), (0, [0.0, 0.0]), (3600, [30.0, 30.0]), (None, [0.5, 1.0])]
)
def test_the_time_that_an_answer_asks_for_is_waited(served: Desk, said: float | None, waited: list[float]) -> None:
    """Half a minute at most; the usual pauses where it asks for none."""
    slept: list[float] = []
    target = served.target()
    credentials = target.cloud.credentials()
    for call in ("GetService", "ListTimeSeries"):
        served.run.google.fail(call, status=429, retry_after=said)
    assert RunApi(target, credentials, sleep=slept.append).service() is not None
    Monitoring(target, credentials, sleep=slept.append)("himari-none", datetime.now(UTC))
    assert slept == waited


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("7", 7.0), ("0", 0.0), ("1.5", 1.5), ("", None), ("soon", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)],
)
def test_what_an_answer_asks_to_wait(said: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": said}) == seconds


@pytest.mark.parametrize("call", ["GetService", "UpdateService", "GetIamPolicy", "ListTimeSeries"])
def test_a_call_that_never_gets_an_answer(served: Desk, call: str) -> None:
    old = served.champion()
    served.run.google.fail(call, "drop", times=10_000, skip=2 if call == "GetService" else 0)
    with pytest.raises(ReleaseError, match=r"run the same command again"):
        served.release(2)
    served.run.google.heal()
    assert served.champion() == old
    assert served.serving().get(old, 0) >= 90
    assert served.release(2).outcome == "released"
    assert served.serving() == {served.model(2): 100}


# No permission


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("GetService", "grant it roles/run.developer on the service himari"),
        ("GetIamPolicy", "may not see who may call the service: .*grant it roles/run.developer"),
        ("GetRevision", "grant it roles/run.developer on the service himari"),
        ("UpdateService", "roles/iam.serviceAccountUser on himari-serving@"),
        ("ListTimeSeries", "roles/monitoring.viewer on project himari-tests"),
    ],
)
def test_a_permission_that_is_missing_is_named(served: Desk, call: str, said: str) -> None:
    old = served.champion()
    served.run.google.fail(call, status=403, message="Permission denied", times=10_000)
    with pytest.raises(ReleaseError, match=said):
        served.release(2)
    served.run.google.heal()
    assert served.champion() == old
    assert served.serving().get(old, 0) >= 90
    assert served.release(2).outcome == "released"


def test_a_bucket_that_refuses_the_record(served: Desk) -> None:
    old = served.champion()

    def refuse(line: str) -> None:
        if line.startswith("switch …"):
            served.gcs.fail(403)

    with pytest.raises(
        ReleaseError, match=r"step 'switch': cannot read gs://.*The traffic is back as it was"
    ) as caught:
        served.release(2, log=refuse)
    assert "may use the bucket" in str(caught.value)
    assert (served.champion(), served.serving()) == (old, {old: 100})
    assert served.release(2).outcome == "released"


def test_of_two_releasers_one_is_refused_and_the_record_leads(served: Desk) -> None:
    old = served.champion()

    def overtake(line: str) -> None:
        if line.startswith("canary 50 % ok"):
            served.release(3)

    with pytest.raises(ReleaseError, match=r"step 'canary 100 %': himari was changed by someone else") as caught:
        served.release(2, log=overtake)
    assert "Someone else has changed the traffic meanwhile" in str(caught.value)
    assert served.champion() == served.model(3) != old
    assert served.serving() == {served.model(3): 100}


def test_who_may_not_see_operations_watches_the_service(served: Desk) -> None:
    served.run.google.fail("GetOperation", status=403, times=10_000)
    assert served.release(2).outcome == "released"
    missing = IMAGE[:-1] + "3"
    with pytest.raises(ReleaseError, match=f"step 'revision': .*Image '{missing}' not found"):
        served.release(3, image=missing)
    assert served.serving() == {served.model(2): 100}


# An operation that never ends


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_an_operation_that_never_ends(served: Desk, skip: int) -> None:
    old, before, ticks = served.champion(), len(served.run.google.named("UpdateService")), itertools.count(step=0.1)
    served.run.google.fail("UpdateService", "endless", skip=skip)
    served.operation_seconds = 0.3
    # The time of those before it does not count.
    served.clock = lambda: next(ticks) if len(served.run.google.named("UpdateService")) - before > skip else 0.0
    with pytest.raises(ReleaseError, match=r"operation projects/.* has not ended within 0.3 s: .*run the same command"):
        served.release(2)
    assert (served.champion(), served.serving()) == (old, {old: 100})
    served.operation_seconds, served.clock = 120.0, time.monotonic
    assert served.release(2).outcome == "released"


# A crash


@pytest.mark.parametrize("step", ["settle", *STEPS, *CANARY, "switch", "promote"])
def test_a_crash_between_any_two_steps(served: Desk, step: str) -> None:
    old, new = served.champion(), served.model(2)
    with pytest.raises(Killed):
        served.release(2, log=kill_at(served, f"{step} …"))
    served.run.google.heal()
    assert served.champion() == (new if step == "promote" else old)
    if step not in ("canary 100 %", "switch", "promote"):
        assert served.serving().get(old, 0) >= 50
    done = served.release(2)
    assert done.outcome == ("already serving" if step == "promote" else "released")
    assert (served.champion(), served.serving()) == (new, {new: 100})
    assert [to.tag for to in served.run.only().traffic] == ["champion"]
    assert len(served.run.revisions) == 2  # not a second one of the same model


@pytest.mark.parametrize("step", ["parity", "canary 50 %", "switch"])
def test_after_a_crash_another_candidate_cleans_up(served: Desk, step: str) -> None:
    old = served.champion()
    with pytest.raises(Killed):
        served.release(2, log=kill_at(served, f"{step} …"))
    served.run.google.heal()
    shares: list[dict[str, int]] = []
    served.release(3, log=lambda line: shares.append(served.serving()) if line.startswith("settle ok") else None)
    assert shares == [{old: 100}]
    assert served.serving() == {served.model(3): 100}
    assert {each.annotations["himari-model"] for each in served.run.revisions.values()} == {old, served.model(3)}


@pytest.mark.parametrize("step", ["canary 10 %", "canary 100 %", "switch"])
def test_after_a_crash_a_rollback_puts_the_champion_back_and_no_other(served: Desk, step: str) -> None:
    first = served.champion()
    old = served.release(2).model_id
    with pytest.raises(Killed):
        served.release(3, log=kill_at(served, f"{step} ok"))
    served.run.google.heal()
    lines = "\n".join(served.platform().describe(present()))
    if step == "switch":  # it was released: only its tag is missing
        assert (served.champion(), served.serving()) == (served.model(3), {served.model(3): 100})
        assert "cut short" not in lines
    else:
        assert served.serving()[served.model(3)] == int(step.split()[1])
        assert f"make rollback puts {old} back" in lines
        assert served.rollback().champion.model_id == old
        assert served.serving() == {old: 100}
        old = first
    assert served.rollback().champion.model_id == old
    assert served.serving() == {old: 100}


def test_a_rollback_that_dies_after_the_record_is_finished_by_the_next(served: Desk) -> None:
    old = served.champion()
    new = served.release(2).model_id
    with pytest.raises(Killed):
        served.rollback(log=kill_at(served, "settle …"))
    served.run.google.heal()
    assert (served.champion(), served.serving()) == (old, {new: 100})
    assert served.rollback().champion.model_id == old
    assert served.serving() == {old: 100}


def test_a_crash_of_the_first_release(cloud: Desk) -> None:
    with pytest.raises(Killed):
        cloud.release(1, log=kill_at(cloud, "parity …"))
    cloud.run.google.heal()
    assert cloud.champion() == "nobody"
    assert cloud.release(2).outcome == "released"
    assert cloud.serving() == {cloud.model(2): 100}
    with pytest.raises(HimariError, match="no model before"):
        cloud.rollback()


def test_killed_for_good(served: Desk, base: Ground) -> None:
    """A process of its own, and SIGKILL."""
    old = served.champion()
    program = (
        "import os, signal, sys; from dataclasses import replace; from pathlib import Path\n"
        "from serving.platforms.connect import connect; from serving.platforms.target import Target\n"
        "from serving.release import release\n"
        "def log(line):\n"
        "    if line.startswith('canary 50 %'): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"place = connect(Target.from_json(sys.argv[2]), {STORE!r}, log=log)\n"
        f"release(Path(sys.argv[1]), store={STORE!r}, run_id='r', platform=place, log=log)\n"
    )
    arguments = [str(served.candidate(2)), served.target().to_json()]
    killed = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, env=dict(os.environ), timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert served.champion() == old
    assert served.serving() == {old: 90, served.model(2): 10}
    assert served.release(2).outcome == "released"
    assert served.serving() == {served.model(2): 100}


def present() -> Channel:
    channel = read(STORE)
    assert channel is not None
    return channel
