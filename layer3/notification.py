"""How a run's end is told: a file in the store, and one structured line that log-based alerts can watch."""

from __future__ import annotations

import json

from layer3 import storage

__all__ = ["send"]


def send(run_id: str, state: str, error: str | None, *, store: str) -> None:
    """Tell that run ``run_id`` ended in ``state`` (SUCCEEDED, FAILED, CANCELLED).

    Writes ``runs/<run id>/notification.json`` below ``store`` (a folder or ``gs://`` URI) and prints
    one JSON line with the severity that Cloud Logging reads: INFO for SUCCEEDED, else ERROR.
    """
    message = {"run_id": run_id, "state": state, "error": error or None}
    content = json.dumps(message, indent=2, sort_keys=True).encode()
    storage.write_bytes(storage.join(store, "runs", run_id, "notification.json"), content)
    severity = "INFO" if state == "SUCCEEDED" else "ERROR"
    print(json.dumps({"severity": severity, "message": f"Run {run_id} ended: {state}", **message}), flush=True)
