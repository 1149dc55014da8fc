"""A machine on Google Cloud: ``storage.googleapis.com`` over TLS, and the metadata server that gives its tokens.

What a process there is told lies in ``environment``. It asks the real host's name and checks a certificate for it; that
the name leads to loopback is arranged before the process's own code begins.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fakes.certificates import certificate_of
from tests.fakes.gcs import FakeGcs
from tests.fakes.metadata import Metadata

__all__ = ["Machine", "machine"]

_HOST: Final = "storage.googleapis.com"
_LEADS_HERE: Final = """
import socket
_real = socket.getaddrinfo
def _getaddrinfo(host, port, *more, **named):
    return _real("127.0.0.1", {port}, *more, **named) if host == {host!r} else _real(host, port, *more, **named)
socket.getaddrinfo = _getaddrinfo
"""


@dataclass(frozen=True)
class Machine:
    gcs: FakeGcs
    metadata: Metadata
    environment: Mapping[str, str]


@contextmanager
def machine(folder: Path, *buckets: str) -> Iterator[Machine]:
    """Such a machine, whose certificate and settings lie in ``folder``, while the block runs."""
    certificate = folder / "both.pem"
    certificate.write_bytes(certificate_of(_HOST))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    # Beside those that every machine trusts: reading them takes time and memory, too.
    known = Path(ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt")
    trusted = folder / "trusted.pem"
    trusted.write_bytes(certificate.read_bytes() + (known.read_bytes() if known.exists() else b""))
    with FakeGcs(*buckets, tls=tls) as gcs, Metadata() as metadata:
        gcs.tokens = metadata.given
        port = gcs.url.rpartition(":")[2]
        (folder / "sitecustomize.py").write_text(_LEADS_HERE.format(port=port, host=_HOST))
        yield Machine(
            gcs,
            metadata,
            {
                "GCE_METADATA_HOST": metadata.address,
                "SSL_CERT_FILE": str(trusted),
                "PYTHONPATH": str(folder),
                "CLOUDSDK_CONFIG": str(folder),
                "GOOGLE_APPLICATION_CREDENTIALS": "",
                "STORAGE_EMULATOR_HOST": "",
            },
        )
