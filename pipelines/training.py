"""The training pipeline: ingest, train and walk forward, evaluate, gate, then deploy or reject; notify in any case."""

from typing import Any

from kfp import dsl

from components.allot import allot
from components.deploy import deploy
from components.evaluate import evaluate
from components.gate import gate
from components.ingest import ingest
from components.notify import notify
from components.register import register
from components.reject import reject
from components.train import train
from components.walk import walk
from pipelines.defaults import MEMBERS
from pipelines.machines import Machine, t4

NAME = "himari-training"

#: Groups of folds that are trained at once, each on a machine of its own.
PARALLEL = 6


def build(machine: Machine = t4) -> Any:
    """The pipeline, with ``machine`` to train on."""

    @dsl.pipeline(
        name=NAME, description="Train a sizing policy, judge it on held-out data, release it only on evidence."
    )
    def training(
        store: str,
        data: str = "synthetic:default",
        symbol: str = "SYNTH-USD",
        data_version: str = "",
        seed: int = 1,
        train_steps: int = 500_000,
        members: int = MEMBERS,
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
        target: str = "",
        vertex: str = "",
        register_rejected: bool = False,
    ) -> None:
        """From candles to a served policy.

        1. ingest: load and check candles, compute features, signals and base fractions once
        2. train: PPO on the first 60 % of the time (4 vCPU, 15 GB, one T4)
        3. walk, once per group of folds: a policy per fold and seed, each judged on what came after (as train)
        4. evaluate: one sequential walk over the last quarter, against what must be beaten, and all evidence
        5. gate: every criterion with value and limit; verdict and tear sheet
        6. register: run, parameters and metrics in the experiment, the candidate in the model registry
        7. if passed, deploy: start beside, smoke, parity, switch; else reject: say why
        8. notify: the exit handler

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
            target: The Cloud Run service that is to serve, as JSON; this machine where it is empty.
            vertex: Where Vertex AI records experiments and models, as JSON; nothing is recorded where it is empty.
            register_rejected: Whether a candidate that the gate refuses is registered too, as rejected.
        """
        run_id = dsl.PIPELINE_JOB_NAME_PLACEHOLDER
        last_word = notify(run_id=run_id, store=store, vertex=vertex)
        last_word.set_display_name("Notify").set_caching_options(False)

        with dsl.ExitHandler(last_word, name="workflow"):
            ingested = ingest(data=data, symbol=symbol, data_version=data_version, sizing=sizing)
            ingested.set_display_name("Ingest candles")
            candles, features = ingested.outputs["candles"], ingested.outputs["features"]

            what = {"seed": seed, "steps": train_steps, "store": store}
            trained = machine(train)(features=features, members=members, **what)
            trained.set_display_name("Train policy")
            model = trained.outputs["model"]

            windows = {"folds": folds, "kind": fold_kind}
            shares = allot(features=features, groups=fold_groups, **windows)
            shares.set_display_name("Allot folds")
            with dsl.ParallelFor(shares.output, parallelism=PARALLEL, name="folds") as group:
                walked = machine(walk)(features=features, group=group, seeds=fold_seeds, **windows, **what)
                walked.set_display_name("Walk forward")
            walks = dsl.Collected(walked.outputs["policies"])

            judged = evaluate(
                candles=candles, features=features, model=model, walks=walks, sizing=sizing, store=store, seed=seed
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
            verdict, image = gated.outputs["verdict"], serving_image
            about = {"model": model, "verdict": verdict, "store": store, "run_id": run_id, "vertex": vertex}

            recorded = register(
                learning=trained.outputs["metrics"],
                performance=judged.outputs["metrics"],
                serving_image=image,
                register_rejected=register_rejected,
                **about,
            )
            recorded.set_display_name("Register").set_caching_options(False)

            with dsl.If(gated.outputs["Output"] == True, name="passed"):  # noqa: E712 (builds a condition)
                registered = recorded.outputs["registered"]
                shipped = deploy(serving_image=image, target=target, registered=registered, **about)
                shipped.set_display_name("Deploy").set_caching_options(False)
            with dsl.Else(name="failed"):
                refused = reject(verdict=verdict, run_id=run_id)
                refused.set_display_name("Reject").set_caching_options(False)

    return training
