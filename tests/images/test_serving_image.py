"""The serving image without Docker: what its Dockerfile says is done here, and what comes of it is started."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.docker import BuildError, Stage, build
from tests.fakes.issuer import AUDIENCE, EMAIL, claims, issuer, token
from tests.fakes.machine import machine
from tests.fakes.servers import binary, free_port, wait_for
from tests.images.arguments import ARGUMENTS
from tests.serving.support import make_policy

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024
NO_NETWORK = re.compile("No matching distribution|ConnectionError|Connection broken|name resolution|unreachable")


@pytest.fixture(scope="module")
def serving(place: Path, source: Path) -> Stage:
    """The serving image; every command of its Dockerfile has run, but for the one that fetches strip."""
    binary("strip")
    try:
        return build(ROOT / "serving/Dockerfile", source, place / "serving", ARGUMENTS, left_out=("apt-get",))
    except BuildError as error:
        if "CI" not in os.environ and NO_NETWORK.search(str(error)):
            pytest.skip("pip reaches no package index from here")
        raise


def as_another_user() -> list[str]:
    """The beginning of a command line that gives root up, where we are root and this machine allows it."""
    drop = ["setpriv", "--reuid=65532", "--regid=65532", "--clear-groups", "--no-new-privs"]
    if os.geteuid() or shutil.which("setpriv") is None:
        return []
    base = Path(sys.base_prefix, "bin", "python3")
    return drop if subprocess.run([*drop, base, "-c", ""], capture_output=True, check=False).returncode == 0 else []


def command(image: Stage, *arguments: str) -> list[str]:
    """The image's program as a shell would find it, with other arguments in place of its own where there are some."""
    program, *own = image.entrypoint
    found = shutil.which(program, path=image.inherited()["PATH"])
    assert found is not None
    assert found.startswith(str(image.root))
    return [*as_another_user(), found, *(arguments or own)]


def python(image: Stage, code: str) -> str:
    workdir = image.path(image.workdir)
    line = command(image, "-c", code)
    done = subprocess.run(line, cwd=workdir, env=image.inherited(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextlib.contextmanager
def started(image: Stage, **environment: str) -> Iterator[int]:
    """The image's own program, until the block ends with the signal that it wants; its port."""
    port = free_port()
    told = image.inherited() | {"PORT": str(port), "HOST": "127.0.0.1", "AUTH": "off"} | environment
    process = subprocess.Popen(
        command(image), cwd=image.path(image.workdir), env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        wait_for(lambda: process.poll() is not None or health(port)[0] == 200)
        assert process.poll() is None, process.communicate()[0].decode()
        yield port
        process.send_signal(signal.Signals[image.stop_signal])
        output = process.communicate(timeout=60)[0].decode()
        assert process.returncode == 0, output
    finally:
        process.kill()
        process.communicate()


def health(port: int) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except OSError:
        return 0, None
    finally:
        connection.close()


def files_below(*folders: Path) -> dict[str, tuple[int, int]]:
    found = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def mib(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*")) / MIB


def test_the_serving_image_is_small(serving: Stage) -> None:
    (packages,) = serving.path("/opt/venv/lib").glob("python3*/site-packages")
    assert 20 < mib(packages) <= 95
    assert mib(serving.path("/app")) < 10


def test_the_serving_image_holds_no_more_than_it_needs(serving: Stage) -> None:
    absent = [
        "torch",
        "pandas",
        "pyarrow",
        "kfp",
        "matplotlib",
        "gcsfs",
        "aiohttp",
        "grpc",
        "google",
        "pip",
        "setuptools",
        "tests",
        "components",
        "pipelines",
    ]
    code = f"import importlib.util as u; print([n for n in {absent} if u.find_spec(n)])"
    assert python(serving, code) == "[]"
    names = {path.name for path in serving.root.rglob("*")}
    assert not names & {"gcc", "cc", "ld", "strip", "pip", "pip3", ".cache", "tests", ".git", "Dockerfile"}
    assert serving.labels["org.opencontainers.image.revision"] == "c0ffee"


def test_its_byte_code_is_there_and_believed(serving: Stage) -> None:
    modules = list(serving.path("/app").rglob("*.py"))
    assert len(modules) > 50
    for path in modules:
        (compiled,) = (path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc")
        assert int.from_bytes(compiled.read_bytes()[4:8], "little") == 0b01, compiled
    code = "import serving.guard, layer3.contract as c; print(c.__cached__, c.__file__)"
    cached, file = python(serving, code).split()
    assert cached.startswith(str(serving.path("/app")))
    assert file.startswith(str(serving.path("/app")))


def test_it_serves_a_model_as_nobody_and_writes_nothing(serving: Stage, place: Path) -> None:
    policy = make_policy(place / "policy")
    before = files_below(serving.root, place / "policy")
    with started(serving, MODEL_URI=str(place / "policy")) as port:
        status, body = health(port)
        assert status == 200
        assert policy.model_id in json.dumps(body)
    assert files_below(serving.root, place / "policy") == before


def test_it_serves_a_model_from_a_bucket(serving: Stage, place: Path) -> None:
    policy = make_policy(place / "remote")
    (place / "machine").mkdir()
    with machine(place / "machine", "bucket") as cloud:
        for path in (place / "remote").iterdir():
            cloud.gcs.put("bucket", f"models/{policy.model_id}/{path.name}", path.read_bytes())
        told = {**cloud.environment, "MODEL_URI": f"gs://bucket/models/{policy.model_id}"}
        told["PYTHONPATH"] = f"{told['PYTHONPATH']}:{serving.inherited()['PYTHONPATH']}"
        with started(serving, **told) as port:
            assert policy.model_id in json.dumps(health(port)[1])
    assert cloud.gcs.authorizations == ["Bearer token-1"] * 2


def predict(port: int, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    body = json.dumps({"state": [0.0] * 16})
    connection.request("POST", "/predict", body, {"Content-Type": "application/json", **headers})
    status = connection.getresponse().status
    connection.close()
    return status


def test_it_knows_callers_by_keys_that_change_and_by_googles_tokens(serving: Stage, place: Path) -> None:
    """With the stripped cryptography of the image, and keys as a secret is mounted: a file that is replaced."""
    make_policy(place / "guarded")
    keys, replacement = place / "keys", place / "keys.new"
    keys.write_text("desk:the-old-key-0123456789\n")
    replacement.write_text("desk:the-new-key-0123456789\n")
    with issuer("first") as google:
        told = {"AUTH": "key,id-token", "API_KEYS_FILE": str(keys), "ID_TOKEN_CERTS_URL": google.url}
        told |= {"MODEL_URI": str(place / "guarded"), "ID_TOKEN_AUDIENCE": AUDIENCE, "ID_TOKEN_EMAILS": EMAIL}
        with started(serving, **told) as port:
            good, late = token(claims(time.time())).decode(), token(claims(time.time() - 4000)).decode()
            wait_for(lambda: predict(port, Authorization=good) == 200)
            assert predict(port) == 401
            assert predict(port, Authorization=late) == 401
            assert predict(port, **{"X-API-Key": "the-old-key-0123456789"}) == 200
            assert predict(port, **{"X-API-Key": "the-new-key-0123456789"}) == 401
            replacement.replace(keys)
            wait_for(lambda: predict(port, **{"X-API-Key": "the-new-key-0123456789"}) == 200)
            assert predict(port, **{"X-API-Key": "the-old-key-0123456789"}) == 401
        assert google.requests == 1


def test_it_does_not_start_without_being_told_who_may_call(serving: Stage) -> None:
    done = subprocess.run(
        command(serving),
        cwd=serving.path(serving.workdir),
        env=serving.inherited() | {"MODEL_URI": "nowhere"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "AUTH=off" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_user_is_what_it_ran_as(serving: Stage) -> None:
    if not as_another_user():
        pytest.skip("these tests are not run by root, or this machine does not let root give itself up")
    assert python(serving, "import os; print(os.getuid(), os.access('/root/x', os.W_OK))") == "65532 False"
    code = f"import os; print(os.access({str(serving.path('/app'))!r}, os.W_OK))"
    assert python(serving, code) == "False"
