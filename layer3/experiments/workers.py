"""Processes that do one task after another and tell how far they are.

Of a worker that dies the reason is told; a worker whose parent dies ends at its next word. Ctrl-C is
the parent's to hear.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Final, Literal

from layer3 import machine
from layer3.errors import HimariError, LostWorkerError

__all__ = ["Event", "Work", "Workers", "workers"]

#: Does a task and answers; the second argument is to be told how much of it is done.
Work = Callable[[Any, Callable[[int], None]], Any]

#: Torch and a fork of a process that has threads do not go together.
_PROCESSES: Final = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Event:
    """What worker number ``worker`` says: how much is done, its answer, or in words why there is none."""

    worker: int
    kind: Literal["progress", "answer", "refusal"]
    value: Any


class Workers:
    """Made by :func:`workers`."""

    def __init__(self, processes: list[Any], connections: list[Connection]) -> None:
        self._processes, self._connections = processes, connections
        self._busy: set[int] = set()

    @property
    def idle(self) -> list[int]:
        """Workers that wait for a task."""
        return [number for number in range(len(self._processes)) if number not in self._busy]

    def give(self, worker: int, task: Any) -> None:
        """Let an idle worker begin."""
        self._busy.add(worker)
        # One that has died says so when it is listened to.
        with contextlib.suppress(BrokenPipeError):
            self._connections[worker].send(task)

    def listen(self) -> Event:
        """Wait for the next word of a busy worker.

        Raises
        ------
        RuntimeError : a worker has died, killed or by an error that nobody intended
        """
        ready = wait([self._connections[number] for number in self._busy])
        number = next(number for number in self._busy if self._connections[number] in ready)
        try:
            kind, value = self._connections[number].recv()
        except (EOFError, OSError):
            # Killed in the middle of an answer, or before it read its task, it leaves no plain end.
            raise RuntimeError(f"a worker ended {_how(self._processes[number])}") from None
        if kind != "progress":
            self._busy.discard(number)
        return Event(number, kind, value)


@contextmanager
def workers(count: int, work: Work) -> Iterator[Workers]:
    """``count`` processes that each do ``work``, which is sent to them once; they end with the block."""
    processes, connections = [], []
    try:
        for _ in range(count):
            ours, theirs = _PROCESSES.Pipe()
            process = _PROCESSES.Process(target=_serve, args=(theirs, work), daemon=True)
            # A worker is deaf to Ctrl-C from its first moment, not only once it has imported everything.
            heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            # One core each. Its libraries ask the environment while they are imported, before any code of ours.
            limits = machine.thread_limits(os.environ)
            os.environ.update(limits)
            try:
                process.start()
            finally:
                for name in limits:
                    del os.environ[name]
                signal.pthread_sigmask(signal.SIG_SETMASK, heard)
            # Its end is open in the worker alone: when that dies, ours says so.
            theirs.close()
            processes.append(process)
            connections.append(ours)
        yield Workers(processes, connections)
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _serve(connection: Connection, work: Work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task = connection.recv()
            try:
                answer = "answer", work(task, lambda done: connection.send(("progress", done)))
            except LostWorkerError:
                # No answer to the task: given again, it may well be done.
                raise
            except HimariError as error:
                answer = "refusal", str(error)
            connection.send(answer)


def _how(process: Any) -> str:
    process.join()
    code = process.exitcode
    if code is not None and code < 0:
        return f"by {signal.Signals(-code).name}; is there enough memory?"
    return f"with exit code {code}; its own words are above"
