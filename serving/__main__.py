"""``python -m serving``: serve one model over HTTP.

Settings, all from the environment:

    MODEL_URI    a policy folder, or a channel file such as channels/production.json; local or gs://
    PORT         8080
    HOST         127.0.0.1, or 0.0.0.0 on Cloud Run (where K_SERVICE is set)
    ACCESS_LOG   1 writes a line for each request; off by default
    HIMARI_EXIT_WITH_STDIN   1 ends the server when its standard input closes (set by a release,
                 whose candidates must not outlive it, even when it is killed)

Exit status: 0 after SIGTERM or Ctrl-C, 1 if it cannot listen, 2 if a setting is wrong.
"""

from __future__ import annotations

import copy
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Final

import uvicorn
import uvicorn.config

from layer3.errors import ConfigurationError
from serving.app import create_app
from serving.settings import settings

__all__ = ["main"]

#: Seconds that requests under way may take to finish after SIGTERM (Cloud Run kills after ten).
_DRAIN_SECONDS: Final = 8


def main() -> int:
    """Serve until SIGTERM or Ctrl-C; returns the process's exit status."""
    try:
        chosen = settings(os.environ)
    except ConfigurationError as error:
        print(f"serving: {error}", file=sys.stderr)
        return 2
    # uvicorn drains, then raises the signal again for whoever waits for it: that is us, and it is a success.
    signal.signal(signal.SIGTERM, _leave)
    if chosen.exit_with_stdin:
        threading.Thread(target=_watch_stdin, name="watch-stdin", daemon=True).start()
    try:
        uvicorn.run(
            create_app(chosen.model_uri),
            host=chosen.host,
            port=chosen.port,
            access_log=chosen.access_log,
            server_header=False,
            log_config=_log_config(),
            timeout_graceful_shutdown=_DRAIN_SECONDS,
        )
    except KeyboardInterrupt:
        return 0
    except SystemExit as ended:  # ours after SIGTERM, or uvicorn's when it cannot listen
        return 1 if ended.code else 0
    return 0


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _watch_stdin() -> None:
    # os.read, not sys.stdin: a thread that waits in the buffered reader crashes the interpreter's exit.
    while os.read(0, 4096):
        continue
    os.kill(os.getpid(), signal.SIGTERM)


def _log_config() -> dict[str, Any]:
    config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    config["loggers"]["serving"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return config


if __name__ == "__main__":
    sys.exit(main())
