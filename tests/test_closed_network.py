"""The cloud half from command line to served policy, in a network where nothing but loopback answers.

Whatever asks for an address of the world is caught and named (:mod:`tests.fakes.trap`), also what a library does
behind our back: ``PipelineJob.submit`` of Google's own client asks Resource Manager who owns the bucket, wherever the
endpoint points, and swallows the answer. This project asks it through a client of its own.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import trap

ROOT = Path(__file__).resolve().parents[1]


def trapped(*command: str) -> subprocess.CompletedProcess[str]:
    """The command in its own network; the test is skipped where there can be none."""
    if not trap.possible():
        pytest.skip("this machine lets no one make a network namespace (unshare -rn)")
    return subprocess.run(
        ["unshare", "-rn", sys.executable, "-m", "tests.fakes.trap", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


LEAVES = {
    "a name": "import socket; socket.getaddrinfo('cloudresourcemanager.googleapis.com', 443)",
    "an address": "import socket; socket.create_connection(('8.8.8.8', 443))",
    "the metadata server": "import urllib.request; urllib.request.urlopen('http://169.254.169.254/', timeout=5)",
    "gRPC, whose error is swallowed": """
from google.auth.credentials import AnonymousCredentials
from google.cloud import resourcemanager_v3
projects = resourcemanager_v3.ProjectsClient(credentials=AnonymousCredentials())
try:
    projects.get_project(name="projects/p", timeout=5, retry=None)
except Exception:
    pass
""",
}


@pytest.mark.parametrize("how", LEAVES)
def test_what_leaves_the_machine_is_caught(how):
    done = trapped(sys.executable, "-c", LEAVES[how])
    assert done.returncode == trap.CAUGHT
    assert "left this machine: " in done.stderr


def test_what_stays_is_let_alone():
    server = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    done = trapped(sys.executable, "-c", f"{server}; raise SystemExit(3)")
    assert (done.returncode, done.stderr) == (3, "")


def test_from_the_command_line_to_a_served_policy_and_nothing_leaves_the_machine(tmp_path):
    """make run-pipeline WAIT=1 of a file of this machine, its verdict, its release, and an answer of what serves."""
    command = [sys.executable, "-m", "tests.pipelines.journey", str(tmp_path / "journey")]
    if trap.possible():
        done = trapped(*command)
    else:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["exit"] == 0
    assert "RELEASED" in told["said"]
    assert f"run        {told['run_id']}" in told["said"]
    assert told["states"] == {
        "ingest": "SUCCEEDED",
        "train": "SUCCEEDED",
        "allot": "SUCCEEDED",
        "walk": "SUCCEEDED",
        "evaluate": "SUCCEEDED",
        "gate": "SUCCEEDED",
        "register": "SUCCEEDED",
        "deploy": "SUCCEEDED",
        "reject": "NOT_TRIGGERED",
        "notify": "SUCCEEDED",
    }
    # What was uploaded was ingested, what was trained is registered, and what was released answers.
    assert told["ingested"] == told["uploaded"]
    types = told["types"]
    assert (types["registered"], types["released"]) == ("google.VertexModel", "google.UnmanagedContainerModel")
    assert (types["model"], types["tear_sheet"], types["verdict"]) == ("system.Model", "system.HTML", "system.Markdown")
    assert told["versions"] == [["candidate", "champion", "default"]]
    assert told["notified"] == {"run_id": told["run_id"], "state": "SUCCEEDED", "error": None}
    assert told["recorded"] == "SUCCEEDED"
    assert (told["traffic"], told["account"]) == ([100], "himari-dev-serving@himari-test.iam.gserviceaccount.com")
    assert told["champion"] == told["served"]["model_version"]
    assert told["served"]["position_multiplier"] == pytest.approx(told["golden"], abs=1e-6)
