"""What each extra brings along, and what a process that serves may import."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "torch",
    "pandas",
    "pyarrow",
    "kfp",
    "google-cloud-aiplatform",
    "google-cloud-pipeline-components",
    "matplotlib",
}


def closure(requirement: str) -> set[str]:
    """Every distribution that installing ``requirement`` brings along, by the installed packages' own metadata."""
    found: set[str] = set()
    waiting = [Requirement(requirement)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            further = Requirement(line)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append(further)
    return found


@pytest.mark.parametrize("extra", ["himari", "himari[serve]"])
def test_serving_installs_nothing_heavy(extra):
    installed = closure(extra)
    assert {"numpy", "safetensors"} <= installed
    assert not installed & HEAVY
    assert not {name for name in installed if name.startswith("google")}


def test_the_exchange_library_comes_only_with_its_extra():
    assert "ccxt" not in closure("himari[pipeline]")
    assert "ccxt" in closure("himari[exchange]")


def test_gymnasium_comes_only_with_its_extra_and_without_torch():
    assert "gymnasium" not in closure("himari[pipeline]")
    assert "gymnasium" in closure("himari[gym]")
    assert "torch" not in closure("himari[gym]")


@pytest.mark.parametrize("module", ["layer3.contract", "layer3.agent.policy_file", "layer3.types", "layer3.size"])
def test_what_serves_imports_no_heavy_package(module):
    heavy = [
        "torch",
        "pandas",
        "pyarrow",
        "kfp",
        "google.cloud.storage",
        "google.cloud.aiplatform",
        "matplotlib",
        "ccxt",
        "scipy",
    ]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["layer3.workflow", "pipelines.local"])
def test_only_training_waits_for_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_gymnasium_form_waits_for_no_torch():
    code = "import sys, layer3.agent.gym_env; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_package_marker_is_empty():
    """An ``__init__`` that imports would drag everything into the process that serves."""
    for package in ("components", "layer3", "pipelines", "serving"):
        for marker in (ROOT / package).rglob("__init__.py"):
            assert marker.read_text() == "", marker


def test_the_readme_is_finished_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert "@@" not in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_every_make_target_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z][a-z0-9-]+)", (ROOT / "README.md").read_text()))
    assert named <= targets
    assert {"run-local", "test", "serve", "size", "rollback"} <= named
