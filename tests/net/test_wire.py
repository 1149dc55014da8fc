from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer3.errors import SourceError
from layer3.net.wire import MAX_BODY, MAX_HEAD, Answer, AnswerReader, request_bytes


def read(data: bytes, cuts: tuple[int, ...] = (), *, closed: bool = False) -> Answer | None:
    """Feed ``data`` in pieces; what is left after the answer came is not fed, as a caller would not read it."""
    reader = AnswerReader("there")
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        if start < end and (answer := reader.feed(data[start:end])) is not None:
            return answer
    return reader.finish() if closed else None


def head(*headers: str, status: str = "200 OK", version: str = "1.1") -> bytes:
    return "\r\n".join((f"HTTP/{version} {status}", *headers, "", "")).encode("latin-1")


def test_a_request() -> None:
    sent = request_bytes("POST", "/predict", {"Host": "h:1", "X": "y"}, b"{}")
    assert sent == b"POST /predict HTTP/1.1\r\nHost: h:1\r\nX: y\r\nContent-Length: 2\r\n\r\n{}"
    assert request_bytes("GET", "/", {"Host": "h"}) == b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def test_an_answer_with_a_length() -> None:
    data = head("Content-Length: 2", "X-One:  a b\t", "x-one: c", "Date: now") + b"hi"
    answer = read(data)
    assert answer == Answer(200, {"content-length": "2", "x-one": "a b, c", "date": "now"}, b"hi", reusable=True)


@pytest.mark.parametrize(
    ("data", "body", "reusable"),
    [
        (head("Transfer-Encoding: Chunked") + b"2\r\nhi\r\n0A;x=y\r\n0123456789\r\n0\r\n\r\n", b"hi0123456789", True),
        (head("Transfer-Encoding: chunked") + b"0\r\nTrailer: x\r\n\r\n", b"", True),
        (head("Content-Length: 0") + b"", b"", True),
        (head("Content-Length: 2", "Connection: Close") + b"hi", b"hi", False),
        (head("Content-Length: 2", version="1.0") + b"hi", b"hi", False),
        (head("Content-Length: 2", "Connection: keep-alive", version="1.0") + b"hi", b"hi", True),
        (head(status="204 No Content"), b"", True),
        (head() + b"the rest", b"the rest", False),
        (head(status="103 Early Hints") + head(status="100 Continue") + head("Content-Length: 1") + b"!", b"!", True),
    ],
)  # fmt: skip
def test_framings(data: bytes, body: bytes, reusable: bool) -> None:
    for cuts in ((), tuple(range(1, len(data)))):
        answer = read(data, cuts, closed=True)
        assert answer is not None
        assert (answer.body, answer.reusable) == (body, reusable)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"SSH-2.0-OpenSSH", "not HTTP"),
        (b"\x16\x03\x01", "not HTTP"),
        (b"HTTP/2 200\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "not HTTP"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "not HTTP"),
        (head(status="101 Switching Protocols"), "HTTP 101"),
        (head("no colon"), "a header that is none"),
        (head("Content-Length : 2"), "a header that is none"),
        (head("A: b", " folded: x"), "a header that is none"),
        (head(": x"), "a header that is none"),
        (head("A: \0"), "a header that is none"),
        (head("A: x\ny"), "a header that is none"),
        (head("Content-Length: -1"), "Content-Length is '-1'"),
        (head("Content-Length: 0x10"), "Content-Length"),
        (head("Content-Length: \xb2"), "Content-Length"),
        (head("Content-Length: 2", "Content-Length: 3") + b"hi", "Content-Length is '2, 3'"),
        (head(f"Content-Length: {10**30}"), "Content-Length"),
        (head("Content-Length: 2", "Transfer-Encoding: chunked"), "frames its answer"),
        (head("Transfer-Encoding: gzip, chunked"), "frames its answer"),
        (head(f"Content-Length: {MAX_BODY + 1}"), "exceeds 65536 bytes"),
        (head() + b" " * (MAX_BODY + 1), "exceeds 65536 bytes"),
        (head("Transfer-Encoding: chunked") + b"FFFFFFF\r\n", "exceeds 65536 bytes"),
        (head("Transfer-Encoding: chunked") + (b"4000\r\n" + b" " * 0x4000 + b"\r\n") * 5, "exceeds 65536 bytes"),
        (head("Transfer-Encoding: chunked") + b"-2\r\nhi\r\n", "chunk without a size"),
        (head("Transfer-Encoding: chunked") + b"0x2\r\nhi\r\n", "chunk without a size"),
        (head("Transfer-Encoding: chunked") + b"2;" + b"x" * 300, "chunk without a size"),
        (head("Transfer-Encoding: chunked") + b"2\r\nhiho\r\n", "longer than its 2 bytes"),
        (head("Transfer-Encoding: chunked") + b"0\r\n" + b"A: b\r\n" * 3_000, "trailer exceeds"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 3_000, "headers exceed"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * MAX_HEAD, "headers exceed"),
        (head(status="100 Continue") * 1_000, "headers exceed"),
        (head("Content-Length: 2") + b"hip", "went on after the end of its answer: 'p'"),
        (head("Content-Length: 2") + b"hi" + head("Content-Length: 2") + b"ho", "went on after the end"),
        (head("Transfer-Encoding: chunked") + b"0\r\n\r\nHTTP", "went on after the end"),
        (head(status="204 No Content") + b"x", "went on after the end"),
    ],
)  # fmt: skip
def test_what_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(SourceError, match=f"^there.*{says}"):
        read(data)


def test_a_larger_body_is_read_by_who_says_so() -> None:
    body = b" " * (MAX_BODY + 1)
    data = head(f"Content-Length: {len(body)}") + body
    answer = AnswerReader("there", max_body=len(body)).feed(data)
    assert answer is not None
    assert answer.body == body
    with pytest.raises(SourceError, match=f"exceeds {MAX_BODY} bytes"):
        AnswerReader("there", max_body=MAX_BODY).feed(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-", "within the headers"),
        (head("Content-Length: 5") + b"four", "before the 5 bytes"),
        (head("Transfer-Encoding: chunked") + b"4\r\nfour\r\n", "before its last chunk"),
        (head("Transfer-Encoding: chunked") + b"4\r\nfo", "before its last chunk"),
        (head(status="100 Continue"), "within the headers"),
    ],
)
def test_half_an_answer(data: bytes, says: str) -> None:
    assert read(data) is None
    with pytest.raises(SourceError, match=says):
        read(data, closed=True)


def test_without_a_length_only_the_end_tells() -> None:
    assert read(head() + b"the rest") is None


def test_whether_it_has_begun() -> None:
    reader = AnswerReader("there")
    assert not reader.begun
    assert reader.feed(head(status="100 Continue")) is None
    assert reader.begun


TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABC-_0123", min_size=1, max_size=12).map(lambda name: f"X-{name}")
VALUE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """An answer as h11 writes it, and its body."""
    body = draw(st.binary(max_size=300))
    headers = draw(st.lists(st.tuples(TOKEN, VALUE), max_size=5))
    chunked = draw(st.booleans())
    framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))
    headers.insert(draw(st.integers(0, len(headers))), framing)
    writer = h11.Connection(h11.SERVER)
    writer.receive_data(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    while writer.next_event() is not h11.NEED_DATA and writer.their_state is not h11.DONE:
        continue
    data = writer.send(h11.Response(status_code=draw(st.sampled_from([200, 404, 503])), headers=headers))
    size = draw(st.integers(1, 100))
    for start in range(0, len(body), size):
        data += writer.send(h11.Data(data=body[start : start + size]))
    return data + writer.send(h11.EndOfMessage()), body


@settings(max_examples=200, deadline=None)
@given(answers(), st.data())
def test_it_reads_what_h11_writes_wherever_the_pieces_end(written: tuple[bytes, bytes], data: st.DataObject) -> None:
    raw, body = written
    cuts = tuple(sorted(data.draw(st.lists(st.integers(1, len(raw) - 1), max_size=8, unique=True))))
    answer = read(raw, cuts)
    assert answer is not None
    assert answer.body == body
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(raw)
    event = reader.next_event()
    assert isinstance(event, h11.Response)
    theirs: dict[str, str] = {}
    for name, value in event.headers:
        key, text = name.decode(), value.decode("latin-1")
        theirs[key] = f"{theirs[key]}, {text}" if key in theirs else text
    assert dict(answer.headers) == theirs
    assert answer.status == event.status_code


@settings(max_examples=300, deadline=None)
@given(answers(), st.data())
def test_damaged_bytes_give_the_same_however_they_arrive_and_only_a_source_error(
    written: tuple[bytes, bytes], data: st.DataObject
) -> None:
    raw = bytearray(written[0])
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["change", "insert", "remove"]))
        piece = bytes([data.draw(st.integers(0, 255))])
        raw[index : index + (kind != "insert")] = b"" if kind == "remove" else piece
        raw = raw or bytearray(b"x")

    def outcome(cuts: tuple[int, ...]) -> object:
        try:
            return read(bytes(raw), cuts, closed=True)
        except SourceError as error:
            return type(error), "went on" in str(error)

    whole, bytewise = outcome(()), outcome(tuple(range(1, len(raw))))
    assert whole == bytewise or whole == (SourceError, True)
