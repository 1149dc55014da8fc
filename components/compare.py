"""Search step 4: all settings on one page, every mean with its interval over seeds."""

from kfp import dsl

from components.artifacts import place
from components.image import BASE_IMAGE, IMAGE


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def compare(
    features: dsl.Input[dsl.Dataset],
    results: list,
    seeds: int,
    steps: int,
    store: str,
    run_id: str,
    comparison: dsl.Output[dsl.HTML],
) -> None:
    """Write the page; nothing is released by it.

    Args:
        features: What ingest prepared.
        results: What score said of every setting, the defaults first.
        seeds: Policies per setting.
        steps: Environment steps of each.
        store: Folder or gs:// URI that holds trials/.
        run_id: Name of this run.
    """
    from pathlib import Path

    from layer3 import trials
    from layer3.agent.bars import load_bars
    from layer3.backtest.comparison import render_comparison
    from layer3.experiments.market import Market
    from layer3.experiments.report import (
        SHOWN,
        comparison_of,
        in_order,
        rows_of,
        scored_of,
        selection_note,
        terminal_table,
    )
    from layer3.experiments.scoring import references

    market = Market(*load_bars(Path(features.path)))
    scored = scored_of(results)
    measured = references(market.bars)
    page = comparison_of(
        market,
        scored,
        measured,
        seeds=seeds,
        steps=steps,
        trials=trials.count(store, market.data.sha256),
        refused=len(results) - len(scored),
        name=run_id,
    )
    place(comparison).write_text(render_comparison(page), encoding="utf-8")
    comparison.metadata.update({"settings": len(scored), "synthetic": market.synthetic})
    print(terminal_table(rows_of(in_order(scored, SHOWN)), measured))
    print(selection_note(scored))
