from __future__ import annotations

import socket

import pytest

from layer3.errors import ConfigurationError, SourceError
from layer3.net.address import Place, lookup


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "authority", "loopback"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1", 8080, "", "127.0.0.1:8080", True),
        ("http://[::1]:80/", "::1", 80, "", "[::1]", True),
        ("https://Abc.a.run.app/predict", "abc.a.run.app", 443, "/predict", "abc.a.run.app", False),
        ("https://h:8443/a/b//", "h", 8443, "/a/b", "h:8443", False),
        ("http://localhost", "localhost", 80, "", "localhost", True),
        ("http://10.0.0.1", "10.0.0.1", 80, "", "10.0.0.1", False),
    ],
)  # fmt: skip
def test_places(url: str, host: str, port: int, path: str, authority: str, loopback: bool) -> None:
    place = Place.parse(url)
    assert (place.host, place.port, place.path, place.authority) == (host, port, path, authority)
    assert place.is_loopback == loopback


@pytest.mark.parametrize(
    "url",
    [
        "", "h:80", "//h", "ftp://h", "http://", "http://h:port", "http://h:0", "http://h:70000", "http://[::1",
        "http://h h", "http://h\r\nX: y", "http://h/a b", "http://h/\r\n", "http://ü.de", "http://" + "a" * 64,
        "http://user:secret@h", "http://h?x=1", "http://h#x", "http://a..b", "http://h/ü",
    ],
)  # fmt: skip
def test_what_is_none(url: str) -> None:
    with pytest.raises(ConfigurationError, match="endpoint") as raised:
        Place.parse(url)
    if "secret" in url:
        assert "secret" not in str(raised.value)


def test_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lookup(Place.parse("http://127.0.0.1:81")) == ((int(socket.AF_INET), ("127.0.0.1", 81)),)

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(SourceError, match=r"cannot find nowhere\.invalid: Name or service not known"):
        lookup(Place.parse("http://nowhere.invalid"))
