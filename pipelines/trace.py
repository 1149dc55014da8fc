"""What a local run shows while it goes, and what its manifest says afterwards."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from kfp import dsl
from tqdm import tqdm

from pipelines.observe import Execution, Watcher
from pipelines.spec import Leaf

__all__ = ["Trace"]

#: Lines of a failed step's own output that its error shows.
_TAIL: Final = 25
#: How a line of a step's output starts that the reader of the run must see.
_WARNING: Final = "WARNING: "
#: What a step's bar is called.
_DOING: Final = {"train": "training", "walk": "training folds", "evaluate": "evaluating"}
#: Of several iterations the first of these that one came to is the step's.
_STATES: Final = ("FAILED", "SUCCEEDED", "CACHED")


class Trace:
    """Follows one run through its :class:`~pipelines.observe.Watcher`."""

    def __init__(self, leaves: Sequence[Leaf], store: Path, *, live: bool) -> None:
        self._leaves = list(leaves)
        self._store = store
        self._live = live
        self._out = sys.stdout
        self._steps: dict[str, dict[str, Any]] = {}
        self._hashes: dict[str, tuple[str, int]] = {}
        self._producers: dict[str, str] = {}
        self._clocks: dict[str, float] = {}
        self._running: set[tuple[str, int]] = set()
        self._done: dict[tuple[str, int], tuple[int, int]] = {}
        self._bar: tqdm[Any] | None = None
        # A loop's iterations run in threads.
        self._lock = threading.Lock()
        self.watcher = Watcher(self._started, self._ended, self._progress)

    def _started(self, execution: Execution) -> None:
        with self._lock:
            if execution.name not in self._steps:
                self._clocks[execution.name] = time.perf_counter()
                self._steps[execution.name] = {"started": _now()}
            if self._live and not self._running:
                print(f"{self._heading(execution.name)} …", end="", file=self._out, flush=True)
            self._running.add((execution.name, execution.iteration))

    def _progress(self, execution: Execution, done: int, total: int) -> None:
        if not self._live:
            return
        with self._lock:
            self._done[execution.name, execution.iteration] = (done, total)
            # Iterations that run at once share one bar.
            done, total = (sum(values) for values in zip(*self._done.values(), strict=True))
            names = dict.fromkeys(_DOING.get(name, name) for name, _ in self._done)
            doing = f"      {' and '.join(names)}"
            if self._bar is None:
                print(file=self._out)
                # What was done before (a checkpoint, or the first update) would make it look too fast.
                self._bar = tqdm(
                    total=total,
                    initial=done,
                    unit=" steps",
                    unit_scale=True,
                    leave=False,
                    dynamic_ncols=True,
                    file=self._out,
                    desc=doing,
                )
            self._bar.update(done - self._bar.n)
            if self._bar.total != total:
                self._bar.total = total
                self._bar.set_description(doing)

    def _ended(self, execution: Execution) -> None:
        with self._lock:
            self._running.discard((execution.name, execution.iteration))
            if self._bar is not None and self._running:
                self._bar.clear()
            elif self._bar is not None:
                self._bar.close()
                self._bar = None
            if not self._running:
                self._done.clear()
            self._take_down(execution)

    def _take_down(self, execution: Execution) -> None:
        seconds = time.perf_counter() - self._clocks[execution.name]
        state = "FAILED" if not execution.succeeded else "SUCCEEDED" if execution.attempts else "CACHED"
        leaf = next(leaf for leaf in self._leaves if leaf.name == execution.name)
        step = self._steps[execution.name]
        before = step.get("status", state)
        worse = state if _STATES.index(state) <= _STATES.index(before) else before
        log = self._relative(str(execution.log)) if execution.log else None
        shows = "log" not in step or (state == "FAILED" and before != "FAILED")
        step |= {
            "name": leaf.name,
            "display_name": leaf.display_name,
            "component": leaf.component,
            "status": worse,
            "attempts": step.get("attempts", 0) + execution.attempts,
            "ended": _now(),
            "seconds": round(seconds, 3),
            "depends_on": list(leaf.depends_on),
            "inputs": _joined(step.get("inputs"), self._side(execution.inputs, None), execution.iteration),
            "outputs": _joined(step.get("outputs"), self._side(execution.outputs, leaf.name), execution.iteration),
            "log": log if shows else step["log"],
            "error": _tail(execution.log) if state == "FAILED" and shows else step.get("error"),
        }
        word = {"SUCCEEDED": "done", "CACHED": "cached", "FAILED": "FAILED"}[state]
        note = _note(execution.log) if state == "SUCCEEDED" else ""
        line = f"{self._heading(leaf.name)} {word:<7} {seconds:6.1f} s   {note}".rstrip()
        print(f"\r{line}" if self._live else line, file=self._out, flush=True)
        for warning in (said for said in _lines(execution.log) if said.startswith(_WARNING)):
            print(f"      {warning}", file=self._out, flush=True)

    def _heading(self, name: str) -> str:
        names = [leaf.name for leaf in self._leaves]
        at = names.index(name)
        count = str(len(names))
        return f"[{at + 1:>{len(count)}}/{count}] {self._leaves[at].display_name:<26}"

    def failure(self) -> str | None:
        """The first failed step and the end of what it said, if one failed."""
        for step in self._steps.values():
            if step.get("status") == "FAILED":
                indented = "\n".join(f"    {line}" for line in (step["error"] or "").splitlines())
                said = f"its output ends with\n{indented}\n  whole log: {self._store / step['log']}"
                return f"step {step['display_name']!r} failed, {said}"
        return None

    def record(self) -> dict[str, Any]:
        """The manifest's part about steps: every step in order, the verdict, the branch, what was released."""
        steps = [self._steps.get(leaf.name) or _skipped(leaf) for leaf in self._leaves]
        ran = {step["name"]: step for step in steps if step.get("status") in {"SUCCEEDED", "CACHED"}}
        verdict = released = None
        if "gate" in ran:
            said = ran["gate"]["outputs"]["artifacts"]["verdict"]["metadata"]
            verdict = {name: said.get(name) for name in ("passed", "criteria", "limits", "override")}
        if "deploy" in ran:
            artifact = ran["deploy"]["outputs"]["artifacts"]["released"]
            released = {
                "model_id": artifact["metadata"]["model_id"],
                "policy_sha256": artifact["metadata"]["policy_sha256"],
                "uri": artifact["uri"],
            }
        branch = next((name for name in ("deploy", "reject") if name in ran), None)
        return {"steps": steps, "verdict": verdict, "branch": branch, "released": released}

    def _side(self, values: dict[str, Any], producer: str | None) -> dict[str, Any]:
        parameters: dict[str, Any] = {}
        artifacts: dict[str, Any] = {}
        for name, value in _apart(values):
            if not isinstance(value, dsl.Artifact):
                parameters[name] = value
                continue
            digest, size = self._hash(value.uri)
            artifacts[name] = {"uri": self._relative(value.uri), "type": type(value).schema_title, "sha256": digest}
            if producer is None:
                artifacts[name]["producer"] = self._producers.get(value.uri)
            else:
                self._producers[value.uri] = producer
                artifacts[name] |= {"bytes": size, "metadata": dict(value.metadata)}
        return {"parameters": parameters, "artifacts": artifacts}

    def _hash(self, uri: str) -> tuple[str | None, int | None]:
        path = Path(uri)
        if not path.exists():
            return None, None
        if uri not in self._hashes:
            files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
            digest = hashlib.sha256()
            for file in files:
                if path.is_dir():
                    digest.update(f"{file.relative_to(path).as_posix()}\0".encode())
                digest.update(file.read_bytes())
            self._hashes[uri] = digest.hexdigest(), sum(file.stat().st_size for file in files)
        return self._hashes[uri]

    def _relative(self, uri: str) -> str:
        path = Path(uri)
        return path.relative_to(self._store).as_posix() if path.is_relative_to(self._store) else uri


def _apart(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values, each artifact of a collection on its own: walks, walks-2, walks-3 ..."""
    for name, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, dsl.Artifact) for item in value):
            yield from ((_numbered(name, number), item) for number, item in enumerate(value, start=1))
        else:
            yield name, value


def _joined(before: dict[str, Any] | None, side: dict[str, Any], iteration: int) -> dict[str, Any]:
    """A step's inputs or outputs, with those of one more iteration of its loop where they are others."""
    if before is None:
        return side
    return {
        kind: known | {_numbered(name, iteration): v for name, v in side[kind].items() if known.get(name) != v}
        for kind, known in before.items()
    }


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _skipped(leaf: Leaf) -> dict[str, Any]:
    nothing: dict[str, Any] = {"parameters": {}, "artifacts": {}}
    return {
        "name": leaf.name,
        "display_name": leaf.display_name,
        "component": leaf.component,
        "status": "SKIPPED",
        "attempts": 0,
        "started": None,
        "ended": None,
        "seconds": 0.0,
        "depends_on": list(leaf.depends_on),
        "inputs": nothing,
        "outputs": nothing,
        "log": None,
        "error": None,
    }


def _lines(log: Path | None) -> list[str]:
    if log is None or not log.exists():
        return []
    text = log.read_text(encoding="utf-8").splitlines()
    return [line for line in text if line.strip() and not line.startswith("[KFP Executor")]


def _note(log: Path | None) -> str:
    """The last thing that a step itself said, in one line."""
    spoken = [line for line in _lines(log) if line[0] not in "{}[ \t#-" and not line.startswith(_WARNING)]
    return spoken[-1][:110] if spoken else ""


def _tail(log: Path | None) -> str:
    lines = _lines(log)
    start = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith("Traceback")), None)
    # Without a traceback the block in front is kfp's own print of the step's inputs.
    said = [line for line in lines if line[0] not in "{} \t"] if start is None else lines[start:]
    return "\n".join(said[-_TAIL:]) or "it said nothing"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
