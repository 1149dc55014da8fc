"""Step 3: judge the policy on the held-out period against Kelly only, buy and hold, and flat."""

from kfp import dsl

from components.artifacts import log_metrics, metadata, place
from components.image import BASE_IMAGE, IMAGE


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def evaluate(
    features: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Walk the test part once, sequentially; the policy never saw it.

    Args:
        features: What ingest prepared.
        model: The trained policy.
    """
    from pathlib import Path

    from layer3 import workflow

    result = workflow.judge_policy(Path(features.path), Path(model.path))
    result.save(place(evaluation))
    evaluation.metadata.update(metadata(result.context))
    figures = {f"{track}_{name}": value for track, row in result.metrics.items() for name, value in row.items()}
    log_metrics(metrics, figures)
    ratios = {
        track.replace("_", " "): "n/a" if row["sharpe"] is None else f"{row['sharpe']:+.2f}"
        for track, row in result.metrics.items()
    }
    print("Sharpe: " + ", ".join(f"{track} {ratio}" for track, ratio in ratios.items()))
