"""What a build of the images would be sent, and a folder for what comes of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.docker import context

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that another user may read: pytest's own are for this one only."""
    folder = Path(tempfile.mkdtemp(prefix="himari-images-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def source(place: Path) -> Path:
    """What Docker would send to a build."""
    for path in context(ROOT):
        (place / "context" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, place / "context" / path)
    return place / "context"
