"""A run on a cloud of this machine, in a process of its own: the command, then the server of what it released.

    python -m tests.pipelines.journey FOLDER

What happened is the last line of stdout, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from google.protobuf import json_format

from layer3.market.simulator import MarketSpec, simulate
from tests.fakes.cloud import World, world
from tests.serving.support import serving_process

ROOT = Path(__file__).resolve().parents[2]


def main(folder: Path) -> int:
    """0 when it got to the end; what came of it is the test's to judge."""
    with world(folder) as here:
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
    model = "gs://bucket/channels/production.json"
    with serving_process(MODEL_URI=model, STORAGE_EMULATOR_HOST=here.gcs.url) as server:
        server.client.wait_for_health("ready", process=server.process)
        served = server.client.predict(golden["state"]).body
    return {
        "run_id": run_id,
        "states": {name: detail.state.name for name, detail in details.items()},
        "uploaded": next(name.split("/")[1] for _, name in here.gcs.objects if name.startswith("data/")),
        "ingested": ingested["outputs"]["candles"]["artifacts"][0]["metadata"]["data_version"],
        "versions": [sorted(v.version_aliases) for vs in here.vertex.models.versions.values() for v in vs],
        "notified": json.loads(here.gcs.content("bucket", f"runs/{run_id}/notification.json")),
        "recorded": json.loads(here.gcs.content("bucket", f"runs/{run_id}/manifest.json"))["status"],
        "champion": champion,
        "golden": golden["multiplier"],
        "served": served,
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(Path(sys.argv[1])))
