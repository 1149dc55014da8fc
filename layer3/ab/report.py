"""What an experiment says: ``python -m layer3.ab.report --store FILE`` (``make ab-report``)."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from layer3.ab.analysis import Analysis, analyse
from layer3.ab.page import render_page
from layer3.ab.store import Store
from layer3.ab.wording import NAMES, about, arm_rows, check_rows, difference_rows, said
from layer3.errors import DataError, HimariError

__all__ = ["main", "render_text"]

_WIDTH: Final = 96


def render_text(analysis: Analysis) -> str:
    """The report as text of at most 96 columns."""
    told = analysis.recommendation
    lines = [analysis.design.name, *_wrapped("", " · ".join(about(analysis))), ""]
    lines += [f"  {told.headline.upper()}", *_wrapped("  ", told.reason)]
    if told.more:
        lines += _wrapped("  ", told.more)
    lines += ["", f"{'':<32}" + "".join(f"{name:<32}" for name in NAMES.values()).rstrip()]
    lines.append("-" * _WIDTH)
    for label, cells in arm_rows(analysis):
        lines.append((f"{label:<32}" + "".join(f"{_cell(*cell):<32}" for cell in cells)).rstrip())
    head = f"{'Policy less Kelly only, bp':<30}{'difference':>11}   {f'{said(analysis.design.level)} interval':<24}"
    lines += ["", f"{head}{'p':<12}{'for':<10}".rstrip(), "-" * _WIDTH]
    lines += [
        f"{row.label:<30}{row.value:>11}   {row.interval:<24}{row.p:<12}{row.use:<10}".rstrip()
        for row in difference_rows(analysis)
    ]
    lines.append("")
    for name, sentence in check_rows(analysis):
        lines += _wrapped(f"{name:<15}", sentence)
    return "\n".join(lines)


def _cell(value: str, reach: str) -> str:
    return f"{value} ({reach})" if reach else value


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)


def _one(store: Store, name: str) -> str:
    if name:
        return name
    names = store.names()
    if not names:
        raise DataError("this store holds no experiment yet: the first decision of one begins it")
    if len(names) > 1:
        raise DataError(f"this store holds {len(names)} experiments: say --experiment= with {' or '.join(names)}")
    return names[0]


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataError(f"the page {path} cannot be written: {error.strerror}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, or 2 where there is nothing to report on."""
    parser = argparse.ArgumentParser(prog="python -m layer3.ab.report", description="What an experiment says.")
    parser.add_argument("--store", type=Path, required=True, metavar="FILE", help="the experiment's SQLite file")
    parser.add_argument("--experiment", default="", metavar="NAME", help="which one (default: the only one there is)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with pictures")
    options = parser.parse_args(arguments)
    try:
        with Store(options.store, read_only=True) as store:
            analysis = analyse(store, _one(store, options.experiment))
        if options.html is not None:
            _write(options.html, render_page(analysis))
    except HimariError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(render_text(analysis))
    if options.html is not None:
        print(f"\nPage: {options.html}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
