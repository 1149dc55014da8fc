"""What docs/serving.md shows is what runs, and its tables are the server's own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.load.servers import free_port
from serving import overload, protocol, state_input
from tests.fakes.issuer import claims, issuer, token
from tests.fakes.processes import group
from tests.fakes.web import Handler, answering
from tests.serving.proof.load import Store
from tests.serving.proof.server import ROOT, Server, serving

DOCS = (ROOT / "docs" / "serving.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of that language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)


START, WHERE, *CURLS, PROBE = blocks("sh")
SHOWN = [json.loads(text) for text in blocks("json")]
NUMBERS = r"[\d.e-]+ [\d.e-]+ 20260101-\w{12}"


@dataclass(frozen=True)
class Desk:
    """A folder as a user's clone is, with a server that was started there as the docs say."""

    folder: Path
    environment: dict[str, str]
    port: int

    def run(self, *command: str) -> str:
        """What a command of the docs prints."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        return done.stdout

    def shell(self, text: str) -> str:
        """What a block prints in the shell in which URL and API_KEY were set as the docs say."""
        where = WHERE.replace(":8080", f":{self.port}")
        return self.run("bash", "-euo", "pipefail", "-c", f"{where}\n{text}")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    # Newer than what it is made from, so that make does not install anything.
    (folder / ".venv" / ".ready").touch()
    store = Store(folder)
    port = free_port()
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "AUTH", "API_KEY", "ID_TOKEN"))
    }
    environment = {**inherited, "PYTHONPATH": str(ROOT), "MAKEFLAGS": f"PORT={port} STORE={store.root}"}
    with (
        (folder / "server.log").open("wb") as log,
        group(
            ["bash", "-euo", "pipefail", "-c", START],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        Server(process, port, folder / "server.log", environment).wait()
        yield Desk(folder, environment, port)


def test_a_single_state_by_curl(desk: Desk) -> None:
    answer = json.loads(desk.shell(CURLS[0]))
    assert answer.keys() == SHOWN[0].keys()
    assert 0.0 <= answer["position_multiplier"] <= 2.0


def test_many_states_by_curl(desk: Desk) -> None:
    answer = json.loads(desk.shell(CURLS[1]))
    assert answer.keys() == SHOWN[1].keys()
    assert len(answer["position_multipliers"]) == len(answer["confidences"]) == 2


def test_status_by_curl(desk: Desk) -> None:
    (status,) = CURLS[2:]
    assert json.loads(desk.shell(status))["model"]["released_at"] == "2026-02-01T00:00:00+00:00"


def test_the_probe(desk: Desk) -> None:
    assert "answered within layer 3's 150 ms" in desk.shell(PROBE)


def test_python(desk: Desk) -> None:
    (code,) = blocks("python")
    lines = desk.shell(f".venv/bin/python -W error -c '{code}'").splitlines()
    assert len(lines) == 3
    assert len(set(lines)) == 1
    assert re.fullmatch(NUMBERS, lines[0])


def test_javascript(desk: Desk) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    (code,) = blocks("javascript")
    (desk.folder / "example.mjs").write_text(code)
    assert re.fullmatch(NUMBERS, desk.shell("node example.mjs").strip())


def test_layer_3_with_tokens_of_the_metadata_server(tmp_path: Path) -> None:
    (code,) = blocks("python id-token")
    store = Store(tmp_path)

    class Metadata(Handler):
        def do_GET(self) -> None:
            audience = re.search(r"audience=([^&]*)", self.path)
            assert audience is not None
            said = claims(time.time(), aud=audience[1].replace("%3A", ":").replace("%2F", "/"))
            self.reply(200, token(said).removeprefix(b"Bearer "), {"Metadata-Flavor": "Google"})

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with issuer("first") as google, answering(Metadata) as metadata:
        tokens = {"AUTH": "id-token", "ID_TOKEN_AUDIENCE": url, "ID_TOKEN_CERTS_URL": google.url, "PORT": str(port)}
        with serving(store.channel, tmp_path, **tokens):
            mine = {"URL": url, "GCE_METADATA_HOST": metadata.removeprefix("http://"), "PYTHONPATH": str(ROOT)}
            said = Desk(tmp_path, {**os.environ, **mine}, port).run(sys.executable, "-W", "error", "-c", code)
    assert re.fullmatch(NUMBERS, said.strip())


def test_every_setting_is_in_the_table_and_no_other() -> None:
    table = DOCS.partition("## Settings")[2].partition("## ")[0]
    shown = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    sources = "".join((ROOT / "serving" / name).read_text() for name in ("settings.py", "guard.py"))
    read = set(re.findall(r'"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*)"', sources))
    # The one is Cloud Run's own, the other the name of a constant.
    assert shown == read - {"K_SERVICE", "EXIT_WITH_STDIN"}


def test_the_statuses_are_those_of_the_openapi_document(desk: Desk) -> None:
    table = DOCS.partition("## Errors")[2].partition("## ")[0]
    shown = {status for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for status in row.split(", ")}
    described = json.loads(desk.shell('curl --silent "$URL/openapi.json"'))
    documented = {
        status
        for path in described["paths"].values()
        for operation in path.values()
        for status in operation["responses"]
    }
    # What is not there has no place in a document of what is.
    assert shown == documented - {"200"} | {"404", "405"}


def test_the_paths_are_those_of_the_openapi_document(desk: Desk) -> None:
    table = DOCS.partition("## Paths")[2].partition("## ")[0]
    shown = {
        path for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for path in re.findall(r"(/[\w:.]*)`", row)
    }
    assert shown == set(json.loads(desk.shell('curl --silent "$URL/openapi.json"'))["paths"])


def test_the_limits_are_the_servers() -> None:
    table = DOCS.partition("## Limits")[2].partition("## ")[0]
    for limit in (state_input.MAX_BODY, state_input.MAX_BATCH_BODY, protocol.MAX_HEADER):
        assert f"{limit:,} bytes" in table
    assert f"{state_input.MAX_STATES} states" in table
    assert {protocol.HEADER_SECONDS, overload.BODY_SECONDS} == {10.0}
    assert f"{protocol.IDLE_SECONDS:.0f} s" in table
