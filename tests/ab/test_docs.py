"""What the documentation shows is what runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from layer3.ab import recommend

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "ab-testing.md").read_text()


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env=environment, check=False
    )


def test_the_example_runs_as_it_stands(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    done = run(tmp_path, "-W", "error", "-c", code)
    assert done.stderr == ""
    assert done.stdout in ("hold $15,600, not $12,000\n", "hold $12,000, not $15,600\n")
    done = run(tmp_path, "-m", "layer3.ab.report", "--store", "ab.sqlite")
    assert done.returncode == 0
    assert "policy-against-kelly" in done.stdout


def test_the_rules_are_the_modules_rules() -> None:
    def rules(text: str | None) -> list[str]:
        table = re.findall(r"^\| ([^|]*) \| (deploy|disable|continue|no difference)", text or "", re.MULTILINE)
        return [action for _, action in table]

    assert rules(DOCS) == rules(recommend.__doc__)
    assert len(rules(DOCS)) == 10


def test_who_records_waits_for_no_heavy_package(tmp_path: Path) -> None:
    heavy = ["torch", "pandas", "pyarrow", "scipy", "matplotlib", "jinja2", "pydantic", "kfp", "google.cloud.storage"]
    done = run(tmp_path, "-c", f"import sys, layer3.experiment; print([m for m in {heavy} if m in sys.modules])")
    assert done.stdout.strip() == "[]"
