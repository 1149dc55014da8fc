"""The build of both images: cloudbuild.yaml's own steps, with a docker and a gcloud that only write down."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from compile import compile_pipelines

ROOT = Path(__file__).resolve().parents[2]


BASE = "python:3.11-slim-bookworm@sha256:" + "a" * 64


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
    assert told[told.index("--gcs-source-staging-dir") + 1] == "gs://store/a path/build-source"
    assert f"_COMMIT={commit},_REPOSITORY=r.pkg.dev/p/himari,_STORE=gs://store/a path" in told
    assert told[-2:] == [f"gs://store/a path/images/{commit}.json", "build/images.json"]
    assert "--service-account" not in told
    assert run(*command, "BUILDER=projects/p/serviceAccounts/ci@p").returncode == 0
    told = (tmp_path / "told").read_text().splitlines()
    assert told[told.index("--service-account") + 1] == "projects/p/serviceAccounts/ci@p"
    (tmp_path / "new.py").touch()
    refused = run(*command)
    assert refused.returncode == 2
    assert "commit first" in refused.stdout + refused.stderr
    assert (tmp_path / "told").read_text().splitlines() == told
