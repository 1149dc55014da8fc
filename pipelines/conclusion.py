"""How the end of a run is told on a terminal, wherever it ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["verdict_lines"]


def verdict_lines(verdict: Mapping[str, Any]) -> list[str]:
    """Every criterion in a line, and who overrode them, if somebody did."""
    lines = [
        f"  {'pass' if criterion['passed'] else 'FAIL'}  {criterion['name']:<21} {criterion['sentence']}"
        for criterion in verdict["criteria"]
    ]
    if verdict["override"]:
        lines += ["", f"OVERRIDDEN by {verdict['override']['name']}: {verdict['override']['reason']}"]
    return lines
