"""The workflows' own commands, run in a clone with a gcloud and a make that only write down what they are told."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
VARS = {
    "PROJECT": "some-project",
    "REGION": "us-central1",
    "STORE": "gs://store",
    "IMAGES": "r.pkg.dev/p/himari",
    "CI_SERVICE_ACCOUNT": "ci@some-project.iam.gserviceaccount.com",
    "CLOUD_YAML": "project: some-project\nstore: gs://store",
}
BUILD = [
    "make",
    "images",
    "REPOSITORY=r.pkg.dev/p/himari",
    "STORE=gs://store",
    "BUILDER=projects/some-project/serviceAccounts/ci@some-project.iam.gserviceaccount.com",
]


class Runner:
    """A clone of this commit; ``images`` is whether a build of it has left images in the store."""

    def __init__(self, folder: Path, *, images: bool) -> None:
        self.folder, self.log = folder / "clone", folder / "told"
        tools = folder / "tools"
        tools.mkdir()
        self.folder.mkdir()
        shutil.copy2(ROOT / ".gitignore", self.folder)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self.environment = inherited | {"PATH": f"{tools}:{os.environ['PATH']}", "GITHUB_SHA": "c0ffee"}
        for tool, status in (("gcloud", 0 if images else 1), ("make", 0)):
            (tools / tool).write_text(
                f"#!{sys.executable}\n"
                "import json, pathlib, sys\n"
                f"print(json.dumps([{tool!r}, *sys.argv[1:]]), file=open({str(self.log)!r}, 'a'))\n"
                f"if not {status} and sys.argv[2:3] == ['cp']: pathlib.Path(sys.argv[-1]).touch()\n"
                f"sys.exit({status})\n"
            )
            (tools / tool).chmod(0o755)
        identity = ["-c", "user.name=tests", "-c", "user.email=tests@example.com"]
        for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "all"]):
            self.ask("git", *words)
        # As google-github-actions/auth does.
        (self.folder / "gha-creds-0123456789abcdef.json").touch()

    def ask(self, *words: str, **environment: str) -> str:
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment | environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, workflow: str, name: str, **inputs: str) -> list[list[str]]:
        """What make and gcloud were told by the job ``name``."""
        job = yaml.safe_load((ROOT / f".github/workflows/{workflow}.yml").read_text())["jobs"][name]

        def said(text: Any) -> str:
            return re.sub(
                r"\$\{\{ (\w+)\.(\w+) \}\}", lambda m: {"vars": VARS, "inputs": inputs}[m[1]][m[2]], str(text)
            )

        for step in job["steps"]:
            condition = re.fullmatch(r"inputs\.(\w+) == '([\w-]+)'", step.get("if", ""))
            if "run" in step and (condition is None or inputs[condition[1]] == condition[2]):
                asked = {key: said(value) for key, value in {**job.get("env", {}), **step.get("env", {})}.items()}
                # GitHub's own shell.
                self.ask("bash", "-eo", "pipefail", "-c", said(step["run"]), **asked)
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.mark.parametrize("images", [True, False])
def test_a_release_builds_the_images_that_are_not_there(tmp_path: Path, images: bool) -> None:
    runner = Runner(tmp_path, images=images)
    told = runner.run("release", "release", action="train-and-release", data="coinbase:BTC-USD", symbol="BTC-USD")
    cloud = "CLOUD=build/cloud.yaml"
    assert told == [
        ["gcloud", "storage", "cp", "gs://store/images/c0ffee.json", "build/images.json"],
        *([] if images else [BUILD]),
        ["make", "run-pipeline", "WAIT=1", cloud, "DATA=coinbase:BTC-USD", "SYMBOL=BTC-USD"],
        ["make", "release-status", cloud],
    ]
    assert yaml.safe_load((runner.folder / "build/cloud.yaml").read_text()) == yaml.safe_load(VARS["CLOUD_YAML"])
    assert runner.ask("git", "status", "--porcelain") == "", "else the run is labelled as of a changed commit"


def test_a_way_back_waits_for_no_image(tmp_path: Path) -> None:
    told = Runner(tmp_path, images=False).run("release", "release", action="rollback")
    assert [words[:2] for words in told if words[0] == "make"] == [["make", "rollback"], ["make", "release-status"]]


def test_a_merge_builds_the_images_and_compiles_with_them(tmp_path: Path) -> None:
    assert Runner(tmp_path, images=True).run("build", "images") == [BUILD, ["make", "compile"]]
