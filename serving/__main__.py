"""``python -m serving``: serve one model over HTTP.

Settings, all from the environment; who may call (AUTH, API_KEYS_FILE, ID_TOKEN_AUDIENCE, RATE_LIMIT, ...)
is listed in :mod:`serving.guard`:

    MODEL_URI       a policy folder, or a channel file such as channels/production.json; local or gs://
    PORT            8080; AIP_HTTP_PORT, as Vertex AI says it, counts before it
    HOST            127.0.0.1, or 0.0.0.0 on Cloud Run (K_SERVICE is set) and Vertex AI
    AIP_HEALTH_ROUTE, AIP_PREDICT_ROUTE   Vertex AI's paths, answered beside our own
    CORS_ORIGINS    web pages that may call from a browser, comma-separated; none by default
    MAX_IN_FLIGHT   connections, and requests under way, that are held at once; 1000. More are answered 503
    WATCH_SECONDS   pause between two looks at a channel; 2
    ACCESS_LOG_PER_SECOND   lines a second about requests that went well, 10; errors are always logged; 0 is errors only
    GOOGLE_CLOUD_PROJECT    whose traces the log's lines belong to
    HIMARI_EXIT_WITH_STDIN  1 ends the server when its standard input closes (set by a release, whose candidates
                            must not outlive it, even when it is killed)

Exit status: 0 after SIGTERM or Ctrl-C, 1 if it cannot listen, 2 if a setting is wrong.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from typing import Any

from layer3 import machine

__all__ = ["main"]


def main() -> int:
    """Serve until SIGTERM or Ctrl-C; returns the process's exit status."""
    # Before numpy is imported, which asks once. One prediction is too small to share among threads, and a container
    # has one core: threads would only wait for each other.
    os.environ.update(machine.thread_limits(os.environ))
    gc.disable()  # until everything is imported: there is nothing to collect, and it looks a hundred times
    _leave_out_uvicorns_command_line()
    from layer3.errors import ConfigurationError
    from serving.server import serve
    from serving.settings import settings

    try:
        serve(settings(os.environ))
    except ConfigurationError as error:
        print(f"serving: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    except SystemExit as ended:  # ours after SIGTERM, or uvicorn's when it cannot listen
        return 1 if ended.code else 0
    return 0


def _leave_out_uvicorns_command_line() -> None:
    """Import uvicorn's parts without its package's own code, which imports click, multiprocessing and reloaders.

    That is a tenth of the time to ready, for what this process never uses. Its lifespan asks the package for Config.
    """
    specification = importlib.util.find_spec("uvicorn")
    if specification is None:
        raise ModuleNotFoundError("uvicorn is not installed: pip install 'himari[serve]'")
    package: Any = importlib.util.module_from_spec(specification)
    sys.modules["uvicorn"] = package
    from uvicorn.config import Config

    package.Config = Config


if __name__ == "__main__":
    sys.exit(main())
