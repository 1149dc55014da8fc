"""The scripts behind make pin-images, make images and make audit."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.fakes.servers import free_port
from tests.fakes.web import Handler, answering

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = b'{"schemaVersion": 2, "manifests": []}'
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


images, audit = script("images"), script("audit")


@dataclass
class Registry:
    """A registry of this machine that gives manifests to whoever fetched a token first, as Docker Hub does."""

    host: str = ""
    announced: str = DIGEST
    realm: str = ""
    status: int = 200
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def registry() -> Iterator[Registry]:
    state = Registry()

    class Images(Handler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            address = urlsplit(self.path)
            if address.path == "/token":
                query = parse_qs(address.query)
                assert query == {"service": ["registry"], "scope": ["repository:library/python:pull"]}
                self.reply(200, json.dumps({"token": "let-me-in"}).encode())
            elif self.headers["Authorization"] != "Bearer let-me-in":
                wanted = 'Bearer realm="{}",service="registry",scope="repository:library/python:pull"'
                self.reply(401, b"{}", {"WWW-Authenticate": wanted.format(state.realm)})
            elif address.path != "/v2/library/python/manifests/3.11-slim":
                self.reply(404, b"{}")
            else:
                assert "application/vnd.oci.image.index.v1+json" in self.headers["Accept"]
                self.reply(state.status, MANIFEST, {"Docker-Content-Digest": state.announced})

    with answering(Images) as url:
        state.host = url.removeprefix("http://")
        state.realm = f"{url}/token"
        yield state


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that names the base; the real one is left alone."""
    monkeypatch.setattr(images, "BASE", tmp_path / "base_image.txt")
    monkeypatch.setattr(images, "IMAGES", tmp_path / "build" / "images.json")
    return tmp_path / "base_image.txt"


def test_pin_writes_the_digest_that_the_tag_has_now(registry: Registry, base: Path, capsys: Any) -> None:
    tag = f"{registry.host}/library/python:3.11-slim"
    for before in (tag, f"{tag}@sha256:{'0' * 64}"):
        base.write_text(before + "\n")
        assert images.main(["pin"]) == 0
        assert base.read_text() == f"{tag}@{DIGEST}\n"
    assert images.main(["base"]) == 0
    assert capsys.readouterr().out.split() == [f"{tag}@{DIGEST}"] * 3


def test_pin_changes_nothing_where_the_registry_lies(registry: Registry, base: Path, capsys: Any) -> None:
    tag = f"{registry.host}/library/python:3.11-slim"
    base.write_text(tag)
    registry.announced = f"sha256:{'1' * 64}"
    assert images.main(["pin"]) == 2
    assert "has the digest" in capsys.readouterr().err
    registry.announced, registry.realm = DIGEST, "file:///etc/passwd"
    assert images.main(["pin"]) == 2
    assert "sends us to" in capsys.readouterr().err
    assert base.read_text() == tag


def test_pin_says_that_the_registry_does_not_answer(registry: Registry, base: Path, capsys: Any) -> None:
    base.write_text(f"{registry.host}/library/python:3.11-slim")
    registry.status = 503
    assert images.main(["pin"]) == 1
    base.write_text(f"{registry.host}/library/python:no-such-tag")
    assert images.main(["pin"]) == 1
    base.write_text(f"127.0.0.1:{free_port()}/library/python:3.11-slim")
    assert images.main(["pin"]) == 1
    assert capsys.readouterr().err.count("where the registry can be reached") == 3


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("python:3.11", ("registry-1.docker.io", "library/python", "3.11")),
        ("nvidia/cuda:13.0", ("registry-1.docker.io", "nvidia/cuda", "13.0")),
        ("gcr.io/a/b:c", ("gcr.io", "a/b", "c")),
        ("localhost:5000/a:b", ("localhost:5000", "a", "b")),
    ],
)
def test_where_an_image_is_kept(reference: str, parts: tuple[str, str, str]) -> None:
    assert images._parts(reference) == parts


@pytest.mark.parametrize("reference", ["python", "", "gcr.io:443/python", ":3.11"])
def test_an_image_without_a_tag_is_refused(base: Path, reference: str) -> None:
    base.write_text(reference)
    assert images.main(["pin"]) == 2


def test_record_takes_digests_only(base: Path) -> None:
    good = "r.pkg.dev/p/x/components@sha256:" + "1" * 64
    assert images.main(["record", good, "r.pkg.dev/p/x/serving:latest"]) == 2
    assert not images.IMAGES.exists()
    assert images.main(["record", good, good]) == 0
    assert json.loads(images.IMAGES.read_text()) == {"components": good, "serving": good}


@pytest.mark.parametrize("arguments", [[], ["pin", "x"], ["record", "x"], ["forget"]])
def test_what_it_does_not_know_it_refuses(base: Path, arguments: list[str]) -> None:
    base.write_text("python:3.11")
    assert images.main(arguments) == 2


def test_the_base_of_the_images_is_a_tag_with_or_without_its_digest() -> None:
    reference = (ROOT / "components" / "base_image.txt").read_text().strip()
    assert images._parts(reference.partition("@")[0])[:2] == ("registry-1.docker.io", "library/python")
    assert "@" not in reference or images.pinned(reference)


def report(*packages: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": list(packages), "fixes": []}


GOOD = {"name": "good", "version": "1", "vulns": []}
BAD = {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": []}]}
UNKNOWN = {"name": "unknown", "skip_reason": "not found on PyPI"}


def test_an_audit_says_what_it_knows_and_what_it_does_not() -> None:
    assert audit.verdict(report(GOOD, GOOD)) == (0, ["2 packages, none with a known fault"])
    assert audit.verdict(report(GOOD, BAD)) == (1, ["bad 2: PYSEC-1, mended in 3"])
    status, lines = audit.verdict(report(GOOD, UNKNOWN))
    assert status == 2
    assert "1 of 2 packages could not be looked up (unknown, ...)" in lines[0]
    assert audit.verdict(report(BAD, UNKNOWN))[0] == 1


def test_an_audit_that_finds_no_service_does_not_pass(tmp_path: Path) -> None:
    """pip-audit itself takes a package that it could not look up for a good one."""
    (tmp_path / "lock").write_text("no-such-package-of-himari==1.0\n")
    environment = {"PATH": "/usr/bin:/bin", "HTTPS_PROXY": f"http://127.0.0.1:{free_port()}", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "audit.py", tmp_path / "lock"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "looked up" in done.stderr
    assert "Traceback" not in done.stderr
