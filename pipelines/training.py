"""The training pipeline: ingest, train and walk forward, evaluate, gate, then deploy or reject; notify in any case."""

from kfp import dsl

from components.allot import allot
from components.deploy import deploy
from components.evaluate import evaluate
from components.gate import gate
from components.ingest import ingest
from components.notify import notify
from components.reject import reject
from components.train import train
from components.walk import walk

NAME = "himari-training"

#: Groups of folds that are trained at once, each on a machine of its own.
PARALLEL = 6


@dsl.pipeline(name=NAME, description="Train a sizing policy, judge it on held-out data, release it only on evidence.")
def training(
    store: str,
    data: str = "synthetic:default",
    symbol: str = "SYNTH-USD",
    data_version: str = "",
    seed: int = 1,
    train_steps: int = 500_000,
    members: int = 1,
    sharpe_threshold: float = 1.0,
    serving_image: str = "himari-serving:unset",
    sizing: str = "",
    folds: int = 18,
    fold_seeds: int = 5,
    fold_groups: int = 6,
    fold_kind: str = "rolling",
    gate_limits: str = "",
    override_name: str = "",
    override_reason: str = "",
) -> None:
    """From candles to a served policy.

    1. ingest: load and check candles, compute features, signals and base fractions once
    2. train: PPO on the first 60 % of the time (4 vCPU, 15 GB, one T4)
    3. walk, once per group of folds: a policy per fold and seed, each judged on what came after (as train)
    4. evaluate: one sequential walk over the last quarter, against what must be beaten, and all evidence
    5. gate: every criterion with value and limit; verdict and tear sheet
    6. if passed, deploy: start beside, smoke, parity, switch; else reject: say why
    7. notify: the exit handler

    Args:
        store: Folder or gs:// URI that holds runs/, models/ and channels/.
        data: Path or gs:// URI of candles, exchange:SYMBOL, or synthetic:NAME.
        symbol: Name of the market.
        data_version: A file's sha256, or the end of an exchange's window; pins what ingest may serve from cache.
        seed: Seed of the training; an ensemble's members take the numbers from it on.
        train_steps: Environment steps of the training.
        members: Policies that are trained together, and whose mean is the answer.
        sharpe_threshold: Least annualised Sharpe ratio that the gate asks, where gate_limits is empty.
        serving_image: Image that serves policies, for the model registry.
        sizing: Text of a YAML file like config/sizing.yaml; the defaults where it is empty.
        folds: Of the walk-forward; 0 for none.
        fold_seeds: Policies per fold.
        fold_groups: Most machines that the folds are spread over; one trains them all together.
        fold_kind: rolling or expanding training windows.
        gate_limits: Text of a YAML file like config/gate.yaml; the defaults where it is empty.
        override_name: Who releases the candidate whatever the criteria say; empty for nobody.
        override_reason: Why.
    """
    run_id = dsl.PIPELINE_JOB_NAME_PLACEHOLDER
    last_word = notify(run_id=run_id, store=store)
    last_word.set_display_name("Notify").set_caching_options(False)

    with dsl.ExitHandler(last_word, name="workflow"):
        ingested = ingest(data=data, symbol=symbol, data_version=data_version, sizing=sizing)
        ingested.set_display_name("Ingest candles")

        trained = train(
            features=ingested.outputs["features"], seed=seed, steps=train_steps, members=members, store=store
        )
        trained.set_display_name("Train policy")
        trained.set_cpu_limit("4").set_memory_limit("15G")
        trained.set_accelerator_type("NVIDIA_TESLA_T4").set_accelerator_limit(1)
        trained.set_retry(num_retries=2, backoff_duration="2s", backoff_factor=2.0)

        shares = allot(features=ingested.outputs["features"], folds=folds, kind=fold_kind, groups=fold_groups)
        shares.set_display_name("Allot folds")
        with dsl.ParallelFor(shares.output, parallelism=PARALLEL, name="folds") as group:
            walked = walk(
                features=ingested.outputs["features"],
                group=group,
                folds=folds,
                kind=fold_kind,
                seeds=fold_seeds,
                seed=seed,
                steps=train_steps,
                store=store,
            )
            walked.set_display_name("Walk forward")
            walked.set_cpu_limit("4").set_memory_limit("15G")
            walked.set_accelerator_type("NVIDIA_TESLA_T4").set_accelerator_limit(1)
            walked.set_retry(num_retries=2, backoff_duration="2s", backoff_factor=2.0)

        judged = evaluate(
            candles=ingested.outputs["candles"],
            features=ingested.outputs["features"],
            model=trained.outputs["model"],
            walks=dsl.Collected(walked.outputs["policies"]),
            sizing=sizing,
            store=store,
            seed=seed,
        )
        # The champion and the ledger of trials change without its arguments changing.
        judged.set_display_name("Evaluate on held-out data").set_caching_options(False)

        gated = gate(
            evaluation=judged.outputs["evaluation"],
            sharpe_threshold=sharpe_threshold,
            limits=gate_limits,
            override_name=override_name,
            override_reason=override_reason,
        )
        gated.set_display_name("Gate").set_caching_options(False)

        with dsl.If(gated.outputs["Output"] == True, name="passed"):  # noqa: E712 (builds a condition)
            shipped = deploy(
                model=trained.outputs["model"],
                verdict=gated.outputs["verdict"],
                store=store,
                run_id=run_id,
                serving_image=serving_image,
            )
            shipped.set_display_name("Deploy").set_caching_options(False)
        with dsl.Else(name="failed"):
            refused = reject(verdict=gated.outputs["verdict"], run_id=run_id)
            refused.set_display_name("Reject").set_caching_options(False)
