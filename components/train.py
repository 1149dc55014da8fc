"""Step 2: train the sizing policy with PPO on the training part."""

from kfp import dsl

from components.artifacts import log_metrics, metadata, place
from components.image import BASE_IMAGE, IMAGE


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def train(
    features: dsl.Input[dsl.Dataset],
    seed: int,
    steps: int,
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Train one policy; the same seed and data give the same bytes on the same machine.

    Args:
        features: What ingest prepared.
        seed: Seed of every random draw.
        steps: Environment steps.
    """
    import os
    from pathlib import Path

    import torch

    from layer3 import workflow
    from layer3.agent.ppo import Progress

    live = os.environ.get("HIMARI_PROGRESS") == "1"
    told = 0

    def tell(progress: Progress) -> None:
        nonlocal told
        if live:
            print(f"::progress {progress.steps} {progress.total_steps}", flush=True)
        tenth = 10 * progress.steps // progress.total_steps
        if tenth > told:
            told = tenth
            print(
                f"Steps {progress.steps:,}/{progress.total_steps:,} | Reward {progress.reward:+.4f} | "
                f"Multiplier {progress.multiplier_mean:.2f} ± {progress.multiplier_sd:.2f} | "
                f"Entropy {progress.entropy:+.2f} | KL {progress.kl:.4f} | Time {progress.seconds:.1f} s",
                flush=True,
            )

    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy, figures = workflow.fit(
        Path(features.path), place(model), seed=seed, steps=steps, device=device, on_progress=tell
    )
    log_metrics(metrics, figures)
    kept = {
        name: value for name, value in policy.manifest.items() if name not in {"golden", "metrics", "normalisation"}
    }
    model.metadata.update(metadata({**kept, "device": device, "framework": "numpy + safetensors"}))
    print(f"Policy {policy.model_id}, {steps:,} steps on {device}")
