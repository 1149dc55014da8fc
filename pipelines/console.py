"""Where a run is seen in Google's console, and what is typed to follow it or to stop it."""

from __future__ import annotations

import shlex

from serving.cloud import CLOUD, Cloud

__all__ = ["cancel_command", "links", "watch_command"]


def links(cloud: Cloud, run_id: str) -> dict[str, str]:
    """Pages of the console, by what they show."""
    console, project = "https://console.cloud.google.com", f"project={cloud.project}"
    vertex = f"{console}/vertex-ai"
    folder = f"{cloud.store.removeprefix('gs://')}/runs/{run_id}"
    return {
        "run": f"{vertex}/locations/{cloud.region}/pipelines/runs/{run_id}?{project}",
        "experiment": f"{vertex}/experiments/locations/{cloud.region}/experiments/{cloud.experiment}/runs?{project}",
        "files": f"{console}/storage/browser/{folder}?{project}",
    }


def watch_command(run_id: str, file: str) -> str:
    """What follows a run that goes on, with the configuration ``file``."""
    return f"make watch-pipeline RUN={run_id}{_with(file)}"


def cancel_command(run_id: str, file: str) -> str:
    """What stops a run."""
    return f"make cancel-pipeline RUN={run_id}{_with(file)}"


def _with(file: str) -> str:
    return "" if file == str(CLOUD) else f" CLOUD={shlex.quote(file)}"
