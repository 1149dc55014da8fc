"""Where signals come from and where decisions go: lines of a file or a pipe, or a Redis stream.

An address is ``-`` (standard input or output), the path of a file, or
``redis://host:port/db?stream=NAME`` (``rediss://`` too). From a stream signals are read as a consumer group
(``&group=layer3&consumer=NAME`` by default, the consumer being this machine's name: two runners must not share
one); a message is the field ``data`` of an entry. Each is acknowledged when its decision is logged and out, so
that after a crash it comes again, whoever reads then. A Redis that is gone is waited for. A file is read from its first
line at each start: what is to go on where it ended comes through a stream.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis

from layer3.errors import ConfigurationError, SourceError

__all__ = [
    "Lines",
    "Message",
    "RedisSink",
    "RedisSource",
    "Sink",
    "Source",
    "Stop",
    "TextSink",
    "open_sink",
    "open_source",
    "shown",
]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_LONGEST: Final = 2**20
#: Seconds: how long a read waits at most, and between attempts while Redis is away.
_BLOCK: Final = 0.5
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
#: Milliseconds after which what another consumer left unacknowledged is taken over.
_ABANDONED: Final = 60_000


class Message(NamedTuple):
    """One message: its number from 1, its bytes (``None``: longer than a MiB) and its id in a stream."""

    number: int
    data: bytes | None
    entry: str | None = None


class Stop:
    """A flag that a signal handler may set, and that wakes whoever waits."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.is_set = False

    def set(self) -> None:
        """Stop after what is in hand."""
        self.is_set = True
        with contextlib.suppress(BlockingIOError):  # the pipe is full of wake-ups
            os.write(self._write, b"!")

    def wait(self, seconds: float | None, file: int | None = None) -> bool:
        """Wait until it is set, ``file`` can be read, or the time is over; whether it is set."""
        if not self.is_set:
            poll = select.poll()
            poll.register(self._read, select.POLLIN)
            if file is not None:
                poll.register(file, select.POLLIN)
            poll.poll(None if seconds is None else seconds * 1_000)
        return self.is_set

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._read)
        os.close(self._write)


class Source(Protocol):
    """Messages in order."""

    def unfinished(self) -> list[Message]:
        """What was read before a crash and never acknowledged."""

    def messages(self) -> Iterator[Message]:
        """Until the end, or until it is told to stop."""

    def done(self, message: Message) -> None:
        """Its decision is logged and out."""

    def close(self) -> None:
        """Let go."""


class Lines:
    """The lines of a file or pipe; empty ones are passed over but counted."""

    def __init__(self, fd: int, stop: Stop) -> None:
        self._fd = fd
        self._stop = stop

    def unfinished(self) -> list[Message]:
        """None: a pipe gives nothing twice."""
        return []

    def messages(self) -> Iterator[Message]:
        """Each line; the last one also without its line break."""
        number, rest, overlong = 0, b"", False
        while not self._stop.wait(None, self._fd):
            chunk = os.read(self._fd, 2**16)
            *lines, rest = (rest + chunk).split(b"\n")
            if not chunk and (rest or overlong):
                lines, rest = [rest], b""
            for line in lines:
                number += 1
                if line.strip() or overlong:
                    yield Message(number, None if overlong or len(line) > _LONGEST else line)
                    if self._stop.is_set:
                        return
                overlong = False
            if not chunk:
                return
            if len(rest) > _LONGEST:
                rest, overlong = b"", True

    def done(self, message: Message) -> None:
        """Nothing to say."""

    def close(self) -> None:
        """Close the file, unless it is standard input."""
        if self._fd != 0:
            os.close(self._fd)


class _Redis:
    """A connection that is taken up again, with waits that grow, until it is told to stop."""

    def __init__(self, url: str, stop: Stop) -> None:
        try:
            self._client = redis.Redis.from_url(url, socket_timeout=5.0, socket_connect_timeout=2.0)
            self._client.ping()
        except (redis.RedisError, ValueError) as error:
            raise SourceError(f"no Redis answers at {shown(url)}: {error}") from error
        self._url, self._stop = url, stop

    def patiently(self, command: Callable[[], _T]) -> _T:
        """The answer of ``command``; a SourceError when Redis refuses, or is away when it is told to stop."""
        wait = _FIRST_WAIT
        while True:
            try:
                return command()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                _log.warning("Redis is away", extra={"redis": shown(self._url), "error": str(error), "wait_s": wait})
                if self._stop.wait(wait):
                    raise SourceError(f"Redis at {shown(self._url)} is away: {error}") from error
                wait = min(2.0 * wait, _LONGEST_WAIT)
            except redis.RedisError as error:
                raise SourceError(f"Redis at {shown(self._url)} refuses: {error}") from error

    def close(self) -> None:
        self._client.close()


class RedisSource(_Redis):
    """The entries of a stream, read as one consumer of a group."""

    def __init__(self, url: str, stream: str, group: str, consumer: str, stop: Stop) -> None:
        super().__init__(url, stop)
        self._stream, self._group, self._consumer = stream, group, consumer
        self._number = 0
        self.patiently(self._create)

    def unfinished(self) -> list[Message]:
        """What this consumer read before and did not acknowledge, and what others left for a minute."""
        found: list[Message] = []
        last = "0"
        while entries := self.patiently(lambda start=last: self._read(start, None)):  # type: ignore[misc]
            last = entries[-1][0].decode()
            found += self._messages(entries)
        return found + self._abandoned()

    def messages(self) -> Iterator[Message]:
        """New entries, one after the other, until it is told to stop."""
        looked = time.monotonic()
        while not self._stop.is_set:
            found = self._messages(self.patiently(lambda: self._read(">", int(_BLOCK * 1_000))))
            if time.monotonic() - looked > _ABANDONED / 1_000:
                looked = time.monotonic()
                found += self._abandoned()
            for message in found:
                yield message
                if self._stop.is_set:
                    return

    def done(self, message: Message) -> None:
        """Acknowledge it."""
        self.patiently(lambda: self._client.xack(self._stream, self._group, message.entry or ""))

    def _create(self) -> None:
        try:
            self._client.xgroup_create(self._stream, self._group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # it is there already
                raise

    def _read(self, start: str, block: int | None) -> list[Any]:
        streams: Any = {self._stream: start}
        try:
            answer: Any = self._client.xreadgroup(self._group, self._consumer, streams, count=16, block=block)
        except redis.ResponseError as error:
            if not str(error).startswith("NOGROUP"):  # Redis came back without its memory
                raise
            self._create()
            return []
        if not answer:
            return []
        [(_, entries)] = answer.items() if isinstance(answer, dict) else answer
        return list(entries)

    def _abandoned(self) -> list[Message]:
        arguments = (self._stream, self._group, self._consumer, _ABANDONED)
        answer: Any = self.patiently(lambda: self._client.xautoclaim(*arguments, count=16))
        return self._messages(answer[1])

    def _messages(self, entries: list[Any]) -> list[Message]:
        found = []
        for entry, fields in entries:
            self._number += 1
            data = (fields or {}).get(b"data", b"")  # without fields: it was trimmed away, and is answered as empty
            found.append(Message(self._number, data if len(data) <= _LONGEST else None, entry.decode()))
        return found


class Sink(Protocol):
    """Where decisions go."""

    def write(self, text: str) -> None:
        """One line, out when this returns."""

    def close(self) -> None:
        """Let go."""


class TextSink:
    """Lines to a file descriptor, each in one write."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, text: str) -> None:
        """One line; OSError where the reader is gone or the disk is full."""
        view = memoryview(f"{text}\n".encode())
        while view:
            view = view[os.write(self._fd, view) :]

    def close(self) -> None:
        """Close the file, unless it is standard output."""
        if self._fd != 1:
            os.close(self._fd)


class RedisSink(_Redis):
    """Entries of a stream, with the decision in the field ``data``."""

    def __init__(self, url: str, stream: str, stop: Stop) -> None:
        super().__init__(url, stop)
        self._stream = stream

    def write(self, text: str) -> None:
        """One entry; a SourceError where Redis refuses, or is away when it is told to stop."""
        self.patiently(lambda: self._client.xadd(self._stream, {"data": text}))


def open_source(address: str, stop: Stop) -> Source:
    """The source at ``address``; a ConfigurationError or SourceError where there is none."""
    if "://" in address:
        url, options = _address(address, ("stream", "group", "consumer"))
        group, consumer = options.get("group", "layer3"), options.get("consumer", socket.gethostname())
        return RedisSource(url, options["stream"], group, consumer, stop)
    if address == "-":
        return Lines(0, stop)
    if Path(address).is_dir():  # which opens as well as a file
        raise ConfigurationError(f"cannot read the signals {address}: it is a folder")
    try:
        return Lines(os.open(address, os.O_RDONLY | os.O_CLOEXEC), stop)
    except OSError as error:
        raise ConfigurationError(f"cannot read the signals {address}: {error.strerror}") from error


def open_sink(address: str, stop: Stop) -> Sink:
    """The sink at ``address``, a file being appended to; a ConfigurationError or SourceError where there is none."""
    if "://" in address:
        url, options = _address(address, ("stream",))
        return RedisSink(url, options["stream"], stop)
    if address == "-":
        return TextSink(1)
    try:
        Path(address).parent.mkdir(parents=True, exist_ok=True)
        sink = TextSink(os.open(address, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644))
        if _is_torn(Path(address)):
            sink.write("")
        return sink
    except OSError as error:
        raise ConfigurationError(f"cannot write the decisions {address}: {error.strerror}") from error


def _is_torn(path: Path) -> bool:
    """Whether a file ends within a line, as a full disk leaves it: what follows must not become a part of that."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _address(address: str, names: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """The address without the options ``names``, and those."""
    parts = urlsplit(address)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ConfigurationError(f"{shown(address)}: expected - or a file or redis://host:port/db?stream=NAME")
    options = parse_qsl(parts.query)
    mine = {key: value for key, value in options if key in names and value}
    if "stream" not in mine:
        raise ConfigurationError(f"{shown(address)} names no stream: redis://host:port/db?stream=NAME")
    return urlunsplit(parts._replace(query=urlencode([pair for pair in options if pair[0] not in names]))), mine


def shown(address: str) -> str:
    """``address`` for people to read: without password and options."""
    if "://" not in address:
        return address
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
