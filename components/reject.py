"""Step 5, else: say why the candidate does not ship; nothing that serves is touched."""

from kfp import dsl

from components.artifacts import place
from components.image import BASE_IMAGE, IMAGE


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def reject(verdict: dsl.Input[dsl.Markdown], run_id: str, note: dsl.Output[dsl.Markdown]) -> None:
    """Write down which criteria failed.

    Args:
        verdict: The gate's verdict; one that passed is refused here.
        run_id: This run.
    """
    from layer3.errors import ReleaseError

    if verdict.metadata.get("passed") is not False:
        raise ReleaseError("the verdict is passed: such a candidate is not rejected")
    failed = [criterion for criterion in verdict.metadata["criteria"] if not criterion["passed"]]
    model_id = verdict.metadata["model_id"]
    asked = len(verdict.metadata["criteria"])
    lines = [
        f"# Rejected {model_id}",
        "",
        f"Run {run_id}. {len(failed)} of {asked} criteria failed; what serves is unchanged.",
        "",
        *(f"- {criterion['name']}: {criterion['sentence']}" for criterion in failed),
    ]
    place(note).write_text("\n".join(lines) + "\n", encoding="utf-8")
    note.metadata.update({"model_id": model_id, "failed": [criterion["name"] for criterion in failed]})
    print("\n".join(lines))
    print(f"{len(failed)} of {asked} criteria failed; what serves is unchanged")
