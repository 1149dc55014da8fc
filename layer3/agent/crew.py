"""Workers that do their parts of one job at the same time, and see the same tensors.

The calls of a small training are so short that threads mostly wait for the interpreter's lock. Where
the system can fork (Linux), workers are therefore processes: nothing is imported or copied again, and
tensors of :func:`shared` are seen by all. Elsewhere they are threads.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, NoReturn

import torch
from torch import Tensor

from layer3.errors import HimariError, LostWorkerError

__all__ = ["Crew", "shared"]

#: On macOS the system's own libraries do not survive a fork.
_FORKS: Final = sys.platform == "linux"


def shared(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros that workers made afterwards read and write together; on the CPU."""
    count = 1
    for length in shape:
        count *= length
    if not count:
        return torch.zeros(shape, dtype=dtype)
    # Anonymous, because a container's /dev/shm holds 64 MB.
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize), dtype=dtype, count=count).view(shape)


class _Process(NamedTuple):
    pid: int
    pipe: Connection


class Crew:
    """``count`` workers; ``make(k)`` makes what worker k's calls go to, in its own process or thread.

    Worker 0 is the caller itself. Use it in a ``with`` statement: what else there is ends with it.
    """

    def __init__(self, count: int, make: Callable[[int], Any]) -> None:
        self._processes: list[_Process] = []
        self._pool: ThreadPoolExecutor | None = None
        try:
            if _FORKS:
                for number in range(1, count):
                    self._processes.append(_start(number, make, self._processes))
            else:
                self._pool = ThreadPoolExecutor(max(count - 1, 1))
            self._own = [make(number) for number in range(1 if _FORKS else count)]
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def call(self, name: str, *arguments: Any) -> list[Any]:
        """Method ``name`` of every worker's object, at the same time; their answers in the workers' order.

        Raises
        ------
        LostWorkerError : a worker is gone (killed, for instance for want of memory)
        HimariError : what a worker raised
        """
        for process in self._processes:
            try:
                process.pipe.send((name, arguments))
            except BrokenPipeError as error:
                raise _gone(process) from error
        first, *others = self._own
        # Only with threads are there others here.
        pending = [self._pool.submit(getattr(part, name), *arguments) for part in others] if self._pool else []
        answers = [getattr(first, name)(*arguments), *(future.result() for future in pending)]
        for process in self._processes:
            try:
                failed, answer = process.pipe.recv()
            except (EOFError, ConnectionResetError) as error:
                raise _gone(process) from error
            if failed:
                raise answer
            answers.append(answer)
        return answers

    def _end(self) -> None:
        for process in self._processes:
            process.pipe.close()
            # It holds nothing that is not in shared memory, and may be in the middle of something.
            os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)
        self._processes = []
        if self._pool is not None:
            self._pool.shutdown()


def _gone(process: _Process) -> LostWorkerError:
    return LostWorkerError(
        f"a worker of the training (process {process.pid}) ended by itself: what it said is above; if it said nothing "
        "the system killed it, mostly for want of memory: train fewer policies at a time. Run again to go on"
    )


def _start(number: int, make: Callable[[int], Any], others: Sequence[_Process]) -> _Process:
    here, there = multiprocessing.Pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads. The child takes no lock that another thread could hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        # So that the end of the parent is the end of its pipes.
        for connection in (here, *(process.pipe for process in others)):
            connection.close()
        _serve(there, number, make)
    there.close()
    return _Process(pid, here)


def _serve(pipe: Connection, number: int, make: Callable[[int], Any]) -> NoReturn:
    """Answer calls until the parent is gone; never return into the parent's code."""
    try:
        # The terminal's Ctrl-C reaches all; the parent says what is to be done.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        part = None
        while True:
            name, arguments = pipe.recv()
            try:
                part = part or make(number)
                answer = (False, getattr(part, name)(*arguments))
            except HimariError as error:
                answer = (True, error)
            pipe.send(answer)
    finally:
        failure = sys.exc_info()[1]
        if not isinstance(failure, EOFError | OSError):
            traceback.print_exception(failure)
            sys.stderr.flush()
        os._exit(1)
