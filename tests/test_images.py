"""Both images without Docker: what their Dockerfiles say is done on this machine, and what comes of it is started."""

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
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from compile import compile_pipelines
from tests.fakes.docker import BuildError, Stage, build, context, parse
from tests.fakes.gcs import FakeGcs
from tests.fakes.issuer import AUDIENCE, EMAIL, claims, issuer, token
from tests.fakes.servers import binary, free_port, wait_for
from tests.serving.support import make_policy
from tests.test_packaging import closure

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = ["serving/Dockerfile", "components/Dockerfile"]
LOCKS = ["serving/requirements.lock", "serving/requirements-gcs.lock", "components/requirements.lock"]
ARGUMENTS = {"BASE": "python:3.11@sha256:" + "0" * 64, "COMMIT": "c0ffee"}
MIB = 1024 * 1024
NO_NETWORK = re.compile("No matching distribution|ConnectionError|Connection broken|name resolution|unreachable")


def lines_of(lock: str) -> list[str]:
    return (ROOT / lock).read_text().split("\n")[:-1]


def names_of(*locks: str) -> set[str]:
    return {line.partition("==")[0] for lock in locks for line in lines_of(lock)}


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_hadolint_finds_nothing(dockerfile: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, dockerfile], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


@pytest.mark.parametrize("lock", LOCKS)
def test_an_images_lock_is_part_of_the_projects(lock: str) -> None:
    wanted = [Requirement(line) for line in lines_of("requirements.lock")]
    here = {"python_full_version": "3.11.9", "python_version": "3.11", "sys_platform": "linux"}
    locked = {f"{r.name}{r.specifier}" for r in wanted if r.marker is None or r.marker.evaluate(here)}
    assert lines_of(lock)
    assert set(lines_of(lock)) <= locked


def test_the_locks_hold_what_the_extras_need_and_nothing_twice() -> None:
    served, gcs = names_of("serving/requirements.lock"), names_of("serving/requirements-gcs.lock")
    assert not served & gcs
    assert closure("himari[serve,identity]") - {"himari"} <= served
    assert closure("himari[serve,identity,gcs]") - {"himari", "async-timeout"} <= served | gcs
    steps = names_of("components/requirements.lock")
    torch = {name for name in closure("himari[pipeline]") if name.startswith(("torch", "nvidia", "cuda", "triton"))}
    assert closure("himari[pipeline]") - torch - {"himari", "async-timeout"} <= steps
    assert not served & {"torch", "pandas", "kfp"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_what_a_dockerfile_must_say(dockerfile: str) -> None:
    said = parse((ROOT / dockerfile).read_text())
    first = next(number for number, instruction in enumerate(said) if instruction.name == "FROM")
    # No default: what is not told which base to take, and by which digest, cannot be built.
    assert [(i.name, i.value) for i in said[:first]] == [("ARG", "BASE")]
    assert [i.value for i in said if i.name == "FROM"] == ["${BASE} AS build", "${BASE}"]
    last = [i for number, i in enumerate(said) if number > max(n for n, f in enumerate(said) if f.name == "FROM")]
    told = {i.name: i.value for i in last}
    assert "RUN" not in told
    assert all(i.value.startswith("--from=build ") for i in last if i.name == "COPY")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", told["USER"])
    assert told["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(told["ENTRYPOINT"])[0] in ("python", "python3")
    assert 'org.opencontainers.image.revision="${COMMIT}"' in told["LABEL"]
    assert 'org.opencontainers.image.base.name="${BASE}"' in told["LABEL"]
    runs = [i.value for i in said if i.name == "RUN"]
    assert not any(" pip " in run and "--no-cache-dir" not in run for run in runs)
    assert not any("requirement /build" in run and "--no-deps" not in run for run in runs)


def test_torch_in_the_image_is_the_projects() -> None:
    assert "torch==2.13.0" in (ROOT / "components/Dockerfile").read_text()
    assert '"torch==2.13.0"' in (ROOT / "pyproject.toml").read_text()


def test_a_build_sees_the_images_own_parts_and_nothing_else(tmp_path: Path) -> None:
    shutil.copy2(ROOT / ".dockerignore", tmp_path)
    let_in = {
        "components/train.py",
        "layer3/agent/policy.py",
        "layer3/backtest/page.html.j2",
        "serving/requirements.lock",
    }
    shut_out = {
        ".git/config",
        ".env",
        "key.json",
        "build/images.json",
        "tests/serving/support.py",
        "config/cloud.yaml",
        "layer3/.env",
        "layer3/__pycache__/types.cpython-311.pyc",
        "serving/deep/.mypy_cache/x.json",
        "serving/stale.pyc",
        "serving/Dockerfile",
        "layer3_of_another/x.py",
    }
    for name in let_in | shut_out:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert {str(path) for path in context(tmp_path)} == let_in


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that another user may read: pytest's own are for this one only."""
    folder = Path(tempfile.mkdtemp(prefix="himari-images-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def source(place: Path) -> Path:
    """What Docker would send to a build."""
    for path in context(ROOT):
        (place / "context" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, place / "context" / path)
    return place / "context"


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
    assert 20 < mib(serving.path("/opt/gcs")) <= 75
    assert mib(serving.path("/app")) < 10


def test_the_serving_image_holds_no_more_than_it_needs(serving: Stage) -> None:
    absent = [
        "torch",
        "pandas",
        "pyarrow",
        "kfp",
        "matplotlib",
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
    with FakeGcs("bucket") as gcs:
        for path in (place / "remote").iterdir():
            gcs.put("bucket", f"models/{policy.model_id}/{path.name}", path.read_bytes())
        model = f"gs://bucket/models/{policy.model_id}"
        with started(serving, MODEL_URI=model, STORAGE_EMULATOR_HOST=gcs.url) as port:
            assert policy.model_id in json.dumps(health(port)[1])


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


@pytest.fixture(scope="module")
def components(place: Path, source: Path) -> Stage:
    """The components' image but for its packages: installing torch is not for every test run."""
    dockerfile = place / "Dockerfile.components"
    said = (ROOT / "components/Dockerfile").read_text()
    dockerfile.write_text(said.replace("COPY --from=build /opt/venv /opt/venv\n", ""))
    return build(dockerfile, source, place / "components", ARGUMENTS, left_out=("python -m venv", "/opt/venv/bin"))


def in_components(image: Stage, *arguments: str, cwd: Path | None = None) -> str:
    environment = image.inherited() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd or image.path(image.workdir),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_step_runs_from_the_components_image_by_the_pipelines_own_command(components: Stage, tmp_path: Path) -> None:
    (path, *_) = compile_pipelines(tmp_path / "spec")
    container = yaml.safe_load(path.read_text())["deploymentSpec"]["executors"]["exec-allot"]["container"]
    assert container["command"] == components.entrypoint
    (tmp_path / "features").touch()
    features = {"name": "features", "type": {"schemaTitle": "system.Dataset"}, "uri": str(tmp_path / "features")}
    given = {
        "inputs": {
            "parameterValues": {"folds": 0, "kind": "rolling", "groups": 2},
            "artifacts": {"features": {"artifacts": [features]}},
        },
        "outputs": {
            "outputFile": str(tmp_path / "result.json"),
            "parameters": {"Output": {"outputFile": str(tmp_path / "out")}},
        },
    }
    arguments = [json.dumps(given) if word == "{{$}}" else word for word in container["args"]]
    said = in_components(components, *container["command"][1:], *arguments)
    assert "No walk-forward was asked for" in said
    assert json.loads((tmp_path / "result.json").read_text())["parameterValues"] == {"Output": [[]]}


def test_every_step_is_found_in_the_components_image(components: Stage) -> None:
    code = (
        "import sys, configparser, pathlib\n"
        "from kfp.dsl import base_component, component_factory\n"
        "from importlib import import_module\n"
        "steps = configparser.ConfigParser(); steps.read('kfp_config.ini')\n"
        "for name, file in steps['Components'].items():\n"
        "    module = import_module('components.' + pathlib.Path(file).stem)\n"
        "    assert hasattr(module, name), name\n"
        "    print(name, module.__file__)\n"
        "import layer3.workflow, serving.release\n"
        "print('rest', layer3.workflow.__file__); print('rest', serving.release.__file__)\n"
    )
    found = [line.split() for line in in_components(components, "-c", code).splitlines()]
    assert len(found) > 10
    assert {"train", "deploy", "rest"} <= {name for name, _ in found}
    assert all(file.startswith(str(components.path("/app"))) for _, file in found)


def test_no_step_needs_the_rest_of_the_project(components: Stage) -> None:
    assert sorted(path.name for path in components.path("/app").iterdir()) == ["components", "layer3", "serving"]
    imports = re.compile(r"^\s*(?:from|import) (pipelines|tests|bench|compile)\b", re.MULTILINE)
    assert [path for path in components.path("/app").rglob("*.py") if imports.search(path.read_text())] == []


def told_by(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def cloud_build(workspace: Path, base: str, severities: str = "HIGH\nLOW", **changes: str) -> tuple[int, str]:
    """Run cloudbuild.yaml's steps in turn with a docker and a gcloud that write down what they are told."""
    for name in ("cloudbuild.yaml", "scripts", "serving/Dockerfile", "components/Dockerfile"):
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, workspace / name)
    (workspace / "components/base_image.txt").write_text(base + "\n")
    log, tools = workspace / "told", workspace / "tools"
    tools.mkdir()
    digests = {"components": "1" * 64, "serving": "2" * 64}
    for tool in ("docker", "gcloud"):
        (tools / tool).write_text(
            f"#!{sys.executable}\n"
            "import json, sys\n"
            f"told = [{tool!r}, *sys.argv[1:]]\n"
            f"open({str(log)!r}, 'a').write(json.dumps(told) + '\\n')\n"
            "if 'scan' in told: print('projects/p/locations/us/scans/1')\n"
            f"if '--format=value(vulnerability.effectiveSeverity)' in told: print({severities!r})\n"
            "if 'inspect' in told:\n"
            "    name = told[-1].rpartition(':')[0]\n"
            f"    print(name + '@sha256:' + {digests!r}[name.rpartition('/')[2]])\n"
            f"sys.exit(1 if {changes.get('fails', 'nothing')!r} in told else 0)\n"
        )
        (tools / tool).chmod(0o755)
    said = yaml.safe_load((workspace / "cloudbuild.yaml").read_text())
    values = said["substitutions"] | {
        "_COMMIT": "c0ffee",
        "_REPOSITORY": changes.get("repository", "r.pkg.dev/p/himari"),
        "_STORE": "gs://store",
    }
    order = [step["id"] for step in said["steps"]]
    environment = os.environ | {"PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for number, step in enumerate(said["steps"]):
        assert set(step.get("waitFor", [])) <= set(order[:number])
        words = (re.sub(r"\$(_\w+)", lambda m: values[m[1]], word) for word in step["args"])
        line = [step["entrypoint"], *(word.replace("$$", "$") for word in words)]
        done = subprocess.run(line, cwd=workspace, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return done.returncode, done.stdout + done.stderr
    return 0, ""


BASE = "python:3.11-slim-bookworm@sha256:" + "a" * 64


def test_a_build_scans_pushes_and_says_which_images_it_made(tmp_path: Path) -> None:
    assert cloud_build(tmp_path, BASE) == (0, "")
    told = told_by(tmp_path / "told")
    built = [words for words in told if words[:2] == ["docker", "build"]]
    assert [words[words.index("--file") + 1] for words in built] == ["components/Dockerfile", "serving/Dockerfile"]
    assert all(f"BASE={BASE}" in words and "COMMIT=c0ffee" in words for words in built)
    pushed = [words[2] for words in told if words[:2] == ["docker", "push"]]
    assert pushed == ["r.pkg.dev/p/himari/components:c0ffee", "r.pkg.dev/p/himari/serving:c0ffee"]
    assert [words for words in told if words[1:3] == ["storage", "cp"]] == [
        ["gcloud", "storage", "cp", "build/images.json", "gs://store/images/c0ffee.json"]
    ]
    images = json.loads((tmp_path / "build/images.json").read_text())
    assert images == {
        "components": "r.pkg.dev/p/himari/components@sha256:" + "1" * 64,
        "serving": "r.pkg.dev/p/himari/serving@sha256:" + "2" * 64,
    }
    compiled = compile_pipelines(tmp_path / "out", images["components"])
    assert images["components"] in compiled[0].read_text()


@pytest.mark.parametrize("severities", ["CRITICAL", "LOW\nCRITICAL\nHIGH"])
def test_a_critical_fault_is_not_pushed(tmp_path: Path, severities: str) -> None:
    status, said = cloud_build(tmp_path, BASE, severities)
    assert status == 1
    assert "has a critical fault" in said
    assert not [words for words in told_by(tmp_path / "told") if "push" in words]


@pytest.mark.parametrize("fails", ["scan", "list-vulnerabilities"])
def test_what_was_not_scanned_is_not_pushed(tmp_path: Path, fails: str) -> None:
    assert cloud_build(tmp_path, BASE, fails=fails)[0] == 1
    assert not [words for words in told_by(tmp_path / "told") if "push" in words]


@pytest.mark.parametrize("base", ["python:3.11-slim-bookworm", "", "python@sha256:" + "a" * 63, "python:3.11@latest"])
def test_a_base_without_a_digest_is_not_built_on(tmp_path: Path, base: str) -> None:
    status, said = cloud_build(tmp_path, base)
    assert status == 2
    assert "run make pin-images" in said
    assert told_by(tmp_path / "told") == []


def test_a_build_that_is_not_told_where_to_is_not_begun(tmp_path: Path) -> None:
    status, said = cloud_build(tmp_path, BASE, repository="")
    assert status == 2
    assert "as make images does" in said
    assert told_by(tmp_path / "told") == []


def test_make_images_builds_the_commit_that_is_checked_out_and_no_other(tmp_path: Path) -> None:
    shutil.copy2(ROOT / "Makefile", tmp_path)
    (tmp_path / "gcloud").write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> told\n')
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / ".gitignore").write_text("told\nbuild\n")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "GIT_"))}
    environment = inherited | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    identity = ["-c", "user.name=tests", "-c", "user.email=tests@example.com"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "all"]):
        assert run("git", *words).returncode == 0
    commit = run("git", "rev-parse", "HEAD").stdout.strip()
    command = ["make", "images", "REPOSITORY=r.pkg.dev/p/himari", "STORE=gs://store/a path"]
    assert run(*command).returncode == 0
    told = (tmp_path / "told").read_text().splitlines()
    assert f"_COMMIT={commit},_REPOSITORY=r.pkg.dev/p/himari,_STORE=gs://store/a path" in told
    assert told[-2:] == [f"gs://store/a path/images/{commit}.json", "build/images.json"]
    (tmp_path / "new.py").touch()
    refused = run(*command)
    assert refused.returncode == 2
    assert "commit first" in refused.stdout + refused.stderr
    assert (tmp_path / "told").read_text().splitlines() == told
