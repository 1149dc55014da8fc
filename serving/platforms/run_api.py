"""Cloud Run's API for one service: every call bounded in time, tried again where that is safe, refused in sentences.

A read that gets no answer is simply asked again. A write is not: whoever hears nothing does not know whether it was
done. So a write is always over the generation that was read, and after a silence the service is looked at: the
generation is the old one, then nothing was done and it is tried again; the service is as it should be, then it was;
anything else is somebody else's work and stays. (Its etag, which a write carries, also changes when nobody changed
anything but Cloud Run itself; the generation counts what people ask for.)
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import requests  # type: ignore[import-untyped]
from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError
from google.cloud import run_v2
from google.iam.v1 import iam_policy_pb2  # type: ignore[import-untyped]
from google.longrunning import operations_pb2  # type: ignore[import-untyped]

from layer3.errors import RefusedError, SourceError
from serving.platforms.target import Target
from serving.platforms.template import in_effect

__all__ = ["LONGEST_PAUSE", "OPERATION_SECONDS", "RunApi", "retry_after"]

T = TypeVar("T")

#: Seconds that Cloud Run may take to carry out one change: pull an image, start it, move traffic.
OPERATION_SECONDS: Final = 600.0
_CALL_SECONDS: Final = 30.0
#: Seconds before a call that got no answer is tried again, if the answer does not say how many.
_PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
LONGEST_PAUSE: Final = 30.0
_POLL_SECONDS: Final = (0.2, 5.0)
_EVERYBODY: Final = ("allUsers", "allAuthenticatedUsers")
_SILENCE: Final = (
    exceptions.TooManyRequests,
    exceptions.ServerError,
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


class RunApi:
    """The service of ``target``. ``sleep`` and ``clock`` are in seconds."""

    def __init__(
        self,
        target: Target,
        credentials: Any,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        operation_seconds: float = OPERATION_SECONDS,
    ) -> None:
        options = {"api_endpoint": target.endpoints.run} if target.endpoints.run else None
        self._services = run_v2.ServicesClient(credentials=credentials, transport="rest", client_options=options)
        self._revisions = run_v2.RevisionsClient(credentials=credentials, transport="rest", client_options=options)
        self._target = target
        self._clock = clock
        self._sleep = sleep
        self._operation_seconds = operation_seconds

    def service(self) -> run_v2.Service | None:
        """The service as it is now; None where there is none."""
        return self._found(
            "read the service", lambda: self._services.get_service(name=self._target.name, **self._limits)
        )

    def revision(self, name: str) -> run_v2.Revision | None:
        """One revision by its short name; None where there is none."""
        full = f"{self._target.name}/revisions/{name}"
        return self._found("read a revision", lambda: self._revisions.get_revision(name=full, **self._limits))

    def revisions(self) -> list[run_v2.Revision]:
        """All revisions, newest first."""
        found: list[run_v2.Revision] = self._ask(
            "list the revisions",
            lambda: list(self._revisions.list_revisions(parent=self._target.name, **self._limits)),
        )
        return sorted(found, key=lambda revision: revision.create_time, reverse=True)

    def everybody(self) -> str:
        """Which member that stands for everybody IAM lets use the service; "" where none does."""
        request = iam_policy_pb2.GetIamPolicyRequest(resource=self._target.name)
        policy = self._ask(
            "see who may call the service", lambda: self._services.get_iam_policy(request=request, **self._limits)
        )
        members = {member for binding in policy.bindings for member in binding.members}
        return next((member for member in _EVERYBODY if member in members), "")

    def create(self, service: run_v2.Service, reached: Callable[[run_v2.Service], bool]) -> run_v2.Service:
        """Create the service and wait until it is as asked; ``reached`` says whether it is."""

        def create(_present: run_v2.Service | None) -> Any:
            return self._services.create_service(
                parent=self._target.parent, service=service, service_id=self._target.service, **self._limits
            )

        return self._write("create the service", create, None, reached, new_revision=True)

    def update(
        self, service: run_v2.Service, mask: Sequence[str], reached: Callable[[run_v2.Service], bool]
    ) -> run_v2.Service:
        """Write the fields ``mask`` of ``service`` over the generation it was read as, and wait until it is as asked.

        Raises
        ------
        RefusedError : the service was changed since it was read, or Cloud Run refuses the change
        SourceError : no answer, or the change has not ended in time
        """

        def update(present: run_v2.Service | None) -> Any:
            service.etag = present.etag if present else service.etag
            request = run_v2.UpdateServiceRequest(service=service, update_mask={"paths": list(mask)})
            return self._services.update_service(request=request, **self._limits)

        if not mask:  # to Cloud Run no mask means all fields
            return service
        new_revision = "template" in mask
        return self._write("change the service", update, service.generation, reached, new_revision=new_revision)

    def delete(self, service: run_v2.Service) -> None:
        """Delete the service, unless it was changed since it was read."""
        request = run_v2.DeleteServiceRequest(name=service.name, etag=service.etag)
        operation = self._found(
            "delete the service", lambda: self._services.delete_service(request=request, **self._limits)
        )
        if operation is None:  # the answer to an earlier attempt was lost
            return
        if failure := self._await(operation.operation):
            raise RefusedError(f"Cloud Run could not delete {self._target.service}: {failure}")

    def delete_revision(self, revision: run_v2.Revision) -> bool:
        """Delete a revision that serves nobody; False where Cloud Run keeps it (the latest one always stays)."""
        try:
            self._ask("delete a revision", lambda: self._revisions.delete_revision(name=revision.name, **self._limits))
        except RefusedError as refusal:
            if isinstance(refusal.__cause__, exceptions.BadRequest | exceptions.NotFound):
                return False
            raise
        return True

    @property
    def _limits(self) -> dict[str, Any]:
        return {"timeout": _CALL_SECONDS, "retry": None}

    def _found(self, what: str, call: Callable[[], T]) -> T | None:
        try:
            return self._ask(what, call)
        except RefusedError as refusal:
            if isinstance(refusal.__cause__, exceptions.NotFound):
                return None
            raise

    def _ask(self, what: str, call: Callable[[], T]) -> T:
        """The answer, asked for again as long as there is none."""
        pauses = iter(_PAUSES)
        while True:
            try:
                return self._once(what, call)
            except SourceError as silence:
                if isinstance(silence, RefusedError) or not self._paused(silence, pauses):
                    raise

    def _once(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except _SILENCE as error:
            raise SourceError(
                f"Cloud Run did not {what} ({_said(error)}): check the network, then run the same command again"
            ) from error
        except exceptions.Forbidden as error:
            raise RefusedError(
                f"this account may not {what}: {_said(error)}: grant it roles/run.developer on the service "
                f"{self._target.service} (or the project, to make it), and roles/iam.serviceAccountUser on "
                f"{self._target.service_account}"
            ) from error
        except exceptions.GoogleAPICallError as error:
            raise RefusedError(f"Cloud Run refused to {what}: {_said(error)}") from error
        except GoogleAuthError as error:
            raise SourceError(
                f"cannot {what} without credentials ({_said(error)}): gcloud auth application-default login"
            ) from error

    def _paused(self, silence: SourceError, pauses: Any) -> bool:
        """Wait before the next attempt as long as the answer asked for; False when it is time to give up."""
        if not isinstance(silence.__cause__, (*_SILENCE, exceptions.Conflict)) or (pause := next(pauses, None)) is None:
            return False
        asked = retry_after(getattr(getattr(silence.__cause__, "response", None), "headers", {}))
        self._sleep(min(pause if asked is None else asked, LONGEST_PAUSE))
        return True

    def _write(
        self,
        what: str,
        call: Callable[[run_v2.Service | None], Any],
        generation: int | None,
        reached: Callable[[run_v2.Service], bool],
        *,
        new_revision: bool,
    ) -> run_v2.Service:
        pauses = iter(_PAUSES)
        while True:
            present = self.service()
            if (present.generation if present else None) != generation:
                if present is not None and reached(present):  # an earlier attempt's answer was lost
                    return self._settled(present, "", new_revision)
                raise RefusedError(
                    f"{self._target.service} was changed by someone else meanwhile: look at release-status, then run "
                    "the same command again"
                )
            try:
                operation = self._once(what, lambda: call(present))  # noqa: B023
            except SourceError as error:
                cause = error.__cause__
                overtaken = isinstance(cause, exceptions.Conflict) and self._is_newer(present)
                if not (overtaken or isinstance(cause, _SILENCE)) or not self._paused(error, pauses):
                    raise
                continue
            failure = self._await(operation.operation)
            after = self.service()
            if after is None or not reached(after):
                raise RefusedError(
                    f"Cloud Run did {what}, but {self._target.service} is not as asked: someone else changed it "
                    "meanwhile; look at release-status, then run the same command again"
                )
            return self._settled(after, failure, new_revision)

    def _is_newer(self, than: run_v2.Service | None) -> bool:
        """Whether the service has another etag by now, which is why a write was refused."""
        now = self.service()
        return now is not None and (than is None or now.etag != than.etag)

    def _await(self, operation: operations_pb2.Operation) -> str:
        """Wait until the operation has ended; why it failed, "" where it did not.

        An account that may change this one service may not be allowed to see the project's operations: then the
        service itself tells (:meth:`_settled`).
        """
        deadline, pause = self._clock() + self._operation_seconds, _POLL_SECONDS[0]
        while not operation.done:
            if self._clock() >= deadline:
                raise SourceError(
                    f"Cloud Run's operation {operation.name} has not ended within {self._operation_seconds:g} s: "
                    "look at the service's page in the console, then run the same command again"
                )
            self._sleep(pause)
            pause = min(1.5 * pause, _POLL_SECONDS[1])
            question = operations_pb2.GetOperationRequest(name=operation.name)
            try:
                operation = self._ask(
                    "tell how a change goes",
                    lambda: self._services.get_operation(question, timeout=_CALL_SECONDS, retry=None),  # noqa: B023
                )
            except RefusedError as refusal:
                if isinstance(refusal.__cause__, exceptions.Forbidden):
                    return ""
                raise
        return str(operation.error.message) if operation.HasField("error") else ""

    def _settled(self, service: run_v2.Service, failure: str, new_revision: bool) -> run_v2.Service:
        """``service`` once what was asked of it is what is; a RefusedError where that failed.

        The service as a whole counts as failed as long as its newest revision does, even where no request ever goes
        there. So of a change that makes no revision it is looked at whether the traffic flows as asked.
        """
        deadline, pause = self._clock() + self._operation_seconds, _POLL_SECONDS[0]
        while service.reconciling:
            if self._clock() >= deadline:
                raise SourceError(
                    f"{self._target.service} has not settled within {self._operation_seconds:g} s: look at its page in "
                    "the console, then run the same command again"
                )
            self._sleep(pause)
            pause = min(1.5 * pause, _POLL_SECONDS[1])
            service = self.service() or service
        if service.terminal_condition.state == run_v2.Condition.State.CONDITION_FAILED:
            failure = failure or service.terminal_condition.message
        if not in_effect(service) or (new_revision and failure):
            raise RefusedError(f"Cloud Run could not carry out the change: {failure or 'it gives no reason'}")
        return service


def _said(error: BaseException) -> str:
    return " ".join(str(getattr(error, "message", "") or error).split()) or type(error).__name__


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asked to wait (RFC 9110, section 10.2.3); None where it says none, or a date."""
    said = headers.get("Retry-After", "")
    return float(said) if re.fullmatch(r"\d{1,6}(\.\d+)?", said) else None
