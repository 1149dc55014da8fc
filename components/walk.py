"""Walk-forward step 2, once per group of folds: train a policy per fold and seed, all of the group together."""

from kfp import dsl

from components.artifacts import place
from components.image import BASE_IMAGE, IMAGE
from components.live import progress


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def walk(
    features: dsl.Input[dsl.Dataset],
    group: list,
    folds: int,
    kind: str,
    seeds: int,
    seed: int,
    steps: int,
    store: str,
    policies: dsl.Output[dsl.Model],
) -> None:
    """Train the folds of one group, each on its own window, never on what comes after it.

    What was stopped in the middle goes on from its last checkpoint when it is run again. What cannot be
    trained is written down: the verdict will say so.

    Args:
        features: What ingest prepared.
        group: Numbers of the folds to train, from 1.
        folds: Of the whole walk-forward.
        kind: rolling or expanding training windows.
        seeds: Policies per fold.
        seed: Seed of the first of them; the others follow it.
        steps: Environment steps of each policy.
        store: Folder or gs:// URI that holds checkpoints/ and trials/.
    """
    from pathlib import Path

    from layer3 import walk_forward
    from layer3.machine import compute_device

    # Numbers in lists arrive as floats.
    numbers = [int(number) for number in group]
    made = walk_forward.train_folds(
        Path(features.path),
        place(policies),
        group=numbers,
        folds=folds,
        kind=kind,
        seeds=range(seed, seed + seeds),
        steps=steps,
        store=store,
        device=compute_device() if numbers else "cpu",
        on_progress=lambda report: progress(report.steps, report.total_steps),
    )
    policies.metadata.update({"folds": numbers, "kind": kind, "seeds": list(made.seeds), "refusal": made.refusal})
    if made.refusal:
        print(f"WARNING: {made.refusal}")
    print(f"{len(made.folds)} {kind} folds x {seeds} seeds, {steps:,} steps each" if made.folds else "No folds trained")
