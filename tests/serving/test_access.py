"""The access log: what a line says, how many there are, and that nothing it meets costs a request its answer."""

from __future__ import annotations

import io
import json
import os
from typing import Any, TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.access import AccessLog
from tests.fakes.clock import Clock
from tests.serving.support import NEUTRAL, make_policy, serving_process

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
NAME = "logging.googleapis.com"


class Book:
    """A log into memory, on a clock of our own."""

    def __init__(self, per_second: float = 10.0, project: str = "") -> None:
        self.out, self.clock = io.StringIO(), Clock(50.0)
        self.log = AccessLog(per_second, project, self.out, self.clock, lambda: 1_700_000_000.25)

    def write(self, status: int = 200, times: int = 1, **changes: Any) -> None:
        given = {
            "method": "POST",
            "path": "/predict",
            "seconds": 0.000123,
            "request_id": "abc-1",
            "caller": "desk",
            "trace": None,
        }
        for _ in range(times):
            self.log.write(status=status, **{**given, **changes})

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.getvalue().splitlines()]


def test_a_line_is_what_cloud_logging_reads() -> None:
    book = Book(project="desk-1")
    book.write(trace=f"{TRACE}/{0xAB};o=1".encode())
    assert book.lines == [
        {
            "time": "2023-11-14T22:13:20.250+00:00",
            "severity": "INFO",
            "message": "POST /predict 200",
            "httpRequest": {"requestMethod": "POST", "requestUrl": "/predict", "status": 200, "latency": "0.000123s"},
            "requestId": "abc-1",
            "caller": "desk",
            f"{NAME}/trace": f"projects/desk-1/traces/{TRACE}",
            f"{NAME}/trace_sampled": True,
            f"{NAME}/spanId": "00000000000000ab",
        }
    ]


@pytest.mark.parametrize(
    ("header", "project", "trace", "span", "sampled"),
    [
        (f"{TRACE}/171;o=1", "p", f"projects/p/traces/{TRACE}", "00000000000000ab", True),
        (f"{TRACE.upper()}/171;o=0", "p", f"projects/p/traces/{TRACE}", "00000000000000ab", False),
        (TRACE, "", TRACE, None, False),
        (f"{TRACE};o=1", "", TRACE, None, True),
        (f"{TRACE}/0", "", TRACE, None, False),
        (f"00-{TRACE}-00f067aa0ba902b7-01", "p", f"projects/p/traces/{TRACE}", "00f067aa0ba902b7", True),
        (f"00-{TRACE}-00f067aa0ba902b7-02", "", TRACE, "00f067aa0ba902b7", False),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-what-will-be", "", TRACE, "00f067aa0ba902b7", True),
    ],
)
def test_both_forms_of_a_trace_are_understood(
    header: str, project: str, trace: str, span: str | None, sampled: bool
) -> None:
    book = Book(project=project)
    book.write(trace=header.encode())
    (line,) = book.lines
    assert (line[f"{NAME}/trace"], line.get(f"{NAME}/spanId"), line[f"{NAME}/trace_sampled"]) == (trace, span, sampled)


@given(
    st.one_of(
        st.binary(max_size=80),
        st.sampled_from([b"", b"/", b"abc/1;o=1", f"ff-{TRACE}-00f067aa0ba902b7-01".encode(), TRACE[:-1].encode()]),
    )
)
def test_any_other_header_is_left_out(header: bytes) -> None:
    book = Book()
    book.write(trace=header)
    assert set(book.lines[0]) == {"time", "severity", "message", "httpRequest", "requestId", "caller"}


@given(path=st.text(max_size=4_000), request_id=st.text(max_size=128), method=st.text(max_size=100))
def test_whatever_a_caller_sends_is_one_line_that_a_pipe_takes_at_once(path: str, request_id: str, method: str) -> None:
    book = Book()
    book.write(path=path, request_id=request_id, method=method)
    text = book.out.getvalue()
    assert text.isascii()
    assert text.count("\n") == 1
    assert len(book.lines) == 1
    assert len(text) - len(json.dumps(request_id)) < 4096 - 128 * 2


@pytest.mark.parametrize(("status", "severity"), [(200, "INFO"), (307, "INFO"), (404, "WARNING"), (503, "ERROR")])
def test_how_grave_it_is_follows_from_the_status(status: int, severity: str) -> None:
    book = Book()
    book.write(status)
    assert book.lines[0]["severity"] == severity


@pytest.mark.parametrize("per_second", [1, 10, 250])
def test_of_successes_so_many_a_second_are_written(per_second: int) -> None:
    book = Book(per_second)
    for second in range(5):
        book.clock.now = 50.0 + second
        book.write(times=1_000)
    assert book.log.written == 5 * per_second == len(book.lines)
    assert book.log.suppressed == 5_000 - 5 * per_second


def test_below_the_rate_every_one_is_written() -> None:
    book = Book(10)
    for number in range(500):
        book.clock.now = 50.0 + number / 9.0
        book.write()
    assert (len(book.lines), book.log.suppressed) == (500, 0)


def test_zero_writes_errors_only() -> None:
    book = Book(0)
    book.write(times=50)
    book.write(503, times=3)
    book.write(401, times=2)
    assert [line["httpRequest"]["status"] for line in book.lines] == [503, 503, 503, 401, 401]
    assert book.log.suppressed == 50


def test_errors_are_written_however_many_successes_there_are() -> None:
    book = Book(10)
    for _ in range(900):
        book.write(times=3)
        book.write(500)
    assert sum(line["severity"] == "ERROR" for line in book.lines) == 900


def test_a_flood_of_errors_is_counted_and_cannot_fill_the_disk() -> None:
    """An hour of a thousand refusals a second; ours among them are all written."""
    book = Book(10)
    for tenth in range(36_000):
        book.clock.now = 50.0 + tenth / 10.0
        book.write(401, times=10)
        if tenth % 600 == 0:
            book.write(500)
    written = [line for line in book.lines if "httpRequest" in line]
    ours = [line for line in written if line["severity"] == "ERROR"]
    assert len(ours) == 60
    assert 36_000 <= len(written) - len(ours) <= 1_000 + 36_000 + 1
    told = [line for line in book.lines if "suppressed" in line]
    assert len(told) <= 360
    assert told[-1]["severity"] == "WARNING"
    in_all = sum(line["suppressed"]["4xx"] for line in told)
    assert book.log.suppressed - 1_000 < in_all <= book.log.suppressed


def test_what_was_left_out_is_told_every_ten_seconds() -> None:
    book = Book(2)
    book.write(times=7)
    book.clock.now += 9.9
    book.write()
    assert [line for line in book.lines if "suppressed" in line] == []
    book.clock.now += 0.1
    book.write()
    (told,) = [line for line in book.lines if "suppressed" in line]
    assert told["message"] == "5 requests were not logged"
    assert told["suppressed"] == {"2xx": 5, "4xx": 0, "5xx": 0}
    assert told["severity"] == "INFO"
    book.clock.now += 10.0
    book.write()
    assert sum("suppressed" in line for line in book.lines) == 1


class _Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def closed() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("out", [_Broken(), closed()], ids=["broken", "closed"])
def test_a_log_that_cannot_be_written_costs_no_request_its_answer(out: TextIO) -> None:
    log = AccessLog(10, out=out, clock=Clock(50.0))
    log.write("GET", "/health", 200, 0.1, "a", None, None)
    log.write("GET", "/health", 500, 0.1, "a", None, None)
    assert (log.written, log.suppressed) == (0, 2)


def test_a_pipe_that_nobody_reads_is_not_waited_for() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as read_end, os.fdopen(writer, "w") as write_end:
        log = AccessLog(10, out=write_end, clock=Clock(50.0))
        for _ in range(1_000):  # 220 KB into 64 KiB: with a write that waits this line would be the last
            log.write("POST", "/predict", 500, 0.1, "a" * 40, "desk", None)
        assert log.written + log.suppressed == 1_000
        assert log.suppressed > 500
        os.set_blocking(reader, False)
        lines = read_end.read(1 << 20).splitlines()
        assert len(lines) == log.written
        assert all(json.loads(line)["httpRequest"]["status"] == 500 for line in lines)


def test_the_server_writes_it_to_standard_output(tmp_path: Any) -> None:
    make_policy(tmp_path)
    with serving_process(MODEL_URI=str(tmp_path), ACCESS_LOG_PER_SECOND="100", GOOGLE_CLOUD_PROJECT="desk-1") as server:
        server.client.wait_for_health("ready", process=server.process)
        headers = {"X-Request-ID": "mine-7", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        server.client.ask("POST", "/predict", "{", {"Content-Type": "application/json", **headers})
        server.client.predict(NEUTRAL)
        _, output = server.end()
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    (refused,) = [line for line in lines if line["requestId"] == "mine-7"]
    assert refused["httpRequest"]["status"] == 400
    assert refused[f"{NAME}/trace"] == f"projects/desk-1/traces/{TRACE}"
    assert any(line["message"] == "POST /predict 200" for line in lines)
