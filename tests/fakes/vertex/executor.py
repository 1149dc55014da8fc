"""One run of the fake Vertex Pipelines, in a process of its own: the spec on stdin, what happens as JSON lines."""

from __future__ import annotations

import itertools
import json
import sys
import threading
from pathlib import Path
from typing import Any

from kfp import dsl

from layer3 import storage
from pipelines import spec as specs
from pipelines.local import ROOT, execute
from pipelines.observe import Execution, Watcher


class Reporter:
    """Tells the service, as JSON lines on stdout, what each step does."""

    def __init__(self, spec: dict[str, Any], folder: Path, root: str) -> None:
        self._folder = folder
        self._root = root
        self._lock = threading.Lock()
        self._out = sys.stdout
        self._ids = itertools.count(1)
        self._tasks: dict[tuple[str, int], int] = {}
        leaves = specs.leaves(spec)
        self.leaves = [leaf.name for leaf in leaves]
        self._types = {leaf.name: _types(spec["components"][f"comp-{leaf.component}"]) for leaf in leaves}
        for name in self.leaves:
            self._tasks[name, 1] = next(self._ids)
            self._tell(name, 1, "PENDING")

    def started(self, execution: Execution) -> None:
        with self._lock:
            self._tasks.setdefault((execution.name, execution.iteration), next(self._ids))
            self._tell(execution.name, execution.iteration, "RUNNING")

    def ended(self, execution: Execution) -> None:
        state = "FAILED" if not execution.succeeded else "SUCCEEDED" if execution.attempts else "SKIPPED"
        outputs = {
            name: [
                self._artifact(item, self._types[execution.name][name])
                for item in (value if isinstance(value, list) else [value])
            ]
            for name, value in execution.outputs.items()
            if isinstance(value, dsl.Artifact)
            or (isinstance(value, list) and value and isinstance(value[0], dsl.Artifact))
        }
        error = ""
        if state == "FAILED":
            log = execution.log.read_text(encoding="utf-8") if execution.log else ""
            error = f"The replica workerpool0-0 exited with a non-zero status of 1. {log[-1500:]}"
        with self._lock:
            self._tell(execution.name, execution.iteration, state, outputs=outputs, error=error)

    def finish(self, ran: set[str]) -> None:
        """A branch that was not taken was not triggered."""
        for name in self.leaves:
            if name not in ran:
                self._tell(name, 1, "NOT_TRIGGERED")

    def _tell(self, name: str, iteration: int, state: str, **more: Any) -> None:
        said = {"id": self._tasks[name, iteration], "name": name, "state": state} | more
        print(json.dumps(said), file=self._out, flush=True)

    def _artifact(self, artifact: dsl.Artifact, kind: str) -> dict[str, Any]:
        """The artifact, of the type that the spec says, with its address in the bucket, where its files now lie."""
        uri, path = artifact.uri, Path(artifact.uri)
        if path.is_relative_to(self._folder):
            uri = f"{self._root}/{self._folder.name}/{path.relative_to(self._folder).as_posix()}"
            for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
                below = file.relative_to(path).as_posix() if path.is_dir() else ""
                storage.write_bytes(f"{uri}/{below}" if below else uri, file.read_bytes())
        return {"uri": uri, "type": kind, "metadata": dict(artifact.metadata)}


def _types(component: dict[str, Any]) -> dict[str, str]:
    """The schema of each artifact that a component makes."""
    made = component.get("outputDefinitions", {}).get("artifacts", {})
    return {name: said["artifactType"]["schemaTitle"] for name, said in made.items()}


def main() -> int:
    """0 when the run succeeded."""
    request = json.load(sys.stdin)
    folder = Path(request["work"], request["run_id"])
    (folder / "logs").mkdir(parents=True)
    reporter = Reporter(request["spec"], folder, request["root"])
    ran: set[str] = set()

    def ended(execution: Execution) -> None:
        ran.add(execution.name)
        reporter.ended(execution)

    watcher = Watcher(reporter.started, ended, lambda execution, done, total: None)
    try:
        execute(request["spec"], request["arguments"], folder, ROOT, watcher, caching=True)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        reporter.finish(ran)
    return 0


if __name__ == "__main__":
    sys.exit(main())
