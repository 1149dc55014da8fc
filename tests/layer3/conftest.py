"""What is written down lies in a store."""

from __future__ import annotations

import pytest


@pytest.fixture
def store(any_store: str) -> str:
    """Address of an empty store, on this machine and in a bucket."""
    return any_store
