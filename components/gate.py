"""Step 4: the verdict, criterion by criterion, and the tear sheet that shows it."""

from kfp import dsl

from components.artifacts import place
from components.image import BASE_IMAGE, IMAGE


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def gate(
    evaluation: dsl.Input[dsl.Dataset],
    sharpe_threshold: float,
    limits: str,
    override_name: str,
    override_reason: str,
    verdict: dsl.Output[dsl.Markdown],
    tear_sheet: dsl.Output[dsl.HTML],
) -> bool:
    """Say whether the candidate may be released.

    The answer is the one unnamed output: a condition on a named output is silently false.

    Args:
        evaluation: What evaluate measured.
        sharpe_threshold: Least annualised Sharpe ratio, where limits is empty.
        limits: Text of a YAML file like config/gate.yaml, all of whose numbers then hold; the defaults where empty.
        override_name: Who releases the candidate whatever the criteria say; empty for nobody.
        override_reason: Why.
    """
    from dataclasses import replace
    from pathlib import Path

    from layer3.backtest.gate import judge, parse_gate_config, parse_override
    from layer3.backtest.record import Evaluation
    from layer3.backtest.report import render_tear_sheet, render_verdict_markdown

    measured = Evaluation.load(Path(evaluation.path))
    given = parse_gate_config(limits, "limits")
    config = given if limits else replace(given, sharpe=sharpe_threshold)
    decision = judge(measured, config, parse_override(override_name, override_reason))
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
    told = decision.to_json()
    verdict.metadata.update({name: told[name] for name in ("criteria", "limits", "override")})
    for criterion in decision.criteria:
        print(f"{'pass' if criterion.passed else 'FAIL'}  {criterion.name:22s} {criterion.sentence}")
    failed = sum(not criterion.passed for criterion in decision.criteria)
    count = len(decision.criteria)
    if decision.override:
        print(f"WARNING: {failed} of {count} criteria failed, released by {decision.override.name} all the same")
        print(f"Passed by override: {decision.override.reason}")
    elif decision.passed:
        print(f"Passed: all {count} criteria hold")
    else:
        print(f"Rejected: {failed} of {count} criteria failed")
    return decision.passed
