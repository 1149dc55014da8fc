"""Step 2: train the sizing policy with PPO on the training part."""

from kfp import dsl

from components.artifacts import log_metrics, metadata, place
from components.image import BASE_IMAGE, IMAGE
from components.live import progress


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def train(
    features: dsl.Input[dsl.Dataset],
    seed: int,
    steps: int,
    members: int,
    store: str,
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    curves: dsl.Output[dsl.HTML],
    events: dsl.Output[dsl.Artifact],
) -> None:
    """Train one policy; the same seed and data give the same bytes on the same machine.

    What was stopped in the middle goes on from its last checkpoint when it is run again.

    Args:
        features: What ingest prepared.
        seed: Seed of the first member's random draws; the others follow it.
        steps: Environment steps of each member.
        members: Policies in the ensemble; their mean is the answer.
        store: Folder or gs:// URI that holds checkpoints/ and trials/.
    """
    from pathlib import Path

    from layer3 import workflow
    from layer3.agent.checks import memory_needed
    from layer3.agent.environment import EnvironmentConfig
    from layer3.agent.events import EventLog
    from layer3.agent.log import TrainingLog
    from layer3.agent.population import Report
    from layer3.agent.ppo import PPOConfig
    from layer3.machine import compute_device, cores

    names = [f"seed-{number}" for number in range(seed, seed + members)]
    device = compute_device()
    needed = memory_needed(members, PPOConfig(steps=steps), int(features.metadata["rows"]), device, cores())
    print(f"Training {members} x {steps:,} steps on {device}, about {needed / 2**20:.0f} MiB besides torch", flush=True)
    log = TrainingLog(names, EnvironmentConfig().episode_steps, lambda line: print(line, flush=True))
    with EventLog(place(events), names) as written:

        def tell(report: Report) -> None:
            progress(report.steps, report.total_steps)
            log(report)
            written(report)

        fitted = workflow.fit(
            Path(features.path),
            Path(place(model)),
            seed=seed,
            steps=steps,
            members=members,
            device=device,
            store=store,
            on_progress=tell,
        )
    log_metrics(metrics, fitted.metrics)
    manifest = fitted.policy.manifest
    kept = {name: value for name, value in manifest.items() if name not in {"golden", "metrics", "normalisation"}}
    model.metadata.update(metadata({**kept, "device": device, "framework": "numpy + safetensors"}))
    about = {name: model.metadata[name] for name in ("model_id", "symbol", "synthetic", "seed", "data_sha256")}
    curves.metadata.update(about)
    events.metadata.update({**about, "format": "TensorBoard event files, one folder per member"})
    place(curves).write_text(workflow.curves_page(fitted, device), encoding="utf-8")
    if fitted.refusal:
        print(f"Nothing was trained: {fitted.refusal}")
        return
    crowd = f" of {members} members" if members > 1 else ""
    print(f"Policy {fitted.policy.model_id}{crowd}, {steps:,} steps on {device}")
