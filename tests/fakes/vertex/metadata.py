"""Vertex ML Metadata on this machine: the metadata store and its contexts, tied together as parents and children."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from google.cloud import aiplatform_v1 as v1
from google.cloud.aiplatform_v1.services.metadata_service.transports.rest_base import _BaseMetadataServiceRestTransport
from google.longrunning import operations_pb2

from tests.fakes.google import FakeGoogle, Refused, label_problem, page

if TYPE_CHECKING:
    from tests.fakes.vertex.server import Place

__all__ = ["Metadata"]

_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")
_SCHEMAS: Final = {
    ("system.Experiment", "0.0.1"),
    ("system.ExperimentRun", "0.0.1"),
    ("system.Pipeline", "0.0.1"),
    ("system.PipelineRun", "0.0.1"),
}
_MUTABLE: Final = {"display_name", "labels", "metadata", "description"}


class Metadata:
    """State and handlers of the service; ``contexts`` by full name. There is no store until one is made or needed."""

    def __init__(self, google: FakeGoogle, place: Place) -> None:
        self.contexts: dict[str, v1.Context] = {}
        self.has_store = False
        self._google = google
        self._place = place
        self._store = f"{place.parent}/metadataStores/default"
        for name, request, handler in (
            ("GetMetadataStore", v1.GetMetadataStoreRequest, self._get_store),
            ("CreateMetadataStore", v1.CreateMetadataStoreRequest, self._create_store),
            ("GetContext", v1.GetContextRequest, self._get),
            ("CreateContext", v1.CreateContextRequest, self._create),
            ("UpdateContext", v1.UpdateContextRequest, self._update),
            ("ListContexts", v1.ListContextsRequest, self._list),
            ("AddContextChildren", v1.AddContextChildrenRequest, self._add_children),
            ("GetArtifact", v1.GetArtifactRequest, self._no_artifact),
        ):
            google.serve(_BaseMetadataServiceRestTransport, name, request, handler)

    def began(self, context: v1.Context) -> None:
        """A run of a pipeline makes its own context, and the store where there is none."""
        self.has_store = True
        self.contexts[context.name] = _stamped(v1.Context(context))

    def named(self, name: str) -> v1.Context:
        """The context of this id."""
        return self.contexts[f"{self._store}/contexts/{name}"]

    def children(self, name: str) -> set[str]:
        """The ids of the children of the context of this id."""
        parent = self.named(name).name
        return {one.name.rpartition("/")[2] for one in self.contexts.values() if parent in one.parent_contexts}

    def _get_store(self, request: v1.GetMetadataStoreRequest) -> v1.MetadataStore:
        name = self._place.canonical(request.name)
        if not self.has_store or name != self._store:
            raise Refused("NOT_FOUND", f"MetadataStore {name} not found.")
        return v1.MetadataStore(name=name)

    def _create_store(self, request: v1.CreateMetadataStoreRequest) -> operations_pb2.Operation:
        parent = self._place.canonical(request.parent)
        if request.metadata_store_id != "default":
            raise Refused("INVALID_ARGUMENT", "metadata_store_id must be default.")
        if self.has_store:
            raise Refused("ALREADY_EXISTS", f"MetadataStore {self._store} already exists.")

        def work() -> v1.MetadataStore:
            with self._google.lock:
                self.has_store = True
            return v1.MetadataStore(name=self._store)

        return self._google.operation(parent, work)

    def _get(self, request: v1.GetContextRequest) -> v1.Context:
        return self._find(request.name)

    def _create(self, request: v1.CreateContextRequest) -> v1.Context:
        parent = self._place.canonical(request.parent)
        if not self.has_store or parent != self._store:
            raise Refused("NOT_FOUND", f"MetadataStore {parent} not found.")
        if not _ID.fullmatch(request.context_id):
            raise Refused("INVALID_ARGUMENT", f"context_id {request.context_id!r} must match {_ID.pattern}.")
        context = v1.Context(request.context)
        if (context.schema_title, context.schema_version) not in _SCHEMAS:
            raise Refused(
                "NOT_FOUND", f"MetadataSchema {context.schema_title} {context.schema_version} does not exist."
            )
        problem = label_problem(context.labels)
        if problem or not 1 <= len(context.display_name) <= 128:
            raise Refused("INVALID_ARGUMENT", problem or "display_name must be 1 to 128 characters long.")
        context.name = f"{parent}/contexts/{request.context_id}"
        if context.name in self.contexts:
            raise Refused("ALREADY_EXISTS", f"Context {context.name} already exists.")
        context.parent_contexts = []
        self.contexts[context.name] = _stamped(context)
        return context

    def _update(self, request: v1.UpdateContextRequest) -> v1.Context:
        context = self._find(request.context.name)
        given = request.context.etag
        if given and given != context.etag:
            raise Refused("ABORTED", f"Etag {given} of {context.name} is stale.")
        unknown = set(request.update_mask.paths) - _MUTABLE
        if unknown or not request.update_mask.paths:
            raise Refused("INVALID_ARGUMENT", f"update_mask cannot hold {sorted(unknown) or 'nothing'}.")
        for path in request.update_mask.paths:
            setattr(context, path, getattr(request.context, path))
        return _stamped(context)

    def _list(self, request: v1.ListContextsRequest) -> v1.ListContextsResponse:
        found = re.fullmatch(r'schema_title="([\w.]+)"', request.filter or 'schema_title="x"')
        if found is None:
            raise Refused("INVALID_ARGUMENT", f"Invalid filter: {request.filter}")
        wanted = [one for one in self.contexts.values() if not request.filter or one.schema_title == found[1]]
        contexts, token = page(wanted, request.page_size, request.page_token)
        return v1.ListContextsResponse(contexts=contexts, next_page_token=token)

    def _add_children(self, request: v1.AddContextChildrenRequest) -> v1.AddContextChildrenResponse:
        parent = self._find(request.context)
        children = [self._find(name) for name in request.child_contexts]
        for child in children:
            if child.name == parent.name or child.name in self._above(parent):
                raise Refused("INVALID_ARGUMENT", f"Context {child.name} would be above itself.")
            if len(child.parent_contexts) >= 10:
                raise Refused("INVALID_ARGUMENT", f"Context {child.name} has 10 parents already.")
        for child in children:
            if parent.name not in child.parent_contexts:
                child.parent_contexts.append(parent.name)
                _stamped(child)
        return v1.AddContextChildrenResponse()

    def _above(self, context: v1.Context) -> set[str]:
        parents = set(context.parent_contexts)
        return parents.union(*(self._above(self.contexts[name]) for name in parents))

    def _no_artifact(self, request: v1.GetArtifactRequest) -> Any:
        raise Refused("NOT_FOUND", f"Artifact {request.name} not found.")

    def _find(self, name: str) -> v1.Context:
        context = self.contexts.get(self._place.canonical(name))
        if context is None:
            raise Refused("NOT_FOUND", f"Context {name} not found.")
        return context


def _stamped(context: v1.Context) -> v1.Context:
    context.etag = secrets.token_hex(8)
    context.update_time = datetime.now(UTC)
    return context
