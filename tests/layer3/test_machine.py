from __future__ import annotations

import os
from pathlib import Path

import pytest

from layer3 import machine


def test_the_cores_are_those_that_the_process_may_run_on() -> None:
    if not hasattr(os, "sched_getaffinity"):
        assert machine.cores() == os.cpu_count()
        return
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert machine.cores() == len(allowed)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((), None),
        (("max\n",), None),
        (("1048576\n",), 1_048_576),
        (("max\n", "2048\n"), 2_048),
        # What version 1 says where there is no limit.
        (("9223372036854771712\n",), None),
    ],
)
def test_a_containers_limit_counts_where_it_is_less(
    tmp_path: Path, texts: tuple[str, ...], expected: int | None
) -> None:
    files = [tmp_path / str(number) for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.memory([*files, tmp_path / "absent"]) == (physical if expected is None else expected)
    assert 0 < machine.memory() <= physical
