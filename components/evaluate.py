"""Step 3: judge the policy on the held-out period, and gather the evidence."""

from typing import List  # noqa: UP035 (kfp knows no other list of artifacts)

from kfp import dsl

from components.artifacts import log_metrics, metadata, place
from components.image import BASE_IMAGE, IMAGE
from components.live import progress


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def evaluate(
    candles: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    walks: dsl.Input[List[dsl.Model]],  # noqa: UP006
    sizing: str,
    store: str,
    seed: int,
    evaluation: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Walk the test part once beside Kelly only, buy and hold, flat and the champion; then every statistic and control.

    Args:
        candles: What ingest checked.
        features: What ingest prepared of them.
        model: The trained policy, which never saw the test part.
        walks: Every group of folds of the walk-forward.
        sizing: Text of a YAML file like config/sizing.yaml, as ingest had it.
        store: Folder or gs:// URI that holds models/, channels/ and trials/.
        seed: Seed of every random draw.
    """
    from pathlib import Path

    from layer3 import judging
    from layer3.backtest.tables import missing_sections

    def tell(section: str, done: int, total: int) -> None:
        print(f"{section.replace('_', ' ')} ({done + 1} of {total})", flush=True)
        progress(done, total)

    result = judging.judge_policy(
        Path(candles.path),
        Path(features.path),
        Path(model.path),
        walks=[Path(walk.path) for walk in walks],
        sizing=sizing,
        store=store,
        seed=seed,
        on_progress=tell,
    )
    result.save(place(evaluation))
    evaluation.metadata.update(metadata(result.context))
    figures = {f"{track}_{name}": value for track, row in result.metrics.items() for name, value in row.items()}
    log_metrics(metrics, figures)
    for sections, why in missing_sections(result.evidence):
        print(f"WARNING: no {sections.lower()}: {why}")
    ratios = {
        track.replace("_", " "): "n/a" if row["sharpe"] is None else f"{row['sharpe']:+.2f}"
        for track, row in result.metrics.items()
    }
    print("Sharpe: " + ", ".join(f"{track} {ratio}" for track, ratio in ratios.items()))
