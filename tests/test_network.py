"""The whole suite runs on this machine alone."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LeavesThisMachineError

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 80, 0, 0), ("example.invalid", 80)])
def test_a_connection_that_leaves_the_machine_fails_the_test(address):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as s, pytest.raises(LeavesThisMachineError):
        s.connect(address)


def test_the_pipeline_needs_no_network_at_all(tmp_path):
    """The whole run, every process of it, in a network namespace that has nothing but loopback."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no one make a network namespace (unshare -rn)")
    pipeline = (
        f"ip link set lo up && {sys.executable} compile.py --output {tmp_path}/build && {sys.executable} -m "
        f"pipelines.local --data synthetic:no-edge,bars=6000 --steps 4096 --store {tmp_path} "
        f"--spec {tmp_path}/build/training.yaml"
    )
    done = subprocess.run([unshare, "-rn", "sh", "-c", pipeline], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "REJECTED" in done.stdout
    assert "SYNTHETIC market" in done.stdout
