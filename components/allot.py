"""Walk-forward step 1: which folds are trained together on one machine."""

from kfp import dsl

from components.image import BASE_IMAGE, IMAGE


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def allot(features: dsl.Input[dsl.Dataset], folds: int, kind: str, groups: int) -> list:
    """Share the folds out in groups of neighbours; one group of none where there are no folds.

    Args:
        features: What ingest prepared.
        folds: Of the walk-forward; 0 for none.
        kind: rolling or expanding training windows.
        groups: Most machines to use.
    """
    from pathlib import Path

    from layer3.agent.bars import load_bars
    from layer3.backtest.folds import shared_out
    from layer3.errors import EvaluationError
    from layer3.walk_forward import folds_of

    shared = shared_out(folds, groups)
    if not folds:
        print("No walk-forward was asked for")
        return shared
    try:
        planned = folds_of(load_bars(Path(features.path))[0], folds, kind)
        spans = f"{len(planned[0].train):,} bars to train the first, {len(planned[0].test):,} to test each"
    except EvaluationError as error:
        # Whoever trains meets it again, and writes it down for the verdict.
        spans = str(error)
    print(f"{folds} {kind} folds in {len(shared)} group{'s' * (len(shared) > 1)}: {spans}")
    return shared
