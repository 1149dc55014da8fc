"""Where a service is: a URL taken apart and checked, and the addresses of its host."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from layer3.errors import ConfigurationError, SourceError
from layer3.net.transport import Address

__all__ = ["Place", "lookup"]

_PORTS: Final = {"http": 80, "https": 443}
_PRINTABLE: Final = re.compile(r"[!-~]+")
_NAME: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_PATH: Final = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*")


@dataclass(frozen=True, slots=True)
class Place:
    """A checked ``http://`` or ``https://`` URL; ``path`` has no slash at its end."""

    url: str
    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Place:
        """Take ``url`` apart.

        Raises
        ------
        ConfigurationError : it is no such URL, or carries a user, a query or a fragment
        """
        if "@" in url:
            # Not shown: it may be a password.
            raise ConfigurationError("the endpoint carries a user; give scheme, host and path")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigurationError(f"endpoint {url!r} is not a URL: {error}") from error
        if parts.scheme not in _PORTS or not host:
            raise ConfigurationError(f"endpoint {url!r} must look like http://host:port or https://host")
        # Of the whole, because taking it apart drops line ends without a word.
        if not _PRINTABLE.fullmatch(url) or port == 0:
            raise ConfigurationError(f"endpoint {url!r} is not a URL: it holds a character or a port that none has")
        if not (_is_literal(host) or _NAME.fullmatch(host)) or not _PATH.fullmatch(parts.path):
            raise ConfigurationError(f"endpoint {url!r} is not a URL: its host or its path is none")
        if parts.query or parts.fragment:
            raise ConfigurationError(f"endpoint {url!r} has a query or a fragment; give scheme, host and path")
        return cls(url, parts.scheme, host, port or _PORTS[parts.scheme], parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """For the Host header: RFC 9110, section 7.2."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_literal(self) -> bool:
        """Whether the host is an address, so that nobody need be asked."""
        return _is_literal(self.host)

    @property
    def is_loopback(self) -> bool:
        """Whether what is sent stays on this machine."""
        return self.host == "localhost" or (self.is_literal and ipaddress.ip_address(self.host).is_loopback)


def lookup(place: Place) -> tuple[Address, ...]:
    """The addresses of its host, in the system's order; this waits as long as the system does.

    Raises
    ------
    SourceError : there are none
    """
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SourceError(f"cannot find {place.host}: {error.strerror}") from error
    return tuple((int(family), address) for family, _, _, _, address in found)


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
