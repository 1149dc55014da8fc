"""An append-only log of decisions that keeps every record it has acknowledged, whatever kills the process.

A record is one line (:mod:`layer3.live.log_file`) and is acknowledged when :meth:`DecisionLog.append` returns: its
line is then with the operating system in one write and survives ``kill -9``. What survives a power cut
is up to the policy:

========== ======================================================================================
``each``     every acknowledged record: ``fdatasync`` before the return, shared by threads that wait
``interval`` all but the last ``interval_s`` seconds: a thread syncs at that pace, also when idle
``none``     what the operating system has written by itself, usually all but the last half minute
========== ======================================================================================

A head (:data:`HEAD`) holds the configuration, its hash and the engine's state at that moment. Every file
begins with one, so that each can be replayed alone, and one follows wherever a process took the file up
again. ``decisions.jsonl`` is the file written now; :meth:`DecisionLog.roll`
moves it to ``decisions.000001.jsonl`` and onwards by size and by UTC day.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, Literal

from layer3 import storage
from layer3.errors import ConfigurationError
from layer3.live.log_file import HEAD, SCHEMA, encode, keep_aside, next_name, survey

__all__ = ["DecisionLog", "Fsync"]

Fsync = Literal["each", "interval", "none"]

_POLICIES: Final = ("each", "interval", "none")
_log = logging.getLogger(__name__)


class DecisionLog:
    """Appends records to the file at ``path``; threads may share it, processes may not.

    Opening repairs: a torn last line (never acknowledged) is moved to a file beside, named in a
    warning; a file that is damaged before its end is kept as it is under the next number.

    Attributes: ``kept_aside``, where a torn tail or a damaged file went, or ``None``; ``records``, how
    many were appended since the log was opened, heads too; ``syncs``, how often the disk was waited for;
    ``latest_head``, the number of the latest head among the records, and its configuration's hash if it has one.
    """

    def __init__(
        self,
        path: Path,
        head: Callable[[], Mapping[str, Any]],
        *,
        fsync: Fsync = "each",
        interval_s: float = 1.0,
        max_bytes: int = 64 * 2**20,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """``head`` says what a head holds: configuration, its hash, the engine's state now.

        ``interval_s`` in (0, 3600] is for the policy ``interval``; a file is rolled at ``max_bytes`` (>= 1).

        Raises
        ------
        ConfigurationError : an argument is out of range, or another process writes this log
        OSError : the disk refuses
        """
        if fsync not in _POLICIES:
            raise ConfigurationError(f"fsync is {fsync!r}; it must be {' or '.join(_POLICIES)}")
        if not 0.0 < interval_s <= 3600.0:
            raise ConfigurationError(f"interval_s is {interval_s!r}; it must be a number of seconds in (0, 3600]")
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise ConfigurationError(f"max_bytes is {max_bytes!r}; it must be a whole number from 1")
        self.path, self._head, self._fsync, self._max_bytes, self._clock = path, head, fsync, max_bytes, clock
        self.kept_aside: Path | None = None
        self.records = self.syncs = self._synced = 0
        self._failure: OSError | None = None
        self._write_lock, self._sync_lock, self._closing = threading.Lock(), threading.Lock(), threading.Event()
        self._syncer = threading.Thread(target=self._sync_at, args=(interval_s,), daemon=True)
        if path.exists() and not (path.is_file() or path.is_dir()):  # of a folder the system itself says so
            raise ConfigurationError(f"the decision log {path} is a device or a pipe: name a file")
        content = self._head_record()
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            self._lock_file = held.enter_context(_locked(path))
            self._open(content)
            held.pop_all()
        if fsync == "interval":
            self._syncer.start()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record; when this returns it is acknowledged.

        Raises
        ------
        DataError : the record holds what JSON cannot say; nothing was written
        OSError : the disk refuses (it is full, say): the record is not acknowledged. Where what is on the disk
            is unknown after that, every later call raises it again: open the log anew.
        """
        line = encode(record)
        with self._write_lock:
            self._write(line)
            self.records += 1
            mine = self.records
        if self._fsync == "each":
            self._sync(mine)

    def roll(self) -> bool:
        """Begin a new file if the present one is too large or of an earlier UTC day; whether it did.

        Call it between decisions: the new head carries the state that the next decision starts from.
        """
        today = self._today()
        if self._size < self._max_bytes and today == self._day:
            return False
        content = self._head_record()
        with self._write_lock, self._sync_lock:
            old, aside = self._fd, next_name(self.path)
            os.fsync(old)
            self._synced = self.records
            self.path.rename(aside)
            try:
                self._begin(content)
            except OSError:
                aside.rename(self.path)
                raise
            os.close(old)
        return True

    def close(self) -> None:
        """Sync and let go of the file; a second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._syncer.is_alive():
            self._syncer.join()
        with self._write_lock, self._sync_lock, self._lock_file:
            try:
                os.fsync(self._fd)
            finally:
                os.close(self._fd)
                self._failure = OSError(errno.EBADF, "the decision log is closed", str(self.path))

    def __enter__(self) -> DecisionLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _today(self) -> str:
        return self._clock().astimezone(UTC).date().isoformat()

    def _head_record(self) -> dict[str, Any]:
        now = self._clock().astimezone(UTC).isoformat(timespec="microseconds")
        return {"kind": HEAD, "schema": SCHEMA, "time": now, **self._head()}

    def _open(self, content: Mapping[str, Any]) -> None:
        """Take up what is there, repaired, or begin a new file; a head is written either way."""
        path = self.path
        if not path.exists():
            self._begin(content)
            return
        whole, damaged = survey(path)
        if damaged is not None:
            self.kept_aside = next_name(path)
            path.rename(self.kept_aside)
            where = {"kept": str(self.kept_aside), "byte": damaged}
            _log.error("a damaged file of the decision log is kept as it is, a new one begins", extra=where)
            self._begin(content)
            return
        torn = path.stat().st_size - whole
        if torn:
            self.kept_aside = keep_aside(path, whole)
            where = {"file": str(path), "byte": whole, "bytes": torn, "kept": str(self.kept_aside)}
            _log.warning("the decision log ended in a torn line, never acknowledged: kept aside", extra=where)
        self._day = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
        self._fd, self._size = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), whole
        self.append(content)
        self.latest_head = self.records, content.get("config_hash")

    def _begin(self, content: Mapping[str, Any]) -> None:
        """Create the file with its head: it appears whole or not at all."""
        head = encode(content)
        partial = self.path.with_name(f".{self.path.name}.partial")
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            _write_whole(fd, head)
            os.fsync(fd)
            partial.rename(self.path)
            storage.sync_folder(self.path.parent)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._size, self._day = fd, len(head), self._today()
        self.records += 1
        self.latest_head = self.records, content.get("config_hash")

    def _write(self, line: bytes) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            _write_whole(self._fd, line)
        except OSError as error:
            self._failure = error
            os.ftruncate(self._fd, self._size)  # else the next record would stand behind half of this one
            self._failure = None
            raise
        self._size += len(line)

    def _sync(self, upto: int) -> None:
        """Wait until record number ``upto`` is on the disk; one wait serves every thread that was there before it."""
        with self._sync_lock:
            if self._synced >= upto:
                return
            reached = self.records
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                # Linux reports lost pages once: a later success would say nothing about them.
                self._failure = error
                raise
            self._synced = reached
            self.syncs += 1

    def _sync_at(self, interval_s: float) -> None:
        while not self._closing.wait(interval_s):
            try:
                self._sync(self.records)
            except OSError as error:
                _log.error("the decision log cannot be synced, it takes no more records", extra={"error": str(error)})
                return


def _write_whole(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def _locked(path: Path) -> IO[str]:
    """Hold the lock file beside the log, or raise where another process does."""
    file = path.with_name(f".{path.name}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ConfigurationError(f"another process writes the decision log {path}: stop it, or name another") from error
    return file
