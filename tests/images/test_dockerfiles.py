"""What the Dockerfiles, the images' locks and .dockerignore say, before anything is built."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from layer3 import machine
from tests.fakes.docker import context, parse
from tests.test_packaging import closure

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = ["serving/Dockerfile", "components/Dockerfile"]
LOCKS = ["serving/requirements.lock", "components/requirements.lock"]


def lines_of(lock: str) -> list[str]:
    return (ROOT / lock).read_text().split("\n")[:-1]


def names_of(lock: str) -> set[str]:
    return {line.partition("==")[0] for line in lines_of(lock)}


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


def test_the_locks_hold_what_the_extras_need() -> None:
    served = names_of("serving/requirements.lock")
    assert closure("himari[serve,identity]") - {"himari"} <= served
    steps = names_of("components/requirements.lock")
    torch = {name for name in closure("himari[pipeline]") if name.startswith(("torch", "nvidia", "cuda", "triton"))}
    assert closure("himari[pipeline]") - torch - {"himari", "async-timeout"} <= steps
    assert not served & {"torch", "pandas", "kfp", "gcsfs", "aiohttp", "google-auth", "grpcio"}


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
    assert {f"{name}={value}" for name, value in machine.ONE_THREAD.items()} <= set(told["ENV"].split())
    assert json.loads(told["ENTRYPOINT"])[0] in ("python", "python3")
    assert 'org.opencontainers.image.revision="${COMMIT}"' in told["LABEL"]
    assert 'org.opencontainers.image.base.name="${BASE}"' in told["LABEL"]
    runs = [i.value for i in said if i.name == "RUN"]
    assert not any(" pip " in run and "--no-cache-dir" not in run for run in runs)
    assert not any("requirement /build" in run and "--no-deps" not in run for run in runs)


def test_torch_in_the_image_is_the_projects() -> None:
    def torch(file: str) -> set[str]:
        return set(re.findall(r"torch==[\w.]+", (ROOT / file).read_text()))

    assert torch("components/Dockerfile") == torch("pyproject.toml")
    assert len(torch("pyproject.toml")) == 1


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
