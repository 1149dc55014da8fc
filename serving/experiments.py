"""Runs in Vertex Experiments: which experiment a run belongs to, its parameters and its metrics.

An experiment is a context of Vertex ML Metadata, and so are a run of a pipeline (which Vertex makes) and an
experiment run (which holds parameters and metrics); they are tied together as parent and child. The shapes are
those of ``aiplatform.Experiment`` and ``aiplatform.ExperimentRun``, which read what is written here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Final

from layer3.errors import ConfigurationError, SourceError
from serving.vertex import SECONDS, Place, Waiter, asked, client

__all__ = ["link_run", "log_run"]

_VERSION: Final = "0.0.1"
_EXPERIMENT: Final = "system.Experiment"
_RUN: Final = "system.ExperimentRun"
#: Longest name of an experiment run, beside which Google's library needs room for a suffix.
_LONGEST: Final = 121


def link_run(place: Place, run_id: str, *, sleep: Waiter = time.sleep) -> None:
    """Make the pipeline run ``run_id`` a child of the experiment, which is made if it is not there.

    Raises
    ------
    SourceError, RefusedError : as :func:`serving.vertex.asked`; or Vertex has no such run
    ConfigurationError : the experiment's name is taken by something else
    """
    asked("link the run to its experiment", lambda: _linked(_Store(place), run_id), sleep=sleep)


def log_run(
    place: Place,
    run_id: str,
    *,
    parameters: Mapping[str, Any],
    metrics: Mapping[str, float],
    sleep: Waiter = time.sleep,
) -> None:
    """Link the run as :func:`link_run`, and write what it was asked for and what it measured; again replaces it.

    Of ``parameters`` texts, numbers and truth values are taken, of ``metrics`` what is finite.

    Raises
    ------
    as :func:`link_run`
    """
    kept = {
        "_params": {name: value for name, value in parameters.items() if isinstance(value, str | int | float)},
        "_metrics": {name: float(value) for name, value in metrics.items() if math.isfinite(value)},
        "_state": "COMPLETE",
    }
    asked("log the run's metrics", lambda: _logged(_Store(place), run_id, kept), sleep=sleep)


class _Store:
    """The default metadata store of a place."""

    def __init__(self, place: Place) -> None:
        from google.cloud import aiplatform_v1

        self.types = aiplatform_v1
        self.client = client(aiplatform_v1.MetadataServiceClient, place)
        self.experiment = place.experiment
        self.parent = place.parent
        self.name = f"{place.parent}/metadataStores/default"

    def context(self, name: str) -> Any:
        return self.client.get_context(name=f"{self.name}/contexts/{name}", timeout=SECONDS)

    def ensured(self, name: str, schema: str, metadata: Mapping[str, Any], description: str) -> Any:
        """The context ``name``, made if it is not there; a ConfigurationError where it is something else."""
        from google.api_core.exceptions import NotFound

        try:
            found = self.context(name)
        except NotFound:
            self._ensure_store()
            made = self.types.Context(
                display_name=name,
                schema_title=schema,
                schema_version=_VERSION,
                metadata=dict(metadata),
                description=description,
            )
            found = self.client.create_context(parent=self.name, context=made, context_id=name, timeout=SECONDS)
        if found.schema_title != schema:
            raise ConfigurationError(
                f"{name!r} is a {found.schema_title} of this project already, not a {schema}: name another experiment "
                "in config/cloud.yaml"
            )
        return found

    def adopt(self, parent: Any, child: Any) -> None:
        """Make ``child`` a child of ``parent``; again is harmless."""
        if parent.name not in child.parent_contexts:
            self.client.add_context_children(context=parent.name, child_contexts=[child.name], timeout=SECONDS)

    def _ensure_store(self) -> None:
        from google.api_core.exceptions import NotFound

        try:
            self.client.get_metadata_store(name=self.name, timeout=SECONDS)
        except NotFound:
            making = self.client.create_metadata_store(
                parent=self.parent,
                metadata_store=self.types.MetadataStore(),
                metadata_store_id="default",
                timeout=SECONDS,
            )
            making.result(timeout=10 * SECONDS)


def _linked(store: _Store, run_id: str) -> Any:
    """The context of the pipeline run, a child of the experiment now."""
    from google.api_core.exceptions import NotFound

    experiment = store.ensured(
        store.experiment, _EXPERIMENT, {"experiment_deleted": False}, "Runs of the sizing policy's training"
    )
    try:
        run = store.context(run_id)
    except NotFound as error:
        raise SourceError(
            f"Vertex knows no run {run_id} in {store.name}: it is linked from inside the run, when its record is there"
        ) from error
    store.adopt(experiment, run)
    return experiment, run


def _logged(store: _Store, run_id: str, kept: Mapping[str, Any]) -> None:
    experiment, run = _linked(store, run_id)
    name = f"{store.experiment}-{run_id}"
    if len(name) > _LONGEST:
        raise ConfigurationError(
            f"experiment {store.experiment!r} is too long a name: with a run's it has {len(name)} of at most "
            f"{_LONGEST} characters; shorten it in the cloud's configuration"
        )
    context = store.ensured(name, _RUN, kept, f"What run {run_id} was asked for and what it measured")
    store.adopt(experiment, context)
    store.adopt(context, run)
    if dict(store.types.Context.to_dict(context)["metadata"]) != kept:
        context.metadata = dict(kept)
        store.client.update_context(context=context, update_mask={"paths": ["metadata"]}, timeout=SECONDS)
