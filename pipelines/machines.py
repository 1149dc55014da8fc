"""On what machine a step trains: a step of the pipeline with a T4, or a custom job of its own on spot machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

__all__ = ["Machine", "spot", "t4"]

#: From a component to what makes its task.
Machine = Callable[[Any], Callable[..., Any]]

GPU: Final = "NVIDIA_TESLA_T4"
#: 4 vCPU, 15 GB; the T4 goes with no newer family.
SHAPE: Final = "n1-standard-4"
#: Seconds a custom job may run, restarts included; a training that is cut off goes on from its checkpoint when the
#: step is tried again. On a T4 the defaults (5 seeds of 18 folds on 6 machines) train for minutes.
TIMEOUT_SECONDS: Final = 2 * 3600


def t4(step: Any) -> Callable[..., Any]:
    """A step that runs on an n1-standard-4 with one T4, and is tried again when its machine is lost."""

    def task(**arguments: Any) -> Any:
        made = _retried(step(**arguments))
        return made.set_cpu_limit("4").set_memory_limit("15G").set_accelerator_type(GPU).set_accelerator_limit(1)

    return task


def spot(step: Any) -> Callable[..., Any]:
    """A step that runs as a Vertex custom job on a spot machine, at about a third of the price.

    Vertex restarts it when the machine is taken away, and the step goes on from its newest checkpoint. It runs on
    Vertex only: kfp's local runner knows no custom job.
    """
    # GCPC's own names; its import takes a second that only this choice needs.
    from google_cloud_pipeline_components import _placeholders
    from google_cloud_pipeline_components.v1.custom_job import create_custom_training_job_from_component

    job = create_custom_training_job_from_component(
        step,
        display_name=f"himari-{step.name}",
        machine_type=SHAPE,
        accelerator_type=GPU,
        accelerator_count=1,
        strategy="SPOT",
        restart_job_on_worker_restart=True,
        timeout=f"{TIMEOUT_SECONDS}s",
        # Else it would run as Vertex's own agent, which may not use the bucket.
        service_account=_placeholders.SERVICE_ACCOUNT_PLACEHOLDER,
        labels={"himari-step": step.name},
    )
    return lambda **arguments: _retried(job(**arguments))


def _retried(task: Any) -> Any:
    return task.set_retry(num_retries=2, backoff_duration="2s", backoff_factor=2.0)
