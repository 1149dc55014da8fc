"""How a run's end is told: a file in the store, a structured log line, and a webhook if there is one."""

from __future__ import annotations

import http.client
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
    try:
        parts = urlsplit(webhook)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not match, a port that is no number
        valid = False
    if webhook and not (valid and webhook.isascii() and webhook.isprintable() and " " not in webhook):
        raise ConfigurationError(f"webhook {webhook!r} is not an http:// or https:// address")


def send(run_id: str, state: str, error: str | None, *, store: str, webhook: str) -> None:
    """Tell that run ``run_id`` ended in ``state`` (SUCCEEDED, FAILED, CANCELLED).

    The file and the log line come first: a webhook that does not answer (:class:`SourceError`), or
    is no address (:class:`ConfigurationError`), fails the step loudly, but loses nothing.
    """
    message = {"run_id": run_id, "state": state, "error": error or None}
    content = json.dumps(message, indent=2, sort_keys=True).encode()
    storage.write_bytes(storage.join(store, "runs", run_id, "notification.json"), content)
    severity = "INFO" if state == "SUCCEEDED" else "ERROR"
    print(json.dumps({"severity": severity, "message": f"Run {run_id} ended: {state}", **message}), flush=True)
    check_webhook(webhook)
    if not webhook:
        return
    text = f"HIMARI run {run_id}: {state}" + (f" ({error})" if error else "")
    request = urllib.request.Request(
        webhook, data=json.dumps({"text": text}).encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
            pass
    except (urllib.error.URLError, http.client.HTTPException, OSError) as failure:
        host = urlsplit(webhook).hostname
        raise SourceError(
            f"the webhook at {host} did not take the message ({failure}); the run itself {state}"
        ) from failure
