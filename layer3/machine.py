"""What this process may use of the machine: a container or a scheduler often allows less than there is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

__all__ = ["ONE_THREAD", "compute_device", "cores", "memory", "thread_limits"]

#: What OpenMP, OpenBLAS and MKL read when they are loaded. Products as small as ours take twice as long when they are
#: spread over threads of which one waits for a core; what wants more cores starts workers of its own.
ONE_THREAD: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
)
#: Where Linux says how much memory a container may use, cgroups of version 2 and 1.
_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def compute_device() -> str:
    """Where training runs: ``cuda`` where torch finds a GPU, else ``cpu``."""
    # It takes seconds to import, and most who ask for cores and memory never train.
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def thread_limits(environment: Mapping[str, str]) -> Mapping[str, str]:
    """:data:`ONE_THREAD`, or nothing where ``environment`` says anything of threads itself."""
    return {} if ONE_THREAD.keys() & environment.keys() else ONE_THREAD


def cores() -> int:
    """Cores that this process may run on, at least 1."""
    # Not on macOS and Windows.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory(limits: Sequence[Path] = _LIMITS) -> int:
    """Bytes of memory that this process may use: the machine's, or its container's where that is less.

    ``limits`` are files that hold a number of bytes, or ``max``; those that are not there limit nothing.
    """
    known = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    known += [int(text) for path in limits if path.is_file() and (text := path.read_text().strip()).isdigit()]
    return min(known)
