"""HTTP/1.1 as bytes: a request to send, and a reader that is fed what arrives (RFC 9112).

Nothing here reads or waits. The reader refuses what two readers could understand differently, and
holds no more than its limits, so that whoever feeds it needs no limit of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from layer3.errors import SourceError

__all__ = ["MAX_BODY", "MAX_HEAD", "Answer", "AnswerReader", "brief", "completed", "request_bytes", "request_head"]

#: Largest body, where nobody says otherwise, and largest heads (interim ones included) of an answer, in bytes.
MAX_BODY: Final = 65_536
MAX_HEAD: Final = 16_384
#: Longest line of a chunk's size, and the largest trailer.
_MAX_CHUNK_LINE: Final = 256
_VERSION: Final = b"HTTP/1."
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n\0]*)?")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer. ``headers`` have lower-case names; values of one that is repeated are joined by commas."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    #: Whether the connection may carry another request.
    reusable: bool


def request_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """The beginning of a request, for :func:`completed`: what many requests have in common is made once.

    The caller vouches for ``target`` and ``headers`` (printable ASCII).
    """
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode("ascii")


def completed(head: bytes, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """The bytes of one request that begins with ``head``; the caller vouches for ``headers``."""
    lines = ["", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return head + "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


def request_bytes(method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """The bytes of one request; the caller vouches for ``target`` and ``headers`` (printable ASCII)."""
    return completed(request_head(method, target, headers), {}, body)


def brief(data: bytes | bytearray) -> str:
    """The beginning of ``data`` for a sentence."""
    return data[:200].decode(errors="replace")


class AnswerReader:
    """Feed it what arrives until it returns the answer. ``where`` names the other side in errors."""

    __slots__ = ("_buffer", "_chunks", "_head", "_interim", "_length", "_max_body", "_where")

    def __init__(self, where: str, max_body: int = MAX_BODY) -> None:
        self._where = where
        self._max_body = max_body
        self._buffer = bytearray()
        self._head: tuple[int, dict[str, str], bool] | None = None
        self._interim = 0
        # Bytes of the body; None until the connection closes; -1 for chunks.
        self._length: int | None = None
        self._chunks = bytearray()

    @property
    def begun(self) -> bool:
        """Whether a byte has arrived."""
        return bool(self._buffer) or self._head is not None or self._interim > 0

    def feed(self, data: bytes) -> Answer | None:
        """Take in what arrived; the answer once it is complete.

        Raises
        ------
        SourceError : the bytes are no HTTP answer, exceed a limit, or go on after the answer's end
        """
        self._buffer += data
        while self._head is None:
            if not self._read_head():
                return None
        if self._length == -1:
            return self._read_chunks()
        if self._length is None:
            self._limit(len(self._buffer))
            return None
        if len(self._buffer) < self._length:
            return None
        return self._complete(bytes(self._buffer[: self._length]), self._length)

    def finish(self) -> Answer:
        """The other side closed the connection: the answer, if that was its end.

        Raises
        ------
        SourceError : something is missing
        """
        if self._head is None:
            raise self._broken(f"its answer ended within the headers: {brief(self._buffer)!r}")
        if self._length is not None:
            promised = "its last chunk" if self._length == -1 else f"the {self._length} bytes that it announced"
            raise self._broken(f"its answer ended before {promised}")
        return self._complete(bytes(self._buffer), len(self._buffer))

    def _broken(self, what: str) -> SourceError:
        return SourceError(f"{self._where}: {what}")

    def _limit(self, size: int) -> None:
        if size > self._max_body:
            raise self._broken(f"the answer exceeds {self._max_body} bytes")

    def _read_head(self) -> bool:
        buffer = self._buffer
        if not buffer.startswith(_VERSION[: len(buffer)]):
            raise self._broken(f"answered something that is not HTTP: {brief(buffer)!r}")
        end = buffer.find(b"\r\n\r\n")
        if self._interim + (len(buffer) if end < 0 else end) > MAX_HEAD:
            raise self._broken(f"the answer's headers exceed {MAX_HEAD} bytes")
        if end < 0:
            if b"\n\n" in buffer:
                raise self._broken(f"answered something that is not HTTP: {brief(buffer)!r}")
            return False
        lines = bytes(buffer[:end]).split(b"\r\n")
        del buffer[: end + 4]
        match = _STATUS_LINE.fullmatch(lines[0])
        if match is None:
            raise self._broken(f"answered something that is not HTTP: {brief(lines[0])!r}")
        status = int(match[2])
        if status == 101:
            raise self._broken("answered HTTP 101, to switch to a protocol that nobody asked for")
        if status < 200:
            self._interim += end + 4
            return bool(buffer)
        headers = self._headers(lines[1:])
        tokens = headers.get("connection", "").lower()
        self._head = (status, headers, "close" not in tokens if match[1] == b"1" else "keep-alive" in tokens)
        self._length = self._framing(status, headers)
        return True

    def _headers(self, lines: list[bytes]) -> dict[str, str]:
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or not _NAME.fullmatch(name) or b"\n" in value or b"\r" in value or b"\0" in value:
                raise self._broken(f"answered a header that is none: {brief(line)!r}")
            key, text = name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        return headers

    def _framing(self, status: int, headers: dict[str, str]) -> int | None:
        """RFC 9112, section 6.3; an answer that frames its body twice is refused."""
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if status in (204, 304):
            return 0
        if coding is not None:
            if coding.lower() != "chunked" or length is not None:
                raise self._broken(f"frames its answer by Transfer-Encoding {coding!r}, Content-Length {length!r}")
            return -1
        if length is None:
            return None
        if not (length.isascii() and length.isdecimal()) or len(length) > 18:
            raise self._broken(f"Content-Length is {length[:60]!r}, expected a number of bytes")
        self._limit(int(length))
        return int(length)

    def _read_chunks(self) -> Answer | None:
        buffer = self._buffer
        while True:
            end = buffer.find(b"\r\n", 0, _MAX_CHUNK_LINE)
            if end < 0:
                if len(buffer) >= _MAX_CHUNK_LINE:
                    raise self._broken(f"sent a chunk without a size: {brief(buffer)!r}")
                return None
            match = _CHUNK_SIZE.fullmatch(buffer[:end])
            if match is None:
                raise self._broken(f"sent a chunk without a size: {brief(buffer[:end])!r}")
            size = int(match[1], 16)
            self._limit(len(self._chunks) + size)
            if size == 0:
                return self._read_trailer(end)
            if len(buffer) < end + size + 4:
                return None
            if buffer[end + 2 + size : end + size + 4] != b"\r\n":
                raise self._broken(f"sent a chunk that is longer than its {size} bytes")
            self._chunks += buffer[end + 2 : end + 2 + size]
            del buffer[: end + size + 4]

    def _read_trailer(self, start: int) -> Answer | None:
        # From the last chunk's own line end, so that an empty trailer ends like any other.
        end = self._buffer.find(b"\r\n\r\n", start)
        if end >= 0:
            return self._complete(bytes(self._chunks), end + 4)
        if len(self._buffer) > MAX_HEAD:
            raise self._broken(f"the answer's trailer exceeds {MAX_HEAD} bytes")
        return None

    def _complete(self, body: bytes, end: int) -> Answer:
        assert self._head is not None
        if len(self._buffer) > end:
            raise self._broken(f"went on after the end of its answer: {brief(self._buffer[end:])!r}")
        status, headers, reusable = self._head
        return Answer(status, headers, body, reusable and self._length is not None)
