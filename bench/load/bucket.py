"""Our server as Cloud Run runs it: it follows a channel in a bucket, over TLS and with tokens; all on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.load.servers import Contender
from layer3.agent.policy import Policy
from layer3.champion import CHANNEL, FILES, Champion
from serving.channels import promoted
from tests.fakes.machine import machine

__all__ = ["in_a_bucket"]


@contextmanager
def in_a_bucket(ours: Contender, policy: Policy, files: Path, folder: Path) -> Iterator[Contender]:
    """``ours`` with the ``policy`` of the folder ``files`` as champion of a bucket, while the block runs."""
    manifest = policy.manifest
    champion = Champion(policy.model_id, manifest["policy_sha256"], manifest["contract"], "now", "bench")
    folder.mkdir()
    with machine(folder, "bucket") as cloud:
        for name in FILES:
            cloud.gcs.put("bucket", f"models/{policy.model_id}/{name}", (files / name).read_bytes())
        channel = "/".join(CHANNEL)
        cloud.gcs.put("bucket", channel, promoted(None, champion).to_json().encode())
        told = {**ours.environment, **cloud.environment, "MODEL_URI": f"gs://bucket/{channel}"}
        yield replace(ours, name=f"{ours.name}, model on gs://", environment=told)
