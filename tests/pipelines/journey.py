"""A run on a cloud of this machine, in a process of its own: the command, then what its service on Cloud Run answers.

    python -m tests.pipelines.journey FOLDER

What happened is the last line of stdout, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from google.protobuf import json_format

from layer3.market.simulator import MarketSpec, simulate
from tests.fakes.cloud import World, world
from tests.fakes.cloud_run import FakeCloudRun

ROOT = Path(__file__).resolve().parents[2]


def main(folder: Path) -> int:
    """0 when it got to the end; what came of it is the test's to judge."""
    with world(folder, service="himari-dev") as here:
        assert here.run is not None
        os.environ["GCE_METADATA_HOST"] = here.run.front.metadata
        candles = folder / "candles.parquet"
        simulate(MarketSpec(bars=6_000)).to_parquet(candles, index=False)
        command = [sys.executable, "-m", "pipelines.submit", "--cloud", str(here.file), "--spec", str(here.spec)]
        asked = ["--data", str(candles), "--symbol", "BTC-USDT", "--steps", "4096", "--folds", "0", "--wait"]
        override = ["--override-name", "a test", "--override-reason", "so little training earns nothing"]
        done = subprocess.run([*command, *asked, *override], cwd=ROOT, capture_output=True, text=True, check=False)
        sys.stderr.write(done.stderr)
        print(json.dumps({"exit": done.returncode, "said": done.stdout} | found(here)))
    return 0


def found(here: World) -> dict[str, object]:
    """What the cloud holds now, and what the released policy answers."""
    assert here.run is not None
    (job,) = here.vertex.pipelines.jobs.values()
    run_id = job.name.rsplit("/", 1)[1]
    details = {detail.task_name: detail for detail in job.job_detail.task_details}
    for name, detail in details.items():
        if detail.error.message:
            print(f"{name}: {detail.error.message}", file=sys.stderr)
    ingested = json_format.MessageToDict(type(details["ingest"]).pb(details["ingest"]))
    channel = json.loads(here.gcs.content("bucket", "channels/production.json"))
    champion = channel["model_id"]
    manifest = json.loads(here.gcs.content("bucket", f"models/{champion}/manifest.json"))
    golden = manifest["golden"][0]
    return {
        "run_id": run_id,
        "types": {
            name: artifact.schema_title
            for detail in details.values()
            for name, output in detail.outputs.items()
            for artifact in output.artifacts
        },
        "states": {name: detail.state.name for name, detail in details.items()},
        "uploaded": next(name.split("/")[1] for _, name in here.gcs.objects if name.startswith("data/")),
        "ingested": ingested["outputs"]["candles"]["artifacts"][0]["metadata"]["data_version"],
        "versions": [sorted(v.version_aliases) for vs in here.vertex.models.versions.values() for v in vs],
        "notified": json.loads(here.gcs.content("bucket", f"runs/{run_id}/notification.json")),
        "recorded": json.loads(here.gcs.content("bucket", f"runs/{run_id}/manifest.json"))["status"],
        "champion": champion,
        "golden": golden["multiplier"],
        "traffic": list(here.run.traffic().values()),
        "account": here.run.only().template.service_account,
        "served": asked(here.run, golden["state"]),
    }


def asked(run: FakeCloudRun, state: list[float]) -> object:
    """What the service on Cloud Run answers to one who shows an ID token."""
    service = run.only().uri
    identity = f"http://{run.front.metadata}/computeMetadata/v1/instance/service-accounts/default/identity"
    wanted = urllib.request.Request(f"{identity}?audience={service}", headers={"Metadata-Flavor": "Google"})
    with urllib.request.urlopen(wanted) as answer:
        token = answer.read().decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    body = json.dumps({"state": state}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{service}/predict", body, headers)) as answer:
        return json.load(answer)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(Path(sys.argv[1])))
