"""Run the compiled training pipeline on Vertex AI: look whether all is there, say what it costs, submit, and watch.

    python -m pipelines.submit --data BTC.csv.gz --symbol BTC-USDT --wait        (make run-pipeline)

A run's name is chosen here and kept in ``build/submitting/`` until Vertex has confirmed it. A submission whose answer
was lost is therefore found again, by the same command or by the next one, and never starts a second run.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import yaml
from google.api_core import exceptions
from google.cloud import aiplatform_v1 as v1

from layer3 import storage
from layer3.errors import ConfigurationError, DataError, HimariError, RefusedError, SourceError
from layer3.market.sources import utc_now
from pipelines import console
from pipelines.arguments import add_options, checked
from pipelines.cost import Estimate, run_estimate
from pipelines.labels import run_labels
from pipelines.preflight import Missing, missing
from pipelines.prices import load_prices
from pipelines.provenance import provenance
from pipelines.watch import HOURS, catch_up, follow, name_of, pipeline_client
from serving.cloud import CLOUD, Cloud, Images, load_cloud
from serving.experiments import link_run
from serving.platforms.target import Target
from serving.vertex import SECONDS, Waiter, asked, place_of, said_of

__all__ = ["Request", "add_request_options", "main", "parameters_of", "prepared", "submit", "uploaded"]

ROOT: Final = Path(__file__).resolve().parents[1]
#: Groups of folds, each on a machine of its own.
_GROUPS: Final = 6
#: The same request after so long is another run, whatever became of the first.
_PENDING: Final = timedelta(days=1)


@dataclass(frozen=True)
class Request:
    """One run as it is asked for: the compiled pipeline, its parameters and its labels."""

    spec: Mapping[str, Any]
    parameters: Mapping[str, Any]
    labels: Mapping[str, str]

    @property
    def digest(self) -> str:
        """The same for the same request, and for no other."""
        said = json.dumps([self.spec, self.parameters, self.labels], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def job(self, cloud: Cloud, run_id: str) -> v1.PipelineJob:
        """What Vertex is sent. The spec goes as it was compiled: every step keeps its own caching."""
        return v1.PipelineJob(
            display_name=run_id,
            pipeline_spec=dict(self.spec),
            labels=dict(self.labels),
            service_account=cloud.pipeline_service_account,
            runtime_config=v1.PipelineJob.RuntimeConfig(
                gcs_output_directory=storage.join(cloud.store, "runs"),
                parameter_values=dict(self.parameters),
                # What follows a failed step is paid for and of no use.
                failure_policy=v1.PipelineFailurePolicy.PIPELINE_FAILURE_POLICY_FAIL_FAST,
            ),
        )


def submit(
    cloud: Cloud,
    request: Request,
    pending: Path,
    *,
    now: Callable[[], datetime] = utc_now,
    sleep: Waiter = time.sleep,
) -> tuple[str, bool]:
    """Submit ``request``; the run's id, and whether it had begun already.

    ``pending`` is the folder where the name is kept until Vertex has confirmed it.

    Raises
    ------
    RefusedError : Vertex refuses
    SourceError : it did not answer; the same again finds the run, if it began
    """
    kept = pending / f"{request.digest}.json"
    run_id = _named(kept, request, now())
    pipelines = pipeline_client(cloud)
    made, already = asked("submit the run", lambda: _created(pipelines, cloud, request, run_id), sleep=sleep)
    kept.unlink(missing_ok=True)  # whoever asked for the same at the same time may have been first
    if dict(made.labels) != request.labels:
        raise RefusedError(f"Vertex has another run of the name {run_id}: submit again, under a new name")
    return run_id, already


def _created(pipelines: Any, cloud: Cloud, request: Request, run_id: str) -> tuple[v1.PipelineJob, bool]:
    """The run as Vertex has it, and whether a call before this one, whose answer was lost, made it."""
    wanted = request.job(cloud, run_id)
    try:
        made = pipelines.create_pipeline_job(
            parent=cloud.parent, pipeline_job=wanted, pipeline_job_id=run_id, timeout=SECONDS
        )
    except exceptions.Conflict as conflict:
        # Over REST every 409 is one; only a run of this name makes this one final.
        try:
            return pipelines.get_pipeline_job(name=name_of(cloud, run_id), timeout=SECONDS), True
        except exceptions.NotFound:
            raise conflict from None
    return made, False


def _named(kept: Path, request: Request, now: datetime) -> str:
    """The name that ``kept`` holds, or a new one, which it holds then; one for all who ask for the same at once."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(kept.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        run_id = _pending(kept, now) or _fresh(request, now)
        storage.write_bytes(str(kept), json.dumps({"run_id": run_id, "at": now.isoformat()}).encode())
        return run_id
    finally:
        os.close(folder)  # and gives the lock back


def _pending(kept: Path, now: datetime) -> str | None:
    """The name of a run that was submitted and not confirmed."""
    try:
        said = json.loads(kept.read_bytes())
        young = now - datetime.fromisoformat(said["at"]) < _PENDING
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{kept} cannot be read ({error}): remove it and submit again") from error
    return str(said["run_id"]) if young else None


def _fresh(request: Request, now: datetime) -> str:
    return f"{request.spec['pipelineInfo']['name']}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def uploaded(cloud: Cloud, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with a data file of this machine put into the store, under the sha256 of its bytes.

    What lies there already under that name has the same bytes, and is left alone.

    Raises
    ------
    DataError : the file was changed since it was checked, or the store holds something else under its name
    SourceError : the store cannot be written
    """
    path = Path(parameters["data"])
    if not path.is_file():
        return dict(parameters)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != parameters["data_version"]:
        raise DataError(f"{path} was changed while it was being looked at: submit again")
    uri = storage.join(cloud.store, "data", digest, re.sub(r"[^\w.-]", "_", path.name))
    there = storage.exists(uri)
    if not there and not storage.replace_bytes(uri, content, None):
        raise DataError(f"{uri} holds other bytes than its name says: remove it and submit again")
    print(f"data       {uri}{' (was there)' if there else ''}")
    return dict(parameters) | {"data": uri}


def parameters_of(cloud: Cloud, images: Images, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What a run in ``cloud`` is given: what was chosen, where it stores, where it records, and where it serves."""
    return dict(chosen) | {
        "store": cloud.store,
        "fold_groups": _GROUPS,
        "serving_image": images.serving,
        "vertex": said_of(cloud),
        "register_rejected": cloud.register_rejected,
        "target": Target.of(cloud).to_json() if cloud.service else "",
    }


def _spec(path: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no compiled pipeline at {path}: run `make compile`") from error


def _refuse_missing(found: Sequence[Missing]) -> None:
    if found:
        lines = [f"  {number}. {item.what}\n     {item.fix}" for number, item in enumerate(found, start=1)]
        raise ConfigurationError(
            f"{len(found)} thing{'s are' if len(found) > 1 else ' is'} missing, nothing was submitted. "
            "For each a command:\n"
            + "\n".join(lines)
            + "\n`terraform -chdir=infra apply` makes all that belongs to the project at once, see infra/."
        )


def _refuse_dear(estimate: Estimate, most: float, file: str) -> None:
    if estimate.usd > most:
        raise ConfigurationError(
            f"the run is estimated to cost {estimate.usd:.2f} USD, more than the {most:.2f} USD that one may: "
            f"say MAX_COST={math.ceil(estimate.usd)}, or raise max_cost_usd in {file}"
        )


def _refuse_unknown(spec: Mapping[str, Any], parameters: Mapping[str, Any], path: Path) -> None:
    known = spec["root"]["inputDefinitions"]["parameters"]
    strange = sorted(set(parameters) - set(known))
    if strange:
        raise ConfigurationError(f"{path} knows no parameter {', '.join(strange)}: run `make compile`")


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the options that :func:`prepared` reads."""
    add_options(parser, folds=18, fold_seeds=5)
    parser.add_argument("--cloud", default=str(CLOUD), metavar="FILE", help="which cloud (%(default)s)")
    parser.add_argument("--spec", type=Path, default=ROOT / "build" / "training.yaml", help="the compiled pipeline")
    parser.add_argument("--prices", type=Path, default=ROOT / "config" / "prices.yaml", help="what the cloud costs")
    parser.add_argument("--max-cost", type=float, metavar="USD", help="most that it may cost (the configuration's)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.submit", description="Run the pipeline on Vertex AI.")
    add_request_options(parser)
    parser.add_argument("--wait", action="store_true", help="watch it to its end")
    parser.add_argument("--hours", type=float, default=HOURS, help="longest to watch (%(default)g)")
    return parser


def prepared(options: argparse.Namespace, *, sleep: Waiter = time.sleep) -> tuple[Cloud, Request, Estimate]:
    """The cloud, the run as it may be submitted there, and its cost: nothing is missing, and it is not too dear.

    Raises
    ------
    HimariError : something is missing, wrong or too dear; the message has the remedy
    """
    cloud = load_cloud(Path(options.cloud))
    cloud.use_storage()
    most = cloud.max_cost_usd if options.max_cost is None else options.max_cost
    if not 0.0 < most < math.inf:
        raise ConfigurationError(f"max-cost is {most:g}, expected USD above 0")
    spec = _spec(options.spec)
    chosen = checked(options)
    images = cloud.images() if Path(cloud.images_file).exists() else None
    _refuse_missing(missing(cloud, images, spec, sleep=sleep))
    assert images is not None  # its absence was found missing
    _catch_up(cloud, sleep)
    estimate = run_estimate(load_prices(options.prices), cloud.store, {**chosen, "fold_groups": _GROUPS})
    print(f"estimate   {estimate.usd:.2f} USD ({estimate.cad:.2f} CAD); {estimate.basis}")
    _refuse_dear(estimate, most, options.cloud)
    labels = run_labels(provenance(ROOT), data=chosen["data"], data_version=chosen["data_version"])
    parameters = parameters_of(cloud, images, uploaded(cloud, chosen))
    _refuse_unknown(spec, parameters, options.spec)
    return cloud, Request(spec, parameters, labels), estimate


def _catch_up(cloud: Cloud, sleep: Waiter) -> None:
    """Let the estimate know the runs that nobody watched. Where it cannot it goes by the others."""
    try:
        if unseen := catch_up(cloud, sleep=sleep):
            print(f"records    written of {', '.join(unseen)}, which ended unwatched")
    except (SourceError, RefusedError) as error:
        print(f"WARNING: {error}. The estimate knows only the runs that were watched.", file=sys.stderr)


def _submit(options: argparse.Namespace, sleep: Waiter) -> tuple[Cloud, str]:
    """Everything up to the run that has begun."""
    cloud, request, _ = prepared(options, sleep=sleep)
    run_id, already = submit(cloud, request, options.spec.parent / "submitting", sleep=sleep)
    print(f"run        {run_id}{' (had begun already; not started twice)' if already else ''}")
    for name, value in request.labels.items():
        print(f"  {name:<11}{value}")
    for name, address in console.links(cloud, run_id).items():
        print(f"{name:<10} {address}")
    return cloud, run_id


def _link(cloud: Cloud, run_id: str, sleep: Waiter) -> None:
    """Make the run one of its experiment. What cannot be done now, the run's own last step does."""
    try:
        link_run(place_of(said_of(cloud)), run_id, sleep=sleep)
    except (SourceError, RefusedError) as error:
        print(f"WARNING: {error}. The run's last step links it to {cloud.experiment}.", file=sys.stderr)


def main(arguments: Sequence[str] | None = None, *, sleep: Waiter = time.sleep) -> int:
    """The command line; 0 when submitted, 2 when it was not; with --wait as :mod:`pipelines.watch`."""
    options = _parser().parse_args(arguments)
    try:
        cloud, run_id = _submit(options, sleep)
        _link(cloud, run_id, sleep)
    except HimariError as error:
        print(f"run-pipeline: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrun-pipeline: stopped; the same again goes on, and finds a run that has begun", file=sys.stderr)
        return 130
    if options.wait:
        return follow(cloud, run_id, options.cloud, hours=options.hours, sleep=sleep)
    print(f"\nfollow it  {console.watch_command(run_id, options.cloud)}")
    print(f"stop it    {console.cancel_command(run_id, options.cloud)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
