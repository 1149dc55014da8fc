"""Run records: what each run was, and one page that shows them all.

``runs/<run id>/manifest.json`` says everything about a run; ``runs/index.html`` is made from all of
them and opens straight from disk, so that a reviewer without Vertex sees the lineage too.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import textwrap
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from layer3 import storage
from layer3.backtest.record import Criterion
from layer3.backtest.report import template_environment
from layer3.backtest.tables import STRATEGIES, criterion_rows, metric_groups
from pipelines.graph import NODE_HEIGHT, NODE_WIDTH, lay_out
from pipelines.manifest import read_manifest, write_manifest

__all__ = ["refresh_index", "write_manifest"]

_STATUSES = ("SUCCEEDED", "CACHED", "FAILED", "SKIPPED", "RUNNING")
#: Characters of an inlined Markdown file, and lines of an error, that the page shows.
_INLINE_CHARACTERS = 6_000
_ERROR_LINES = 40


def refresh_index(runs_dir: Path) -> Path:
    """Write ``runs_dir/index.html`` from every ``runs_dir/*/manifest.json`` and return its path.

    Newest run first. A manifest that cannot be read is listed with the reason. Pages that KFP wrote
    without a file extension (which a browser would show as source) are copied to
    ``<run>/<artifact name>.html``, and those copies are linked.
    """
    runs = [_read(path, runs_dir) for path in runs_dir.glob("*/manifest.json")]
    runs.sort(key=lambda run: (run["when"], run["id"]), reverse=True)
    latest = next((run["id"] for run in runs if not run["unreadable"]), None)
    page = (
        template_environment(Path(__file__).parent)
        .get_template("index.html.j2")
        .render(runs=runs, latest=latest, node_width=NODE_WIDTH, node_height=NODE_HEIGHT)
    )
    index = runs_dir / "index.html"
    storage.write_bytes(str(index), page.encode())
    return index


def _read(path: Path, runs_dir: Path) -> dict[str, Any]:
    folder = path.parent
    try:
        return _run(read_manifest(path), folder, runs_dir)
    except (OSError, ValueError) as error:
        try:
            when = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        except OSError:
            when = datetime.fromtimestamp(0, UTC)
        return {"id": folder.name, "when": when, "date": _date(when), "unreadable": str(error)}


def _run(manifest: dict[str, Any], folder: Path, runs_dir: Path) -> dict[str, Any]:
    steps = manifest["steps"]
    by_name = {step["name"]: step for step in steps}
    if len(by_name) < len(steps):
        raise ValueError("two steps have the same name")
    parameters = manifest["parameters"]
    when = _moment(manifest["started"])
    page_links = _page_links(steps, folder, runs_dir)
    views = [_step(step, page_links, runs_dir) for step in steps]
    pages = [item for view in views for item in view["outputs"] if item["page"]]
    verdict = manifest["verdict"]
    commit = manifest["git"]["commit"]
    return {
        "id": folder.name,
        "run_id": manifest["run_id"],
        "when": when,
        "date": _date(when),
        "unreadable": None,
        "pipeline": manifest["pipeline"],
        "status": manifest["status"],
        "status_class": _status_class(manifest["status"]),
        "synthetic": bool(manifest["synthetic"]),
        "market": _first(parameters, "symbol", "market"),
        "data": _first(parameters, "data", "source", "market"),
        "seed": _first(parameters, "seed"),
        "duration": _duration(manifest["seconds"]),
        "commit": f"{commit[:8]}{'+' if manifest['git']['dirty'] else ''}" if commit else "",
        "branch": manifest["branch"],
        "released": _pairs(manifest["released"]),
        "error": _tail(manifest["error"]),
        "passed": verdict["passed"] if verdict else None,
        "override": verdict["override"] if verdict else None,
        "criteria": criterion_rows(_criterion(item) for item in verdict["criteria"]) if verdict else [],
        "graph": lay_out({step["name"]: step["depends_on"] for step in steps}),
        "steps": views,
        "step": {view["name"]: view for view in views},
        "pages": pages,
        "texts": [item for view in views for item in view["outputs"] if item["text"]],
        "metrics": [item for view in views for item in view["outputs"] if item["metrics"]],
        "facts": [
            ("Run", manifest["run_id"]),
            ("Started", f"{_date(when)} UTC"),
            *_pairs(parameters),
        ],
        "versions": [
            (
                "git commit",
                (commit or "not a repository") + (" (with uncommitted changes)" if manifest["git"]["dirty"] else ""),
            ),
            ("source sha256", manifest["source_sha256"] or "n/a"),
            ("spec sha256", manifest["spec_sha256"] or "n/a"),
            *_pairs(manifest["versions"]),
        ],
    }


def _page_links(steps: list[dict[str, Any]], folder: Path, runs_dir: Path) -> dict[str, str | None]:
    """The link for the URI of every HTML artifact; a second page of one name gets its step's name in front."""
    links: dict[str, str | None] = {}
    stems: set[str] = set()
    for step in steps:
        for name, item in step["outputs"]["artifacts"].items():
            if _type(item) == "system.HTML":
                plain, full = (re.sub(r"[^A-Za-z0-9_-]", "_", text) for text in (name, f"{step['name']}-{name}"))
                stem = full if plain in stems else plain
                stems.add(stem)
                links[item["uri"]] = _page(stem, item["uri"], folder, runs_dir)
    return links


def _step(step: dict[str, Any], page_links: dict[str, str | None], runs_dir: Path) -> dict[str, Any]:
    log = step["log"]
    return {
        "name": step["name"],
        "title": step["display_name"] or step["name"],
        "lines": textwrap.wrap(step["display_name"] or step["name"], 16, max_lines=2, placeholder="…"),
        "status": step["status"],
        "status_class": _status_class(step["status"]),
        "attempts": step["attempts"] or 0,
        "duration": _duration(step["seconds"]),
        "after": step["depends_on"],
        "log": _href(log, runs_dir) if log else None,
        "error": _tail(step["error"]),
        "in_parameters": _pairs(_sorted(step["inputs"]["parameters"])),
        "inputs": [
            {
                "name": name,
                "producer": item["producer"],
                "uri": item["uri"],
                "href": page_links.get(item["uri"]) or _href(item["uri"], runs_dir),
                "type": _type(item),
                "sha": (item["sha256"] or "")[:12],
            }
            for name, item in step["inputs"]["artifacts"].items()
        ],
        "out_parameters": _pairs(step["outputs"]["parameters"]),
        "outputs": [
            _output(step["name"], name, item, page_links, runs_dir)
            for name, item in step["outputs"]["artifacts"].items()
        ],
    }


def _output(
    step: str, name: str, item: dict[str, Any], page_links: dict[str, str | None], runs_dir: Path
) -> dict[str, Any]:
    kind, uri = _type(item), item["uri"]
    href = page_links[uri] if uri in page_links else _href(uri, runs_dir)
    metadata = item["metadata"]
    numbers = {k: v for k, v in metadata.items() if isinstance(v, int | float)} if kind == "system.Metrics" else {}
    return {
        "step": step,
        "name": name,
        "label": name.replace("_", " "),
        "type": kind,
        "uri": uri,
        "href": href,
        "page": kind == "system.HTML" and href is not None,
        "sha": (item["sha256"] or "")[:12],
        "size": _size(item["bytes"]),
        "metadata": _pairs(_sorted({key: value for key, value in metadata.items() if key not in numbers})),
        "metrics": _metrics(numbers) if numbers else None,
        "text": _text(uri, runs_dir) if kind == "system.Markdown" else None,
    }


def _metrics(numbers: Mapping[str, float]) -> dict[str, Any]:
    """Numbers named ``<strategy>_<metric>`` as one table of all strategies, and any others as a list."""
    split: dict[str, dict[str, float | None]] = {}
    others = _sorted(numbers)
    for strategy in STRATEGIES:
        for key in [key for key in others if key.startswith(f"{strategy}_")]:
            split.setdefault(strategy, {})[key.removeprefix(f"{strategy}_")] = others.pop(key)
    rows = [row for _, group in metric_groups(split, list(split)) for row in group]
    return {"strategies": [STRATEGIES[name] for name in split], "rows": rows, "others": _pairs(others)}


def _page(stem: str, uri: str, folder: Path, runs_dir: Path) -> str | None:
    """Copy a page that has no extension to ``<run>/<stem>.html``; the link to it, ``None`` where nothing is to link.

    The copy stays when the artifact is cleaned up, and is refreshed when the artifact changed.
    """
    source, target = _local(uri, runs_dir), folder / f"{stem}.html"
    if source is None:
        return _href(uri, runs_dir)
    if source.is_file() and source.suffix in (".html", ".htm"):
        return _href(uri, runs_dir)
    if source.is_file() and not (target.exists() and _same(source, target)):
        beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.copy2(source, beside)
        beside.replace(target)
    return quote(f"{folder.name}/{target.name}") if target.is_file() else None


def _same(source: Path, copy: Path) -> bool:
    ours, theirs = source.stat(), copy.stat()
    return (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)


def _local(uri: str, runs_dir: Path) -> Path | None:
    """The file on this machine that ``uri`` names, ``None`` for one elsewhere."""
    path = uri.removeprefix("file://")
    return None if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path) else runs_dir.resolve().parent / path


def _href(uri: str, runs_dir: Path) -> str | None:
    """A link from ``index.html`` to what ``uri`` names, ``None`` where there is nothing to open."""
    if uri.startswith("gs://"):
        return "https://storage.cloud.google.com/" + quote(uri.removeprefix("gs://"))
    path = _local(uri, runs_dir)
    if path is None or "\0" in uri or not path.exists():
        return None
    return quote(os.path.relpath(path, runs_dir.resolve()))


def _text(uri: str, runs_dir: Path) -> str | None:
    path = _local(uri, runs_dir)
    if path is None or not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(_INLINE_CHARACTERS + 1)
    return (
        text if len(text) <= _INLINE_CHARACTERS else text[:_INLINE_CHARACTERS] + "\n(shortened; open the file for all)"
    )


def _criterion(item: dict[str, Any]) -> Criterion:
    if item["comparison"] not in (">=", "<="):
        raise ValueError(f"manifest.verdict compares by {item['comparison']!r}, expected '>=' or '<='")
    return Criterion(**item)


def _type(item: Mapping[str, Any]) -> str:
    return (item["type"] or "system.Artifact").split("@")[0]


def _status_class(status: str) -> str:
    return status.lower() if status in _STATUSES else "other"


def _first(parameters: Mapping[str, Any], *names: str) -> str:
    return next((_value(parameters[name]) for name in names if parameters.get(name) not in (None, "")), "")


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _value(value)) for name, value in values.items()]


def _sorted(values: Mapping[str, Any]) -> dict[str, Any]:
    """By name: what passed through KFP comes in another order each time."""
    return dict(sorted(values.items()))


def _value(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1e4 else f"{value:.6g}"
    text = (value or "(empty)") if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 240 else text[:240] + "…"


def _tail(error: str | None) -> str | None:
    lines = error.rstrip().splitlines() if error else []
    return "\n".join(lines[-_ERROR_LINES:]) or None


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"manifest.started is {text[:60]!r}, expected an ISO date and time") from error


def _date(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} m" if hours else f"{minutes} m {rest:02} s" if minutes else f"{rest} s"


def _size(count: float | None) -> str:
    if count is None:
        return ""
    power = min(max(len(f"{count:.0f}") - 1, 0) // 3, 3)
    scaled = count / 1000**power
    return f"{scaled:.{0 if power == 0 or scaled >= 100 else 1}f} {('B', 'kB', 'MB', 'GB')[power]}"
