"""The tuning pipeline: ingest, propose, then train and score every setting side by side, and compare."""

from kfp import dsl

from components.compare import compare
from components.ingest import ingest
from components.propose import propose
from components.score import score
from pipelines.machines import t4

NAME = "himari-tuning"

#: Settings that are trained at once, each on a machine of its own.
PARALLEL = 4


@dsl.pipeline(name=NAME, description="Score settings of the sizing policy on validation data; nothing is released.")
def tuning(
    store: str,
    data: str = "synthetic:default",
    symbol: str = "SYNTH-USD",
    data_version: str = "",
    trials: int = 20,
    seeds: int = 3,
    train_steps: int = 500_000,
    search_seed: int = 1,
    sizing: str = "",
) -> None:
    """From candles to one page of settings with intervals over seeds. The test part is not looked at.

    1. ingest: load and check candles, compute features, signals and base fractions once
    2. propose: points of the search space, the defaults first
    3. score, once per setting: train its seeds, score them on the validation part (4 vCPU, 15 GB, one T4)
    4. compare: all of them on one page

    Args:
        store: Folder or gs:// URI that holds runs/ and trials/.
        data: Path or gs:// URI of candles, exchange:SYMBOL, or synthetic:NAME.
        symbol: Name of the market.
        data_version: A file's sha256, or the end of an exchange's window; pins what ingest may serve from cache.
        trials: Settings to try.
        seeds: Policies per setting.
        train_steps: Environment steps of each policy.
        search_seed: Seed of the draws of settings.
        sizing: Text of a YAML file like config/sizing.yaml; the defaults where it is empty.
    """
    ingested = ingest(data=data, symbol=symbol, data_version=data_version, sizing=sizing)
    ingested.set_display_name("Ingest candles")

    proposed = propose(trials=trials, seed=search_seed)
    proposed.set_display_name("Propose settings")

    with dsl.ParallelFor(proposed.output, parallelism=PARALLEL, name="settings") as values:
        scored = t4(score)(
            features=ingested.outputs["features"], values=values, seeds=seeds, steps=train_steps, store=store
        )
        scored.set_display_name("Train and score")

    compared = compare(
        features=ingested.outputs["features"],
        results=dsl.Collected(scored.output),
        seeds=seeds,
        steps=train_steps,
        store=store,
        run_id=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
    )
    # The ledger that it counts grows without its arguments changing.
    compared.set_display_name("Compare").set_caching_options(False)
