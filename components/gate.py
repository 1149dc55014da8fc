"""Step 4: the verdict, criterion by criterion, and the tear sheet that shows it."""

from kfp import dsl

from components.artifacts import place
from components.image import BASE_IMAGE, IMAGE


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def gate(
    evaluation: dsl.Input[dsl.Dataset],
    sharpe_threshold: float,
    verdict: dsl.Output[dsl.Markdown],
    tear_sheet: dsl.Output[dsl.HTML],
) -> bool:
    """Say whether the candidate may be released.

    The answer is the one unnamed output: a condition on a named output is silently false.

    Args:
        evaluation: What evaluate measured.
        sharpe_threshold: Least annualised Sharpe ratio.
    """
    from pathlib import Path

    from layer3.backtest.gate import Limits, judge
    from layer3.backtest.record import Evaluation
    from layer3.backtest.report import render_tear_sheet, render_verdict_markdown

    measured = Evaluation.load(Path(evaluation.path))
    decision = judge(measured, Limits(sharpe=sharpe_threshold))
    place(verdict).write_text(render_verdict_markdown(measured, decision), encoding="utf-8")
    place(tear_sheet).write_text(render_tear_sheet(measured, decision), encoding="utf-8")
    for artifact in (verdict, tear_sheet):
        artifact.metadata.update(
            {
                "passed": decision.passed,
                "model_id": measured.context["model_id"],
                "policy_sha256": measured.context["policy_sha256"],
                "synthetic": measured.context["synthetic"],
            }
        )
    verdict.metadata["criteria"] = decision.to_json()["criteria"]
    for criterion in decision.criteria:
        print(f"{'pass' if criterion.passed else 'FAIL'}  {criterion.name:22s} {criterion.sentence}")
    failed = sum(not criterion.passed for criterion in decision.criteria)
    count = len(decision.criteria)
    print(f"Passed: all {count} criteria hold" if decision.passed else f"Rejected: {failed} of {count} criteria failed")
    return decision.passed
