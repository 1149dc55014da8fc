"""The process: uvicorn around the door, told to stop in order, and rid of connections that nobody uses."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Final

from uvicorn.config import Config
from uvicorn.server import Server as UvicornServer

from serving.access import AccessLog
from serving.door import Door
from serving.guard import Guard
from serving.metrics import Metrics
from serving.protocol import IDLE_SECONDS, Connection, protocol_of
from serving.service import Service
from serving.settings import Settings

__all__ = ["Server", "listeners", "open_door", "serve"]

#: Seconds from SIGTERM to the end at the latest (Cloud Run kills after ten): first requests under way are waited
#: for while /health says "draining", then what is left is cut.
_DRAIN_SECONDS: Final = 7.0
_CUT_SECONDS: Final = 1
#: New connections that one turn of the loop takes up: libuv takes one from each listener. With one alone, and an answer
#: to many states in each turn, they would wait for seconds where nobody sees and sheds them.
_TAKEN_AT_ONCE: Final = 8
logger = logging.getLogger("serving")


class Server(UvicornServer):
    """uvicorn, whose tick (ten times a second) also drains, and once a second looks for the impatient and the idle."""

    def __init__(self, config: Config, door: Door) -> None:
        super().__init__(config)
        self._door = door
        self._frozen = False
        self._leave_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins to drain; Ctrl-C again leaves at once."""
        if self._leave_at is not None:
            super().handle_exit(sig, frame)
            return
        self._leave_at = time.monotonic() + _DRAIN_SECONDS
        self._door.service.drain()

    async def on_tick(self, counter: int) -> bool:
        if self._leave_at is not None and (not self.server_state.tasks or time.monotonic() > self._leave_at):
            self.should_exit = True
        if not self._frozen and self._door.service.current is not None:
            # What was loaded stays: the collector need not look at it in the middle of a request.
            gc.freeze()
            self._frozen = True
        if counter % 10 == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.expire(connection.loop.time())
        return await super().on_tick(counter)


def open_door(settings: Settings) -> Door:
    """The application with everything that it needs; a ConfigurationError if the file of keys is wrong."""
    service = Service(settings.model_uri, watch_seconds=settings.watch_seconds)
    access = AccessLog(settings.access_log_per_second, settings.project)
    return Door(settings, service, Guard(settings.guard), Metrics(service, access), access)


def server_of(door: Door, settings: Settings) -> Server:
    """A server that answers through ``door`` and has not started yet."""
    config = Config(
        door,
        host=settings.host,
        port=settings.port,
        http=protocol_of(door, settings.max_in_flight),
        loop="uvloop",
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(IDLE_SECONDS),
        timeout_graceful_shutdown=_CUT_SECONDS,
    )
    return Server(config, door)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; SystemExit with another status than 0 when it cannot listen.

    Raises
    ------
    ConfigurationError : the file of keys is wrong
    """
    door = open_door(settings)
    _log_to_stderr()
    _allow_files()
    if settings.exit_with_stdin:
        threading.Thread(target=_watch_stdin, name="watch-stdin", daemon=True).start()
    # uvicorn drains, then raises the signal again for whoever waits for it: that is us, and it is a success.
    signal.signal(signal.SIGTERM, _leave)
    server = server_of(door, settings)
    gc.enable()
    # Bound here: the loop would look the address up, with four threads of its own that nobody needs afterwards.
    server.run(sockets=listeners(settings.host, settings.port))


def listeners(host: str, port: int) -> list[socket.socket]:
    """A bound address, as many times as the loop shall look there; SystemExit and a line in the log if that fails."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, UnicodeError) as error:  # the latter of names that are too long for one
        listener.close()
        logger.error("cannot listen on HOST %r, PORT %d: %s", host, port, getattr(error, "strerror", None) or error)
        raise SystemExit(1) from None
    logger.info("listening on %s, port %d", host, port)
    return [listener, *(listener.dup() for _ in range(_TAKEN_AT_ONCE - 1))]


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _watch_stdin() -> None:
    # os.read, not sys.stdin: a thread that waits in the buffered reader crashes the interpreter's exit.
    while os.read(0, 4096):
        continue
    os.kill(os.getpid(), signal.SIGTERM)


def _allow_files() -> None:
    """Allow this process as many open connections as the system lets it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    for name in ("serving", "uvicorn"):
        chosen = logging.getLogger(name)
        chosen.addHandler(handler)
        chosen.setLevel(logging.INFO)
        chosen.propagate = False
