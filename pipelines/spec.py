"""Reading a compiled pipeline spec: its steps, their order, its branches, and its local twin."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["LOCAL_COMMAND", "Leaf", "branches", "defaults", "leaves", "localised"]

Spec = Mapping[str, Any]

#: What every container runs on this machine instead of ``python3 -m kfp.dsl.executor_main``.
LOCAL_COMMAND: Final = (sys.executable, "-u", "-m", "kfp.dsl.executor_main")
_CONDITION_INPUT: Final = re.compile(r"inputs\.parameter_values\['([^']+)'\]")


@dataclass(frozen=True, slots=True)
class Leaf:
    """One step that runs code: its task name, display name, component, and the steps it waits for."""

    name: str
    display_name: str
    component: str
    depends_on: tuple[str, ...]


def localised(spec: Spec, source: str) -> dict[str, Any]:
    """The same spec with every container's command prefix and image name changed, and nothing else.

    ``source`` is the source's hash: it stands in the image name, so that the local cache, which
    knows a step by its image and arguments, never returns what other code produced.
    """
    twin = copy.deepcopy(dict(spec))
    for executor in twin["deploymentSpec"]["executors"].values():
        executor["container"]["image"] = f"python-himari-local:{source}"
        executor["container"]["command"] = list(LOCAL_COMMAND)
    return twin


def defaults(spec: Spec) -> dict[str, Any]:
    """The value of every pipeline parameter that has one of its own."""
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    return {name: given["defaultValue"] for name, given in parameters.items() if "defaultValue" in given}


def leaves(spec: Spec) -> list[Leaf]:
    """Every step, those that wait for nothing first, the exit handler last."""
    found = list(_walk(spec, spec["root"]["dag"], {}, ()))
    exits = {
        name for name, task in spec["root"]["dag"]["tasks"].items() if "ALL_UPSTREAM" in str(task.get("triggerPolicy"))
    }
    awaited = {name for leaf in found for name in leaf.depends_on}
    ends = tuple(leaf.name for leaf in found if leaf.name not in awaited | exits)
    found = [Leaf(leaf.name, leaf.display_name, leaf.component, ends) if leaf.name in exits else leaf for leaf in found]
    ordered: list[Leaf] = []
    while found:
        done = {leaf.name for leaf in ordered}
        ready = [leaf for leaf in found if set(leaf.depends_on) <= done]
        ordered += ready
        found = [leaf for leaf in found if leaf not in ready]
    return ordered


def branches(spec: Spec) -> list[list[frozenset[str]]]:
    """For every If with its Else: the names of the steps in each branch."""
    groups = []
    for component in [spec["root"], *spec["components"].values()]:
        tasks = component.get("dag", {}).get("tasks", {})
        conditional = [task for task in tasks.values() if "condition" in task.get("triggerPolicy", {})]
        if conditional:
            groups.append([frozenset(_names_below(spec, task)) for task in conditional])
    return groups


def _names_below(spec: Spec, task: Mapping[str, Any]) -> Iterator[str]:
    dag = spec["components"][task["componentRef"]["name"]].get("dag", {"tasks": {}})
    for name, inner in dag["tasks"].items():
        if "dag" in spec["components"][inner["componentRef"]["name"]]:
            yield from _names_below(spec, inner)
        else:
            yield name


def _walk(
    spec: Spec, dag: Mapping[str, Any], given: Mapping[str, frozenset[str]], waits: tuple[str, ...]
) -> Iterator[Leaf]:
    """Steps below ``dag``; ``given`` names the producers behind each of its inputs, ``waits`` its conditions'."""
    for name, task in dag["tasks"].items():
        inputs = _producers(spec, dag, task, given)
        component = task["componentRef"]["name"]
        definition = spec["components"][component]
        behind = frozenset().union(*inputs.values(), waits)
        if "dag" in definition:
            condition = task.get("triggerPolicy", {}).get("condition", "")
            asked = {p for key in _CONDITION_INPUT.findall(condition) for p in inputs.get(key, frozenset())}
            yield from _walk(spec, definition["dag"], inputs, tuple(sorted({*waits, *asked})))
        else:
            yield Leaf(name, task["taskInfo"]["name"], component.removeprefix("comp-"), tuple(sorted(behind)))


def _producers(
    spec: Spec, dag: Mapping[str, Any], task: Mapping[str, Any], given: Mapping[str, frozenset[str]]
) -> dict[str, frozenset[str]]:
    out = {}
    for kind in ("parameters", "artifacts"):
        for name, source in task.get("inputs", {}).get(kind, {}).items():
            direct = source.get("taskOutputParameter") or source.get("taskOutputArtifact")
            outer = source.get("componentInputParameter") or source.get("componentInputArtifact")
            out[name] = _steps_of(spec, dag, direct["producerTask"]) if direct else given.get(outer, frozenset())
    # What a loop goes over is given to its steps under another name.
    if "parameterIterator" in task:
        loop = task["parameterIterator"]
        out[loop["itemInput"]] = out[loop["items"]["inputParameter"]]
    return out


def _steps_of(spec: Spec, dag: Mapping[str, Any], name: str) -> frozenset[str]:
    """The task itself, or every step of a group of tasks, all of which are waited for."""
    below = frozenset(_names_below(spec, dag["tasks"][name]))
    return below or frozenset({name})
