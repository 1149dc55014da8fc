"""Let the alias champion of the Vertex Model Registry name what serves.

    python -m serving.champion_alias --cloud config/cloud.yaml        (make registry)

A release from the pipeline moves the alias itself. After a rollback, and after a release by hand, it follows here.
The channel file says what serves, the registry only repeats it: nothing here changes what anybody is answered.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from layer3.champion import load_champion, read
from layer3.errors import HimariError
from serving import registry
from serving.cloud import CLOUD, Cloud, load_cloud
from serving.vertex import Waiter, place_in

__all__ = ["follow", "main", "told"]


def follow(cloud: Cloud, *, sleep: Waiter = time.sleep) -> str:
    """Give the alias to the version that holds the policy that serves; a sentence on what was done.

    Raises
    ------
    ReleaseError : the version was rejected by a later run
    SourceError, RefusedError : the store or Vertex AI does not answer, or refuses
    PolicyError, ContractError : what serves does not verify
    """
    if cloud.emulated and not cloud.endpoints.vertex:
        return "the model registry is left alone: this emulated cloud has none"
    channel = read(cloud.store)
    if channel is None:
        return f"nothing serves in {cloud.store}: the model registry has no champion"
    policy = load_champion(cloud.store, channel.champion)
    place = place_in(cloud)
    symbol, digest = str(policy.manifest["symbol"]), str(policy.manifest["policy_sha256"])
    name = registry.version_of(place, symbol, digest, sleep=sleep)
    if name is None:
        return f"{policy.model_id} serves and is not in the model registry: it was not released by the pipeline"
    return registry.promote(place, name, sleep=sleep)


def told(move: Callable[[], str]) -> str:
    """What ``move`` says of moving the alias. What serves does not depend on it, so that a failure is a warning."""
    try:
        return move()
    except HimariError as error:
        return f"WARNING: the model registry still names another champion: {error}. `make registry` says it again."


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when done, 1 when refused or not answered."""
    parser = argparse.ArgumentParser(prog="python -m serving.champion_alias", description=follow.__doc__)
    parser.add_argument("--cloud", type=Path, default=CLOUD, metavar="FILE", help="which cloud (%(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        cloud = load_cloud(chosen.cloud)
        cloud.use_storage()
        print(follow(cloud))
    except HimariError as error:
        print(f"registry: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
