"""The compiled pipeline, and a cloud for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import compile as compiler
from tests.fakes.cloud import COMPONENTS, World, world


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """training.yaml, and the one whose training is a custom job beside it."""
    path, *_ = compiler.compile_pipelines(tmp_path_factory.mktemp("build"), COMPONENTS, custom_job=True)
    return path


@pytest.fixture
def cloud(tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # The command sets it for the processes that it starts; it is taken back with the test.
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "")
    with world(tmp_path / "world", compiled) as made:
        yield made
