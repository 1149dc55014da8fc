"""Runs a command in a network of its own that has nothing but loopback, and catches whatever it asks of the world.

    unshare -rn python -m tests.fakes.trap COMMAND…

Every address of the world is made one of this machine, and something listens where names are asked for and where
Google answers. So an attempt is caught whoever made it (gRPC's own sockets, a library that swallows its errors), and
named: exit :data:`CAUGHT` and what was asked on stderr. Else the command's own exit status.
"""

from __future__ import annotations

import selectors
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Final

CAUGHT: Final = 97
_EVERYTHING: Final = (["ip", "link", "set", "lo", "up"], ["ip", "route", "add", "local", "0.0.0.0/0", "dev", "lo"])
_HOME: Final = "127."


def possible() -> bool:
    """Whether this machine lets us make such a network."""
    unshare = shutil.which("unshare")
    return (
        unshare is not None
        and not subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode
    )


class Trap:
    """Listens for what leaves; :attr:`caught` says what did."""

    def __init__(self) -> None:
        self.caught: list[str] = []
        self._names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._names.bind(("0.0.0.0", 53))
        self._servers = [socket.create_server(("0.0.0.0", port)) for port in (53, 80, 443)]
        self._stopper, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def close(self) -> None:
        self._stop.close()
        self._thread.join()
        for each in (self._names, self._stopper, *self._servers):
            each.close()

    def _listen(self) -> None:
        with selectors.DefaultSelector() as ready:
            for each in (self._names, self._stopper, *self._servers):
                ready.register(each, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    if key.fileobj is self._stopper:
                        return
                    self._catch(key.fileobj)

    def _catch(self, listener: object) -> None:
        if listener is self._names:
            question, asker = self._names.recvfrom(512)
            self.caught.append(f"the name {_name(question)}")
            # There is no such name: whoever asks need not wait for an answer.
            self._names.sendto(question[:2] + b"\x81\x83" + question[4:6] + bytes(6) + question[12:], asker)
            return
        assert isinstance(listener, socket.socket)
        connection, _ = listener.accept()
        with connection:
            address, port = connection.getsockname()[:2]
        if not address.startswith(_HOME):
            self.caught.append(f"{address}:{port}")


def _name(question: bytes) -> str:
    labels, at = [], 12
    while at < len(question) and question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode(errors="replace"))
        at += 1 + question[at]
    return ".".join(labels)


def main(command: Sequence[str]) -> int:
    """Run ``command``; its exit status, or :data:`CAUGHT`."""
    for words in _EVERYTHING:
        subprocess.run(words, check=True)
    trap = Trap()
    try:
        status = subprocess.run(command, check=False).returncode
    finally:
        trap.close()
    for asked in dict.fromkeys(trap.caught):
        print(f"left this machine: {asked}", file=sys.stderr)
    return CAUGHT if trap.caught else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
