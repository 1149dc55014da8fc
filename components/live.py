"""What a step tells whoever watches the run on this machine."""

import os

__all__ = ["progress"]


def progress(done: int, total: int) -> None:
    """How far the step is; nothing where nobody watches (``pipelines/observe.py`` does)."""
    if os.environ.get("HIMARI_PROGRESS") == "1":
        print(f"::progress {done} {total}", flush=True)
