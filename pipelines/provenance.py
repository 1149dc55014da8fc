"""Which code, which versions, which commit: what a manifest says of where a run came from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from layer3.version import source_sha256

__all__ = ["local_tag", "provenance"]

_VERSIONED: Final = ("kfp", "google-cloud-pipeline-components", "torch", "numpy", "pandas", "safetensors", "uvicorn")


def provenance(root: Path) -> dict[str, Any]:
    """Versions of Python and the libraries that matter, git commit (``None`` outside git), and the source's hash."""
    return {
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in _VERSIONED},
        "git": _git(root),
        "source_sha256": source_sha256(root),
    }


def local_tag(root: Path) -> str:
    """Tag of the local image: a hash of everything that may change what a step answers."""
    digest = hashlib.sha256(source_sha256(root).encode())
    for name in ("requirements.lock", "pyproject.toml"):
        if (root / name).exists():
            digest.update((root / name).read_bytes())
    digest.update(f"{sys.version}{platform.machine()}".encode())
    return digest.hexdigest()[:16]


def _git(root: Path) -> dict[str, Any]:
    def ask(*words: str) -> str | None:
        try:
            answer = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    changes = ask("status", "--porcelain")
    return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(changes)}
