"""Bytes that are no request, or half of one, or far too much of one, straight onto the socket."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import time
from collections import Counter

from tests.serving.proof.refusals import STATE, state
from tests.serving.proof.server import KEY, Server

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
#: What may be answered to bytes that make no sense; a connection that is closed without an answer is fine too.
_DOCUMENTED = frozenset({200, 400, 401, 404, 405, 408, 409, 411, 413, 414, 415, 417, 422, 426, 431, 501, 505})
_PATIENCE_S = 15.0
_MOMENT_S = 0.01


def head(*lines: str, method: str = "POST", path: str = "/predict") -> bytes:
    """A request up to its body."""
    fixed = ["Host: 127.0.0.1", f"X-API-Key: {KEY}", "Content-Type: application/json"]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *fixed, *lines, "", ""]).encode()


def good(body: bytes = state()) -> bytes:
    """A request that is answered with 200."""
    return head(f"Content-Length: {len(body)}") + body


def chunked(*pieces: bytes) -> bytes:
    """A request whose body comes in pieces, written as they are."""
    return head("Transfer-Encoding: chunked") + b"".join(pieces)


_LENGTH = len(state())
#: Each by name, with the statuses that must come back, in order; None where any documented one or none will do.
NONSENSE: dict[str, tuple[bytes, list[int] | None]] = {
    "nothing": (b"", []),
    "two requests at once": (good() * 2, [200, 200]),
    "fifty requests at once": (good() * 50, [200] * 50),
    "a good one and rubbish": (good() + b"\x00\x01rubbish\r\n\r\n", None),
    "a health check and a prediction at once": (head(method="GET", path="/health") + good(), [200, 200]),
    "rubbish": (b"\xde\xad\xbe\xef" * 64, [400]),
    "half a request line": (b"POST /pre", []),
    "half of the headers": (good()[:60], []),
    "half a body": (good()[:-20], None),
    "more body than announced": (good() + b"0" * 100, None),
    "a body in chunks": (chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (_LENGTH, state())), [200]),
    "a body in one-byte chunks": (chunked(*(b"1\r\n%c\r\n" % byte for byte in state()), b"0\r\n\r\n"), [200]),
    "a chunk without a size": (chunked(b"\r\n\r\n"), None),
    "a chunk of negative size": (chunked(b"-5\r\nhello\r\n0\r\n\r\n"), None),
    "a chunk whose size is a word": (chunked(b"many\r\nhello\r\n0\r\n\r\n"), None),
    "a chunk of 2^64 bytes": (chunked(b"ffffffffffffffffff\r\nhello\r\n"), None),
    "a chunk of a terabyte": (chunked(b"ffffffffff\r\nhello\r\n"), None),
    "chunks that never end": (chunked(b"5\r\nhello\r\n"), None),
    "chunk extensions of 64 kB": (chunked(b"5;" + b"x=y;" * 16_000 + b"\r\nhello\r\n0\r\n\r\n"), None),
    "trailers": (chunked(b"%x\r\n%b\r\n0\r\nX-A: b\r\n\r\n" % (_LENGTH, state())), None),
    "length and chunks": (head(f"Content-Length: {_LENGTH}", "Transfer-Encoding: chunked") + state(), [400]),
    "two lengths": (head("Content-Length: 5", f"Content-Length: {_LENGTH}") + state(), [400]),
    "a negative length": (head("Content-Length: -1") + state(), [400]),
    "a length that is a word": (head("Content-Length: many") + state(), [400]),
    "a length of 2^70": (head(f"Content-Length: {2**70}") + state(), None),
    "no length": (head() + state(), None),
    "an unknown encoding of the body": (head("Transfer-Encoding: gzip") + state(), None),
    "a header of 100 kB": (head(f"X-Long: {'x' * 100_000}", f"Content-Length: {_LENGTH}") + state(), None),
    "5,000 headers": (head(*(f"X-{n}: {n}" for n in range(5_000)), f"Content-Length: {_LENGTH}") + state(), None),
    "a header without a colon": (head("no colon here") + state(), [400]),
    "a header without a name": (head(": nameless") + state(), [400]),
    "a header over two lines": (head("X-A: b\r\n c", f"Content-Length: {_LENGTH}") + state(), None),
    "a zero byte in a header": (head("X-A: \x00", f"Content-Length: {_LENGTH}") + state(), None),
    "bytes that are no ASCII in a header": (head("X-A: é", f"Content-Length: {_LENGTH}") + state(), None),
    "lines that end in LF": (good().replace(b"\r\n", b"\n"), None),
    "lines that end in CR": (good().replace(b"\r\n", b"\r"), None),
    "a path of 100 kB": (head(method="GET", path="/" + "x" * 100_000), None),
    "a path that is no UTF-8": (head(method="GET", path="/%ff%fe"), [404]),
    "a zero byte in the path": (head(method="GET", path="/%00"), [404]),
    "a path that climbs": (head(method="GET", path="/..%2f..%2fetc/passwd"), [404]),
    "a whole URL as path": (head(method="GET", path="http://127.0.0.1/health"), None),
    "CONNECT": (head(method="CONNECT", path="example.com:443"), None),
    "OPTIONS *": (head(method="OPTIONS", path="*"), None),
    "a method that none has": (head(method="FETCH"), None),
    "HTTP/0.9": (b"GET /health\r\n", None),
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\n\r\n", [200]),
    "HTTP/3.7": (b"GET /health HTTP/3.7\r\nHost: a\r\n\r\n", None),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
    "a TLS hello": (bytes.fromhex("1603010200010001fc0303") + bytes(range(256)) * 2, None),
    "a WebSocket": (
        head("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", method="GET"),
        None,
    ),
    "HTTP/2 by upgrade": (head("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", method="GET", path="/"), None),
    "a wish to be told to go on": (head("Expect: 100-continue", f"Content-Length: {_LENGTH}") + state(), None),
    "1,000 empty lines first": (b"\r\n" * 1_000 + good(), None),
}


def converse(server: Server, sent: bytes, piece: int = 1 << 16, answers: int | None = None) -> list[int]:
    """Send bytes in pieces and return the statuses that come back until it hangs up.

    Our half stays open until that many ``answers`` have come, which are waited for; without a number, until it has
    said nothing for a moment: who closes its half with its last byte may be hung up on before it is answered.
    """
    with socket.create_connection(("127.0.0.1", server.port), timeout=_PATIENCE_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = bytearray()
        # It may hang up before it has heard everything.
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(sent), piece):
                connection.sendall(sent[start : start + piece])
        with contextlib.suppress(ConnectionError, TimeoutError):
            connection.settimeout(_MOMENT_S if answers is None else _PATIENCE_S)
            while answers is None or len(_statuses(received)) < answers:
                data = connection.recv(1 << 16)
                if not data:
                    break
                received += data
        connection.settimeout(_PATIENCE_S)
        with contextlib.suppress(OSError):  # it has hung up already
            connection.shutdown(socket.SHUT_WR)
        received += _until_closed(connection)
        return _statuses(received)


def nonsense(server: Server, mutations: int, seed: int, growth_mib: float) -> str:
    """The table, in pieces of every kind, and so many random changes to good requests: no crash, memory flat."""
    for name, (sent, expected) in NONSENSE.items():
        for piece in (1 << 16, 7):
            if piece == 7 and len(sent) > 2_000:
                continue
            found = converse(server, sent, piece)
            _require_documented(name, found)
            assert expected is None or found == expected, f"{name}: expected {expected}, got {found}"
    # What is loaded with the first page is loaded once.
    assert server.ask("GET", "/docs").status == server.ask("GET", "/openapi.json").status == 200
    for number in range(100):
        converse(server, mutated(random.Random(number)))
    server.require_sound()
    before, rng = server.resident(), random.Random(seed)
    answered: Counter[str] = Counter()
    for number in range(mutations):
        sent = mutated(rng)
        found = converse(server, sent)
        _require_documented(f"mutation {number} of seed {seed}, {sent[:300]!r}", found)
        answered.update(map(str, found or ["closed"]))
        if number % 100 == 0:
            assert server.predict(STATE).status == 200, f"after mutation {number} of seed {seed} it answers no more"
    server.require_sound()
    after = server.resident()
    assert after - before < growth_mib, f"{mutations:,} mutations took {before:.1f} MiB to {after:.1f} MiB"
    shown = ", ".join(f"{count:,} x {status}" for status, count in answered.most_common())
    return (
        f"{len(NONSENSE)} kinds of nonsense, {mutations:,} mutations ({shown}); memory {before:.1f} to {after:.1f} MiB"
    )


def mutated(rng: random.Random) -> bytes:
    """One or two good requests after a few random changes."""
    data = bytearray(rng.choice([good(), good() * 2, NONSENSE["a body in chunks"][0]]))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data))
        to = min(len(data), at + rng.randint(1, 24))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and len(data) > 40:
            del data[at:to]
        elif kind == 2:
            data[at:at] = data[at:to]
        elif kind == 3:
            data[at:at] = rng.choice([b"\r\n", b"\r\n\r\n", b"\x00", b": ", b" ", b"\xff", b"9" * 20, b"[" * 20])
        else:
            data[at:to] = rng.randbytes(to - at)
    return bytes(data)


def large(server: Server, mebibytes: int, most_mib: float) -> str:
    """A body of so many MiB, announced or in chunks, for each path: 413, and hardly any memory."""
    before = server.resident()
    for path in ("/predict", "/predict:batch", "/health", "/nothing"):
        for announced in (True, False):
            size = mebibytes << 20
            line = f"Content-Length: {size}" if announced else "Transfer-Encoding: chunked"
            found = _pour(server, head(line, path=path), size, in_chunks=not announced)
            wanted = {"/health": 405, "/nothing": 404}.get(path, 413)
            # [] where it hung up while we were still sending, and the reset overtook its answer.
            assert found in ([wanted], []), f"{mebibytes} MiB to {path}: expected {wanted}, got {found}"
    server.require_sound()
    most = server.most_resident()
    assert most - before < most_mib, f"bodies of {mebibytes} MiB took memory from {before:.1f} to {most:.1f} MiB"
    return f"bodies of {mebibytes} MiB refused; memory {before:.1f}, at most {most:.1f} MiB"


def _pour(server: Server, start: bytes, size: int, *, in_chunks: bool) -> list[int]:
    """Send ``start`` and zeros until ``size`` bytes or until it hangs up; its answers."""
    block = bytes(1 << 16)
    piece, sent = (b"10000\r\n" + block + b"\r\n" if in_chunks else block), 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=_PATIENCE_S) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(start)
            while sent < size:
                connection.sendall(piece)
                sent += len(block)
            connection.shutdown(socket.SHUT_WR)
        return _statuses(_until_closed(connection))


def slow(server: Server, connections: int, *, until_hung_up: bool) -> str:
    """So many senders of a byte now and then disturb nobody, and in the end it hangs up on them."""
    starts = [b"POST /pre", good()[:60], good()[:-40], chunked(b"fff\r\nhel")]
    waiting = [socket.create_connection(("127.0.0.1", server.port), timeout=60.0) for _ in range(connections)]
    began = time.perf_counter()
    try:
        for number, connection in enumerate(waiting):
            connection.sendall(starts[number % len(starts)])
        for _ in range(50):
            assert server.predict(STATE).status == 200, f"{connections} slow senders shut the others out"
        if not until_hung_up:
            return f"{connections} slow senders shut nobody out"
        while time.perf_counter() - began < 4.0:
            for connection in waiting:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b"0")
            time.sleep(0.5)
        answers = Counter(tuple(_statuses(_until_closed(connection))) or ("closed",) for connection in waiting)
        seconds = time.perf_counter() - began
    finally:
        for connection in waiting:
            connection.close()
    for found in answers:
        assert set(found) <= {408, 400, "closed"}, f"slow senders were answered {dict(answers)}"
    server.require_sound()
    return f"{connections} slow senders shut nobody out, and were all hung up on within {seconds:.0f} s"


def _until_closed(connection: socket.socket) -> bytes:
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(1 << 16):
            received += data
    return bytes(received)


def _statuses(received: bytes) -> list[int]:
    """Of the answers that are final."""
    return [status for status in map(int, _STATUS.findall(received)) if status != 100]


def _require_documented(name: str, found: list[int]) -> None:
    assert set(found) <= _DOCUMENTED, f"{name}: answered {found}"
