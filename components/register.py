"""Step 5: put the run on record in Vertex AI: its experiment, and its candidate in the model registry."""

from google_cloud_pipeline_components.types import artifact_types
from kfp import dsl

from components.artifacts import place
from components.image import BASE_IMAGE, IMAGE


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def register(
    model: dsl.Input[dsl.Model],
    learning: dsl.Input[dsl.Metrics],
    performance: dsl.Input[dsl.Metrics],
    verdict: dsl.Input[dsl.Markdown],
    store: str,
    run_id: str,
    serving_image: str,
    vertex: str,
    register_rejected: bool,
    registered: dsl.Output[artifact_types.VertexModel],
) -> None:
    """Register the candidate as it was judged, and log the run's parameters and metrics; again is harmless.

    Without Vertex AI nothing is recorded, and the artifact says so.

    Args:
        model: The candidate.
        learning: What train measured.
        performance: What evaluate measured.
        verdict: The gate's verdict on the candidate.
        store: Folder or gs:// URI that holds models/.
        run_id: This run.
        serving_image: Image that serves policies, pinned by digest.
        vertex: Where Vertex AI records, as JSON; nothing is recorded where it is empty.
        register_rejected: Whether a candidate that the gate refused is registered too, as rejected.
    """
    import json
    from pathlib import Path

    from serving import registry
    from serving.experiments import log_run
    from serving.versions import Candidate, Version
    from serving.vertex import place_of

    judged = {name: verdict.metadata[name] for name in ("passed", "model_id", "policy_sha256", "synthetic")}
    version = Version("Not registered: this run has no Vertex AI")
    if vertex:
        where = place_of(vertex)
        candidate = Candidate.of(model.metadata, verdict.metadata, run_id)
        figures = {**learning.metadata, **performance.metadata, "passed": float(judged["passed"])}
        log_run(where, run_id, parameters=model.metadata, metrics=figures)
        version = registry.record(
            where,
            candidate,
            Path(model.path),
            uri=model.uri,
            store=store,
            image=serving_image,
            rejected_too=register_rejected,
        )
    registered.metadata.update({**judged, **version.to_metadata()})
    if version.uri:
        registered.uri = version.uri
    else:
        place(registered).write_text(json.dumps(registered.metadata, indent=1), encoding="utf-8")
    print(version.sentence)
