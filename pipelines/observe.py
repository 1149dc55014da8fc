"""The seam between kfp's local runner and this project.

kfp 2.17 runs a pipeline on this machine but keeps to itself which step ran, what came out, and
what a failed step said. For the length of one run, three of its functions are replaced: the one
that names a run, the one that runs a step (to see inputs and outputs), and the one that starts a
step's process (to see its output). The version is pinned, and a test fails if a name moves.
"""

from __future__ import annotations

import builtins
import functools
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kfp.local import executor_input_utils, status, subprocess_task_handler
from kfp.local.orchestrator import task_executor
from kfp.local.orchestrator.orchestrator_utils import OrchestratorUtils

from layer3 import machine

__all__ = ["Execution", "Watcher", "observed"]

_PROGRESS: Final = "::progress "


@dataclass
class Execution:
    """One step as it ran: what went in, what came out, how often its process was started."""

    name: str
    inputs: dict[str, Any]
    outputs: dict[str, Any] = field(default_factory=dict)
    succeeded: bool = False
    attempts: int = 0
    """0 for a step that was served from the cache."""
    log: Path | None = None
    iteration: int = 1
    """Above 1 where a loop runs the step again."""


@dataclass(frozen=True)
class Watcher:
    """Who is told: at a step's start, at its end, and of ``(done, total)`` within it. Steps of a loop tell it from
    threads of their own."""

    started: Callable[[Execution], None]
    ended: Callable[[Execution], None]
    progress: Callable[[Execution, int, int], None]


class Children:
    """The processes of the steps that run now.

    They are started by threads, which no signal reaches and which are waited for: a run that is stopped ends
    the processes itself, and no step is started, or tried again, after that.
    """

    def __init__(self) -> None:
        self._alive: set[subprocess.Popen[str]] = set()
        # Again by the same thread: a signal may come while it is held.
        self._lock = threading.RLock()
        self.stopped = False

    def stop(self) -> None:
        """End them all."""
        with self._lock:
            self.stopped = True
            for process in self._alive:
                process.terminate()

    @contextmanager
    def watched(self, process: subprocess.Popen[str]) -> Iterator[None]:
        """Count ``process`` among them while it runs."""
        with self._lock:
            self._alive.add(process)
            if self.stopped:
                process.terminate()
        try:
            yield
        finally:
            with self._lock:
                self._alive.discard(process)


@contextmanager
def _stopped_by_signals(children: Children) -> Iterator[None]:
    """Let Ctrl-C, and SIGTERM where somebody listens to it, end ``children`` before what they do otherwise."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        children.stop()
        listener = before[signal.Signals(number)]
        if callable(listener):
            listener(number, frame)

    for number, listener in before.items():
        if callable(listener):
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, listener in before.items():
            if callable(listener):
                signal.signal(number, listener)


@contextmanager
def observed(run_id: str, logs: Path, root: Path, watcher: Watcher) -> Iterator[list[Execution]]:
    """Run kfp locally under the name ``run_id``, every step's output in ``logs``; yields what ran.

    ``root`` is the project: components are found by ``components/kfp_config.ini`` below it.
    """
    executions: list[Execution] = []
    # The iterations of a loop run in threads, each under its step's name.
    current, lock, children = threading.local(), threading.Lock(), Children()
    original_step = task_executor.execute_single_task
    original_run = subprocess_task_handler.SubprocessTaskHandler.run
    original_name = executor_input_utils.get_local_pipeline_resource_name
    original_print = builtins.print

    def execute(*, task_name: str, task_spec: Any, io_store: Any, **rest: Any) -> Any:
        inputs = OrchestratorUtils.make_task_arguments(task_inputs_spec=task_spec.inputs, io_store=io_store)
        execution = current.execution = Execution(task_name, dict(inputs))
        with lock:
            executions.append(execution)
            execution.iteration = sum(other.name == task_name for other in executions)
        watcher.started(execution)
        try:
            outputs, outcome = original_step(task_name=task_name, task_spec=task_spec, io_store=io_store, **rest)
            execution.outputs = dict(outputs)
            execution.succeeded = outcome == status.Status.SUCCESS
        finally:
            watcher.ended(execution)
        return outputs, outcome

    def start(handler: Any) -> status.Status:
        execution = current.execution
        if children.stopped:
            return status.Status.FAILURE
        execution.attempts += 1
        execution.log = logs / f"{execution.name}{f'-{execution.iteration}' if execution.iteration > 1 else ''}.log"
        tell = functools.partial(watcher.progress, execution)
        # In a thread of its own, where no signal can come between a process's start and its being watched: nobody
        # would end it, and the run would wait for it.
        with ThreadPoolExecutor(1) as apart:
            code = apart.submit(
                _run, handler.full_command, handler.env_vars, root, execution.log, tell, children
            ).result()
        return status.Status.SUCCESS if code == 0 else status.Status.FAILURE

    task_executor.execute_single_task = execute
    subprocess_task_handler.SubprocessTaskHandler.run = start
    executor_input_utils.get_local_pipeline_resource_name = lambda _: run_id
    try:
        with _stopped_by_signals(children):
            yield executions
    finally:
        task_executor.execute_single_task = original_step
        subprocess_task_handler.SubprocessTaskHandler.run = original_run
        executor_input_utils.get_local_pipeline_resource_name = original_name
        # ParallelFor leaves print patched behind.
        builtins.print = original_print


def _run(
    command: list[str],
    variables: dict[str, str],
    root: Path,
    log: Path,
    progress: Callable[[int, int], None],
    children: Children,
) -> int:
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "HIMARI_PROGRESS": "1"}
    environment = {**machine.thread_limits(os.environ), **os.environ, **variables, **own}
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            cwd=root / "components",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            bufsize=1,
        ) as process,
        children.watched(process),
    ):
        try:
            for line in process.stdout or ():
                if line.startswith(_PROGRESS):
                    done, total = line.removeprefix(_PROGRESS).split()
                    progress(int(done), int(total))
                else:
                    file.write(line)
        except BaseException:
            process.terminate()
            raise
        code = process.wait()
        if code < 0:
            file.write(f"The step's process was ended by {signal.Signals(-code).name}; is there enough memory?\n")
        return code
