"""How a run's end is told: a file in the store and one structured line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layer3.notification import send
from tests.fakes.gcs import FakeGcs


@pytest.mark.parametrize(
    ("state", "error", "severity"),
    [("SUCCEEDED", None, "INFO"), ("FAILED", "train: boom", "ERROR"), ("CANCELLED", "", "ERROR")],
)
def test_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str, error: str | None, severity: str
) -> None:
    send("r1", state, error, store=str(tmp_path))
    told = {"run_id": "r1", "state": state, "error": error or None}
    assert json.loads((tmp_path / "runs" / "r1" / "notification.json").read_text()) == told
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"severity": severity, "message": f"Run r1 ended: {state}", **told}


def test_into_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeGcs("himari") as gcs:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        send("r2", "SUCCEEDED", None, store="gs://himari/prefix")
        assert json.loads(gcs.content("himari", "prefix/runs/r2/notification.json"))["state"] == "SUCCEEDED"
