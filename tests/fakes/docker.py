"""A Docker build of this machine, without Docker: what a Dockerfile says, done below a folder.

Of a Dockerfile's language it knows what ours use, and refuses the rest. A stage is a folder that stands for the root of
a file system: in commands, copies and variables, ``/opt``, ``/app`` and ``/build`` mean the folders below it. The base
image is this machine and its Python.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_OURS = re.compile(r"(?<![\w./-])/(?=(?:opt|app|build)\b)")
_VARIABLE = re.compile(r"\$\{(\w+)\}")


class BuildError(Exception):
    """A command of a Dockerfile failed; its output is the message."""


@dataclass(frozen=True)
class Instruction:
    name: str
    value: str


@dataclass
class Stage:
    """What a stage has become."""

    root: Path
    base: str
    arguments: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0"
    entrypoint: list[str] = field(default_factory=list)
    stop_signal: str = ""

    def path(self, inside: str) -> Path:
        return self.root / inside.lstrip("/")

    def mapped(self, text: str) -> str:
        """``text`` with our folders where they are on this machine."""
        return _OURS.sub(f"{self.root}/", text)

    def inherited(self) -> dict[str, str]:
        """The environment of a process in it."""
        return {name: self.mapped(value) for name, value in self.environment.items()}


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile, each on one line, without comments."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        Instruction(name, value.strip()) for name, _, value in (line.partition(" ") for line in joined.splitlines())
    ]


def context(root: Path) -> Iterator[Path]:
    """Files, relative to ``root``, that its .dockerignore lets a build see; the last pattern that fits counts."""
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    rules = [(not line.startswith("!"), _regex(line.removeprefix("!"))) for line in patterns]
    let_in = [line[1:] for line in patterns if line.startswith("!")]

    def ignored(path: str) -> bool:
        verdict = False
        for ignores, regex in rules:
            if regex.match(path):
                verdict = ignores
        return verdict

    for folder, folders, files in os.walk(root):
        here = Path(folder).relative_to(root)
        folders[:] = [
            name
            for name in folders
            if not ignored(str(here / name)) or any(line.startswith(f"{here / name}/") for line in let_in)
        ]
        yield from (here / name for name in files if not ignored(str(here / name)))


def build(
    dockerfile: Path, source: Path, into: Path, arguments: Mapping[str, str], *, left_out: tuple[str, ...] = ()
) -> Stage:
    """Build below ``into``; the last stage. Commands that begin as ``left_out`` says are not run."""
    tools = into / "tools"
    tools.mkdir(parents=True)
    (tools / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (tools / "python").chmod(0o755)
    before: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage = Stage(into, "")
    for instruction in parse(dockerfile.read_text(encoding="utf-8")):
        if instruction.name == "FROM":
            base, _, name = instruction.value.partition(" AS ")
            stage = Stage(into / f"stage-{len(stages)}", _filled(base, before))
            stage.root.mkdir()
            stages[name or "last"] = stage
        elif instruction.name == "ARG":
            name, _, default = instruction.value.partition("=")
            (stage.arguments if stages else before)[name] = arguments.get(name, default)
        else:
            _do(instruction, stage, stages, source, tools, left_out)
    return stage


def _do(
    instruction: Instruction,
    stage: Stage,
    stages: Mapping[str, Stage],
    source: Path,
    tools: Path,
    left_out: tuple[str, ...],
) -> None:
    value = instruction.value
    match instruction.name:
        case "RUN":
            if not value.startswith(left_out):
                _run(value, stage, tools)
        case "COPY":
            _copy(shlex.split(value), stage, stages, source)
        case "ENV":
            stage.environment |= _pairs(value, stage.arguments)
        case "LABEL":
            stage.labels |= _pairs(value, stage.arguments)
        case "WORKDIR":
            stage.workdir = value
        case "USER":
            stage.user = value
        case "STOPSIGNAL":
            stage.stop_signal = value
        case "ENTRYPOINT":
            stage.entrypoint = json.loads(value)
        case "EXPOSE":
            assert value.isdecimal()
        case _:
            raise NotImplementedError(instruction.name)


def _run(command: str, stage: Stage, tools: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment = kept | {"PATH": f"{tools}:{os.environ['PATH']}"} | stage.arguments | stage.inherited()
    done = subprocess.run(
        ["sh", "-c", stage.mapped(command)],
        env=environment,
        cwd=stage.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"RUN {command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def _copy(words: list[str], stage: Stage, stages: Mapping[str, Stage], source: Path) -> None:
    origin = source
    if words[0].startswith("--from="):
        origin = stages[words.pop(0).removeprefix("--from=")].root
    *names, target = words
    for name in names:
        found, to = origin / name.lstrip("/"), stage.path(target)
        if found.is_dir():
            shutil.copytree(found, to, symlinks=True, dirs_exist_ok=True)
        else:
            to = to / found.name if target.endswith("/") else to
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, to)


def _pairs(value: str, arguments: Mapping[str, str]) -> dict[str, str]:
    return {name: _filled(text, arguments) for name, _, text in (word.partition("=") for word in shlex.split(value))}


def _filled(text: str, arguments: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda found: arguments[found[1]], text)


def _regex(pattern: str) -> re.Pattern[str]:
    """A .dockerignore pattern; what it fits, and all below that."""
    translated = ""
    for piece in re.split(r"(\*\*/|\*\*|\*|\?)", pattern.strip("/")):
        translated += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(piece, re.escape(piece))
    return re.compile(f"{translated}(?:/|$)")
