"""The curves of a training as TensorBoard events, written while it goes: ``tensorboard --logdir FOLDER``."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

from layer3 import storage
from layer3.errors import ConfigurationError, TrainingError

if TYPE_CHECKING:
    from layer3.agent.population import Report

__all__ = ["EventLog"]

_NOT_A_CURVE: Final = {"steps", "total_steps", "seconds"}


class EventLog:
    """One TensorBoard run (a sub-folder) per policy, one scalar per number of its ``Progress``, against its steps.

    So every picture of TensorBoard shows one quantity of all policies. Every update is handed to the
    system whole and at once: a process that dies leaves files that can be read to its last update. A
    training that goes on from a checkpoint, or starts anew, may write to the same folder: TensorBoard
    drops what an earlier process wrote from that step on.
    """

    def __init__(self, folder: Path, names: Sequence[str], clock: Callable[[], float] = time.time) -> None:
        """Write below ``folder``; ``names[i]`` is the sub-folder of policy i, ``clock`` gives seconds since 1970.

        Raises
        ------
        ConfigurationError : a name is not that of a folder, or occurs twice
        """
        for name in names:
            if Path(name).name != name or name in {"", ".."}:
                raise ConfigurationError(f"events: {name!r} cannot name a folder; use letters, digits and hyphens")
        if len(set(names)) != len(names):
            raise ConfigurationError(f"events: the names of policies must differ, got {list(names)}")
        self._folder = folder
        self._names = tuple(names)
        self._clock = clock
        self._files: dict[int, BinaryIO] = {}

    def __call__(self, report: Report) -> None:
        """Write the figures of every policy in ``report``.

        Raises
        ------
        TrainingError : the disk is full or cannot be written
        """
        try:
            for policy, progress in zip(report.policies, report.figures, strict=True):
                if policy not in self._files:
                    self._open(policy, progress.steps)
                values = [
                    {"tag": field.name, "simple_value": getattr(progress, field.name)}
                    for field in fields(progress)
                    if field.name not in _NOT_A_CURVE
                ]
                self._write(policy, step=progress.steps, summary={"value": values})
        except OSError as error:
            trouble = storage.disk_trouble(error, str(self._folder))
            raise TrainingError(
                f"cannot write the training's events below {trouble} and run again; the training goes on from its last "
                "checkpoint"
            ) from error

    def close(self) -> None:
        for file in self._files.values():
            # Every write was flushed: what a full disk still refuses here has been said.
            with contextlib.suppress(OSError):
                file.close()
        self._files.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, policy: int, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        folder = self._folder / self._names[policy]
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        file = folder / f"events.out.tfevents.{self._clock():017.6f}.{os.getpid()}"
        self._files[policy] = file.open("xb")
        self._write(policy, file_version="brain.Event:2")
        self._write(policy, step=first_step, session_log={"status": SessionLog.START})

    def _write(self, policy: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        file = self._files[policy]
        RecordWriter(file).write(Event(wall_time=self._clock(), **content).SerializeToString())
        file.flush()
