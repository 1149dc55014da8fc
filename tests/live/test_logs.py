from __future__ import annotations

import asyncio
import io
import json
import logging
import logging.handlers
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer3.live.logs import JsonFormatter, configure, correlation
from layer3.types import PositionSizingDecision
from tests.fakes.threads import at_once
from tests.live.desk import CALM, CLOUD, Desk, Scripted, signal_of


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    stream = io.StringIO()
    name = "test_logs"
    handler = configure(stream, "DEBUG", name)
    yield logging.getLogger(name), stream
    logging.getLogger(name).removeHandler(handler)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_a_line_with_its_fields(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    before = datetime.now(UTC)
    logger.warning("no policy answered", extra={"source": "gcp_api", "waited_ms": 150.2, "tried": ("a", "b")})
    [line] = lines(stream)
    when = datetime.fromisoformat(line.pop("time"))
    assert before <= when <= datetime.now(UTC)
    assert when.utcoffset() is not None
    assert line == {
        "level": "WARNING",
        "logger": "test_logs",
        "message": "no policy answered",
        "source": "gcp_api",
        "waited_ms": 150.2,
        "tried": ["a", "b"],
    }


def test_the_time_is_utc_wherever_the_machine_stands() -> None:
    code = (
        "import logging, sys, time; time.tzset()\n"
        "from layer3.live.logs import JsonFormatter\n"
        "record = logging.makeLogRecord({'created': 1_767_258_000.25, 'msg': 'x'})\n"
        "print(JsonFormatter().format(record))"
    )
    environment = {"TZ": "Asia/Tokyo", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["time"] == "2026-01-01T09:00:00.250000Z"


def test_the_id_follows_threads_and_tasks_each_its_own(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    barrier = threading.Barrier(4, timeout=120)

    def work(name: str) -> None:
        with correlation(name):
            barrier.wait()
            logger.info("in", extra={"who": name})
            with correlation(f"{name}-inner"):
                logger.info("in", extra={"who": f"{name}-inner"})
            logger.info("in", extra={"who": name})
        logger.info("out")

    at_once(work, [f"t{i}" for i in range(4)])

    async def task(name: str) -> None:
        with correlation(name):
            await asyncio.sleep(0.001)
            logger.info("in", extra={"who": name})

    async def tasks() -> None:
        await asyncio.gather(*(task(f"a{i}") for i in range(5)))

    asyncio.run(tasks())
    found = lines(stream)
    assert len(found) == 4 * 4 + 5
    for line in found:
        assert line.get("decision_id") == line.get("who")


def test_the_id_is_that_of_the_caller_when_another_thread_formats(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    [target] = [handler for handler in logger.handlers if isinstance(handler.formatter, JsonFormatter)]
    waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    through = logging.handlers.QueueHandler(waiting)  # type: ignore[arg-type]
    for each in target.filters:
        through.addFilter(each)
    logger.removeHandler(target)
    logger.addHandler(through)
    with correlation("d-1"):
        logger.info("queued")
    logger.removeHandler(through)
    target.handle(waiting.get())
    assert lines(stream)[0]["decision_id"] == "d-1"


def test_an_exception_stays_on_its_line(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logger.exception("it failed: %s", "why\nnot", stack_info=True)
    [line] = lines(stream)
    assert line["message"] == "it failed: why\nnot"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: first\nsecond")
    assert line["stack"].startswith("Stack")


def test_what_json_cannot_say(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    bad = {"nan": float("nan"), "deep": {"inf": [float("-inf"), 1.0]}, "path": Path("/tmp"), "level": 3, "time": 0}
    logger.info("odd", extra=bad)
    [line] = lines(stream)
    assert line["nan"] is None
    assert line["deep"] == {"inf": [None, 1.0]}
    assert line["path"] == repr(Path("/tmp"))
    assert (line["level"], line["level_"], line["time_"]) == ("INFO", 3, 0)


@given(st.text(), st.dictionaries(st.from_regex(r"x[a-z]{0,5}", fullmatch=True), st.text() | st.floats() | st.binary()))
def test_always_one_line_of_ascii_json(message: str, fields: dict[str, Any]) -> None:
    record = logging.makeLogRecord({"msg": "%s", "args": (message,), **fields})
    text = JsonFormatter().format(record)
    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text)["message"] == message
    assert set(fields) <= set(json.loads(text))


def test_configured_twice_it_says_things_once() -> None:
    first, second = io.StringIO(), io.StringIO()
    other = logging.NullHandler()
    logger = logging.getLogger("test_logs.twice")
    logger.addHandler(other)
    configure(first, "INFO", logger.name)
    handler = configure(second, "WARNING", logger.name)
    logger.info("quiet")
    logger.warning("heard")
    assert [each for each in logger.handlers if isinstance(each.formatter, JsonFormatter)] == [handler]
    assert other in logger.handlers
    assert first.getvalue() == ""
    assert [line["message"] for line in lines(second)] == ["heard"]


def test_what_is_logged_within_a_decision_carries_its_id(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log

    def answer() -> float:
        logger.info("asked")
        return 1.5

    desk = Desk(CLOUD, Scripted(answer))
    desk.engine.observers.append(lambda *_: logger.info("told"))

    async def two() -> list[PositionSizingDecision]:
        return await asyncio.gather(*(desk.engine.acalculate_position(signal_of(), CALM, 100.0) for _ in range(2)))

    made = {decision.decision_id for decision in [desk.size(), *asyncio.run(two())]}
    logger.info("afterwards")
    *within, last = lines(stream)
    assert "decision_id" not in last
    for message in ("asked", "told"):
        assert {line["decision_id"] for line in within if line["message"] == message} == made
