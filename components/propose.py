"""Search step 2: the settings to try."""

from kfp import dsl

from components.image import BASE_IMAGE, IMAGE


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def propose(trials: int, seed: int) -> list:
    """Draw points of the search space, the defaults first.

    Args:
        trials: How many.
        seed: Seed of the draws.
    """
    from layer3.agent.search import sample

    points = sample(trials, seed)
    print(f"{len(points)} settings, the defaults first")
    return points
