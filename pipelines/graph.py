"""Where each step of a run stands in the drawing of its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["NODE_HEIGHT", "NODE_WIDTH", "Edge", "Graph", "Node", "lay_out"]

NODE_WIDTH = 142
NODE_HEIGHT = 50
_GAP_X = 30
_GAP_Y = 22
_MARGIN = 18


@dataclass(frozen=True, slots=True)
class Node:
    """One step: its name and the upper left corner of its box."""

    name: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Edge:
    """An arrow from one step to the next, as the data of an SVG path."""

    source: str
    target: str
    path: str


@dataclass(frozen=True, slots=True)
class Graph:
    """A drawing of ``width`` by ``height`` SVG units."""

    width: float
    height: float
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def lay_out(depends_on: Mapping[str, Sequence[str]]) -> Graph:
    """Put every step one column right of the last step it waits for, and draw each arrow once.

    ``depends_on`` maps each step, in the order of drawing, to the steps it waits for; names that are
    not steps are left out, and so is an arrow where a longer way leads to the same step.

    Raises
    ------
    ValueError : steps wait for each other in a circle
    """
    waits = {name: [dep for dep in dict.fromkeys(deps) if dep in depends_on] for name, deps in depends_on.items()}
    column = _columns(waits)
    before: dict[str, set[str]] = {}
    for name in sorted(waits, key=column.__getitem__):
        before[name] = {name}.union(*(before[dep] for dep in waits[name]))
    ranks: dict[int, list[str]] = {}
    for name in waits:
        ranks.setdefault(column[name], []).append(name)
    tallest = max(map(len, ranks.values()), default=0)
    nodes = {
        name: Node(
            name,
            _MARGIN + rank * (NODE_WIDTH + _GAP_X),
            _MARGIN + (row + (tallest - len(names)) / 2) * (NODE_HEIGHT + _GAP_Y),
        )
        for rank, names in ranks.items()
        for row, name in enumerate(names)
    }
    edges = [
        Edge(dep, name, _curve(nodes[dep], nodes[name]))
        for name, deps in waits.items()
        for dep in deps
        if not any(dep in before[other] for other in deps if other != dep)
    ]
    width = 2 * _MARGIN + max(len(ranks), 1) * (NODE_WIDTH + _GAP_X) - _GAP_X
    height = 2 * _MARGIN + max(tallest, 1) * (NODE_HEIGHT + _GAP_Y) - _GAP_Y
    return Graph(width, height, tuple(nodes[name] for name in waits), tuple(edges))


def _columns(waits: Mapping[str, Sequence[str]]) -> dict[str, int]:
    column: dict[str, int] = {}
    while len(column) < len(waits):
        ready = [name for name in waits if name not in column and all(dep in column for dep in waits[name])]
        if not ready:
            circle = ", ".join(name for name in waits if name not in column)
            raise ValueError(f"steps wait for each other in a circle: {circle}")
        column |= {name: 1 + max((column[dep] for dep in waits[name]), default=-1) for name in ready}
    return column


def _curve(source: Node, target: Node) -> str:
    x0, y0 = source.x + NODE_WIDTH, source.y + NODE_HEIGHT / 2
    x1, y1 = target.x - 5, target.y + NODE_HEIGHT / 2
    bend = (x1 - x0) / 2
    return f"M{x0:g} {y0:g}C{x0 + bend:g} {y0:g} {x1 - bend:g} {y1:g} {x1:g} {y1:g}"
