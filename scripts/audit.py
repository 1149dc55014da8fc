"""Known faults of the packages that this project installs: every locked version, and torch.

The images' own locks hold no version that requirements.lock does not hold, so that one look covers all.
Exit status: 0 all were looked up and none has a known fault, 1 some have, 2 some could not be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def verdict(report: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Exit status, and lines to print, for what pip-audit found (its JSON format)."""
    packages = report["dependencies"]
    skipped = [package for package in packages if "skip_reason" in package]
    faults = [line for package in packages for line in _faults(package)]
    lines = list(faults)
    if skipped:
        names = ", ".join(sorted(package["name"] for package in skipped)[:5])
        lines.append(
            f"{len(skipped)} of {len(packages)} packages could not be looked up ({names}, ...): "
            "nothing is known of them; run make audit where https://pypi.org can be reached"
        )
    if not lines:
        lines = [f"{len(packages)} packages, none with a known fault"]
    return (1 if faults else 2 if skipped else 0), lines


def _faults(package: Mapping[str, Any]) -> Iterator[str]:
    for fault in package.get("vulns", ()):
        mended = ", ".join(fault["fix_versions"]) or "no version yet"
        yield f"{package['name']} {package['version']}: {fault['id']}, mended in {mended}"


def _torch() -> str:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return next(str(wanted) for wanted in extras["train"] if wanted.startswith("torch=="))


def main(arguments: Sequence[str]) -> int:
    """Command line: ``audit.py [LOCK]``."""
    lock = Path(arguments[0]) if arguments else ROOT / "requirements.lock"
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "requirements.txt")
        wanted.write_text(f"{lock.read_text(encoding='utf-8')}\n{_torch()}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(wanted), "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        print(f"audit: nothing was looked up: {done.stderr.strip()[-500:]}", file=sys.stderr)
        return 2
    status, lines = verdict(report)
    print("\n".join(lines), file=sys.stderr if status else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
