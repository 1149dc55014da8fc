"""A metadata server on loopback, as a machine on Google Cloud has one: access tokens of its account.

``with Metadata() as metadata: monkeypatch.setenv("GCE_METADATA_HOST", metadata.address)``
"""

from __future__ import annotations

import json
import threading
from http.server import ThreadingHTTPServer
from typing import Final

from tests.fakes.web import Handler

__all__ = ["Metadata"]

_TOKEN: Final = "/computeMetadata/v1/instance/service-accounts/default/token"


class Metadata:
    """Each token is a new one: ``token-1``, ``token-2``, …; all live ``expires_in`` seconds."""

    def __init__(self) -> None:
        self.expires_in: object = 3_599
        self.given: list[str] = []
        #: What the next requests get instead: a status and a body.
        self.instead: list[tuple[int, bytes]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"metadata": self}))
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="fake-metadata")
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Metadata:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, path: str, flavor: str | None) -> tuple[int, bytes]:
        if path != _TOKEN:
            return 404, b"no such thing"
        if flavor != "Google":
            return 403, b"Missing Metadata-Flavor:Google header."
        if self.instead:
            return self.instead.pop(0)
        self.given.append(f"token-{len(self.given) + 1}")
        said = {"access_token": self.given[-1], "expires_in": self.expires_in, "token_type": "Bearer"}
        return 200, json.dumps(said).encode()


class _Handler(Handler):
    metadata: Metadata

    def do_GET(self) -> None:
        status, body = self.metadata.answer(self.path, self.headers.get("Metadata-Flavor"))
        self.reply(status, body, {"Metadata-Flavor": "Google"})
