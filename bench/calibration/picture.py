"""The power curve as a picture, and the section of the documentation that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from bench.calibration.summary import Cell, Level, needed_years

__all__ = ["BEGIN", "END", "draw", "write_section"]

BEGIN: Final = "<!-- calibration: written by `make calibrate` -->"
END: Final = "<!-- end of calibration -->"
_COLOURS: Final = ("#4c78a8", "#f58518", "#54a24b", "#b279a2")


def draw(cells: Sequence[Cell], levels: Sequence[Level], path: Path) -> None:
    """Power against the record's length, one panel for each true ratio; the same cells give the same bytes."""
    with mpl.rc_context({"svg.hashsalt": "gate_power", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(9.0, 5.6), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True, sharey=True).ravel()
        for panel, level, colour in zip(axes, levels, _COLOURS, strict=False):
            _panel(panel, level, [cell for cell in cells if cell.wanted == level.wanted], colour)
        for panel in axes[len(levels) :]:
            panel.set_axis_off()
        figure.supxlabel("years of record")
        figure.supylabel("share released")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _panel(panel: mpl.axes.Axes, level: Level, mine: Sequence[Cell], colour: str) -> None:
    years = [cell.years for cell in mine]
    gate, plain = [cell.gate for cell in mine], [cell.plain for cell in mine]
    reach = np.array([[s.value - s.low for s in gate], [s.high - s.value for s in gate]])
    panel.errorbar(
        years, [s.value for s in gate], np.maximum(reach, 0.0), color=colour, marker="o", capsize=3, label="gate"
    )
    panel.plot(years, [s.value for s in plain], color="0.45", marker="s", ms=4, ls="--", label="Sharpe ≥ 1 alone")
    panel.plot(years, [cell.theory for cell in mine], color="0.7", ls=":", label="theory: PSR ≥ 95 % alone")
    panel.axhline(0.8, color="0.85", lw=0.8, zorder=0)
    enough = needed_years(level.policy, 0.8)
    if enough <= 6.0:
        panel.axvline(enough, color=colour, lw=0.8, alpha=0.6, label="theory: 80 %")
    panel.set_xscale("log", base=2)
    panel.set_xticks([0.5, 1.0, 2.0, 4.0], ["½", "1", "2", "4"])
    panel.set_xlim(0.42, 5.5)
    panel.set_ylim(-0.03, 1.03)
    panel.set_title(f"true Sharpe ratio {level.policy:.2f}", fontsize=10)
    panel.legend(fontsize=7, loc="lower right", frameon=False)


def write_section(path: Path, command: str, printed: str) -> None:
    """Put the picture, the command and what it ``printed`` between the markers of the document at ``path``.

    Raises
    ------
    ValueError : the document does not have the two markers, in this order
    """
    text = path.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} lacks the lines {BEGIN} and {END}, between which the result goes")
    picture = "![Power against the record's length](gate_power.svg)"
    section = f"\n\n{picture}\n\n`{command}` prints:\n\n```text\n{printed.strip()}\n```\n\n"
    path.write_text(f"{head}{BEGIN}{section}{END}{tail}", encoding="utf-8")
