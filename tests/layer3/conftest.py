"""A store for what is written down, on this machine and in a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.gcs import FakeGcs


@pytest.fixture(params=["local", "gs"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of an empty store."""
    if request.param == "local":
        yield str(tmp_path / "store")
        return
    with FakeGcs("store") as fake:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
        yield "gs://store/deep"
