"""How a run's end is told: a file in the store, a structured log line, and a webhook if there is one."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from layer3 import storage
from layer3.errors import ConfigurationError, SourceError

__all__ = ["check_webhook", "send"]

_TIMEOUT_S = 10.0


def check_webhook(webhook: str) -> None:
    """Raise :class:`ConfigurationError` unless ``webhook`` is empty or an http(s) address."""
    if webhook and (urlsplit(webhook).scheme not in {"http", "https"} or not urlsplit(webhook).hostname):
        raise ConfigurationError(f"webhook {webhook!r} is not an http:// or https:// address")


def send(run_id: str, state: str, error: str | None, *, store: str, webhook: str) -> None:
    """Tell that run ``run_id`` ended in ``state`` (SUCCEEDED, FAILED, CANCELLED).

    The file and the log line come first: a webhook that does not answer fails the step loudly
    (:class:`SourceError`), but loses nothing.
    """
    check_webhook(webhook)
    message = {"run_id": run_id, "state": state, "error": error or None}
    content = json.dumps(message, indent=2, sort_keys=True).encode()
    storage.write_bytes(storage.join(store, "runs", run_id, "notification.json"), content)
    severity = "INFO" if state == "SUCCEEDED" else "ERROR"
    print(json.dumps({"severity": severity, "message": f"Run {run_id} ended: {state}", **message}), flush=True)
    if not webhook:
        return
    text = f"HIMARI run {run_id}: {state}" + (f" ({error})" if error else "")
    request = urllib.request.Request(  # noqa: S310 (scheme checked above)
        webhook, data=json.dumps({"text": text}).encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310
            pass
    except (urllib.error.URLError, OSError) as failure:
        host = urlsplit(webhook).hostname
        raise SourceError(f"the webhook at {host} did not take the message ({failure}); the run itself {state}") from failure
