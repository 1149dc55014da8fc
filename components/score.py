"""Search step 3, once per setting: train a few seeds on the training part, score them on the validation part."""

from kfp import dsl

from components.image import BASE_IMAGE, IMAGE


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def score(features: dsl.Input[dsl.Dataset], values: dict, seeds: int, steps: int, store: str) -> dict:
    """Say what one setting came to: its values and scores, or why it could not be trained.

    Args:
        features: What ingest prepared.
        values: One point of the search space.
        seeds: Policies to train with it.
        steps: Environment steps of each.
        store: Folder or gs:// URI that holds trials/.
    """
    from datetime import UTC, datetime
    from pathlib import Path

    from layer3.agent.bars import load_bars
    from layer3.errors import HimariError, LostWorkerError
    from layer3.experiments.market import Market
    from layer3.experiments.scoring import note, train_and_score
    from layer3.machine import compute_device

    market = Market(*load_bars(Path(features.path)))
    numbers = range(1, seeds + 1)
    result, refusal = None, ""
    try:
        result = train_and_score(market.bars, values, seeds=numbers, steps=steps, device=compute_device())
    except LostWorkerError:
        raise
    except HimariError as error:
        refusal = str(error)
    note(store, market.data, market.bars, values, result, seeds=numbers, steps=steps, now=datetime.now(UTC))
    scores = result.scores if result else {}
    print(refusal or f"Validation reward of {seeds} seeds: {scores['reward']}")
    return {"values": values, "scores": scores, "refusal": refusal}
