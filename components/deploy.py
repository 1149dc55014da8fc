"""Step 5, if passed: put the candidate into service, or leave the champion untouched."""

from google_cloud_pipeline_components.types import artifact_types
from kfp import dsl

from components.artifacts import metadata, place
from components.image import BASE_IMAGE, IMAGE


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def deploy(
    model: dsl.Input[dsl.Model],
    verdict: dsl.Input[dsl.Markdown],
    store: str,
    run_id: str,
    serving_image: str,
    released: dsl.Output[artifact_types.UnmanagedContainerModel],
    note: dsl.Output[dsl.Markdown],
    target: str = "",
    vertex: str = "",
    registered: dsl.Input[artifact_types.VertexModel] = None,
) -> None:
    """Start the candidate beside the champion, let it prove itself, then switch: here, or on Cloud Run by a canary.

    Args:
        model: The candidate.
        verdict: The gate's verdict on it; anything but passed is refused here too.
        store: Folder or gs:// URI that holds models/ and channels/.
        run_id: This run.
        serving_image: Image that serves policies, for the Vertex model registry and for Cloud Run.
        target: The Cloud Run service where it is to serve, as JSON (serving.platforms.target); empty for this machine.
        vertex: Where Vertex AI records, as JSON; nothing is recorded where it is empty.
        registered: The candidate in Vertex's model registry, where it becomes the champion.
    """
    from dataclasses import replace
    from pathlib import Path

    from layer3 import storage
    from layer3.agent.policy_file import load_policy
    from layer3.errors import ReleaseError
    from serving.champion_alias import told
    from serving.platforms.connect import connect
    from serving.platforms.target import Target
    from serving.registry import container_spec, promote
    from serving.release import release
    from serving.vertex import place_of

    def say(line: str) -> None:
        print(line, flush=True)

    policy = load_policy(Path(model.path))
    if verdict.metadata.get("passed") is not True:
        raise ReleaseError(f"the verdict on policy {policy.model_id} is not passed: it is not released")
    if verdict.metadata.get("policy_sha256") != policy.manifest["policy_sha256"]:
        raise ReleaseError(f"the verdict is on another policy than {policy.model_id}: run evaluate and gate again")
    platform = connect(replace(Target.from_json(target), image=serving_image), store, log=say) if target else None
    result = release(Path(model.path), store=store, run_id=run_id, platform=platform, patience_seconds=60.0, log=say)
    released.uri = storage.join(store, "models", policy.model_id)
    released.metadata.update(
        {
            "containerSpec": container_spec(serving_image, released.uri),
            "model_id": policy.model_id,
            "policy_sha256": policy.manifest["policy_sha256"],
            "contract": policy.manifest["contract"],
        }
    )
    record = result.to_json()
    del record["steps"]
    note.metadata.update(metadata(record))
    text = result.to_markdown()
    if vertex and registered.metadata["registered"]:
        text += "\n\n" + told(lambda: promote(place_of(vertex), registered.metadata["resourceName"]))
    place(note).write_text(text + "\n", encoding="utf-8")
    print(text)
    done = ", ".join(step.name for step in result.steps)
    print(f"{result.outcome.capitalize()} {result.model_id}" + (f" after {done}" if done else ""))
