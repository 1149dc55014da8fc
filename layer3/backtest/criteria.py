"""The gate's questions one by one, each with its answer in a number and in a sentence.

A value passes exactly where ``value comparison limit`` holds. What is missing, not finite, or outside the
range that such a value can have fails, and its sentence says why. Sentences show as many decimals as it
takes to see the answer in them, and no estimate as a certainty.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from layer3.backtest.limits import GateConfig
from layer3.backtest.record import (
    CHAMPION,
    KELLY_ONLY,
    POLICY,
    Criterion,
    Difference,
    Evaluation,
    Evidence,
)

__all__ = ["ask"]

_INF: Final = math.inf
#: Years of record that nobody will ever have.
_NEVER: Final = 1e6
_Sign = Literal[">=", "<="]


def ask(evaluation: Evaluation, config: GateConfig) -> tuple[Criterion, ...]:
    """Every criterion, in the order in which a reader sees them."""
    questions = (
        _sharpe,
        _trust,
        _track_record,
        _conduct,
        _permutation,
        _kelly,
        _champion,
        _degenerate,
        _leak,
        _walk_forward,
    )
    return tuple(criterion for question in questions for criterion in question(evaluation, config))


def _sharpe(evaluation: Evaluation, config: GateConfig) -> list[Criterion]:
    evidence, ratio = evaluation.evidence, evaluation.metrics.get(POLICY, {}).get("sharpe")
    why = evidence.problems.get("trust", "the returns have no spread (no trades, a flat market), or all was lost")
    give = f" (standard error {_ratio(evidence.trust.standard_error)})" if evidence.trust else ""
    shown = _shown(ratio, ">=", config.sharpe)
    sentence = f"Annualised Sharpe ratio {shown}{give}, at least {config.sharpe:g} asked."
    return [_criterion("sharpe", ratio, ">=", config.sharpe, sentence, why)]


def _trust(evaluation: Evaluation, config: GateConfig) -> list[Criterion]:
    """How far the ratio can be believed: alone, and as the best of many trials."""
    trust = evaluation.evidence.trust
    why = _why(evaluation.evidence, "trust", "the returns are too few, or have no spread")
    likely = trust.probabilistic if trust else None
    chance = _chance(likely, config.probabilistic_sharpe)
    alone = (
        f"Probability {chance} that the true Sharpe ratio is above 0, "
        f"at least {_percent(config.probabilistic_sharpe)} asked."
    )
    known = trust is not None and trust.trials >= 1
    deflated = trust.deflated if trust and known else None
    best = _ratio(trust.trials_sharpe) if trust else ""
    among = (
        f"Probability {_chance(deflated, config.deflated_sharpe)} that the true Sharpe ratio is above what the best of "
        f"{_count(trust.trials if trust else 0, 'trial')} without an edge would show ({best}), "
        f"at least {_percent(config.deflated_sharpe)} asked."
    )
    untold = "nobody knows how many trials there were" if trust and not known else why
    return [
        _criterion("probabilistic_sharpe", likely, ">=", config.probabilistic_sharpe, alone, why, low=0.0, high=1.0),
        _criterion("deflated_sharpe", deflated, ">=", config.deflated_sharpe, among, untold, low=0.0, high=1.0),
    ]


def _track_record(evaluation: Evaluation, config: GateConfig) -> list[Criterion]:
    """Months of record against the minimum track record length at 95 %, and against the plain minimum."""
    trust, least = evaluation.evidence.trust, config.min_record_months
    years = _sound(trust.years, 0.0, _NEVER) if trust else None
    needed = _sound(trust.years_needed, 0.0, _NEVER) if trust else None
    why = _why(evaluation.evidence, "trust", "how long the record is, is not known")
    if trust and years is not None and trust.sharpe is None:
        why = "the returns are too few, or have no spread, or all was lost"
    elif trust and years is not None:
        why = f"at a Sharpe ratio of {_ratio(trust.sharpe)} no length of record would show that the true one is above 0"
    if years is None or needed is None:
        return [_criterion("track_record", None, ">=", least, "", why)]
    months, limit = 12.0 * years, max(12.0 * needed, least)
    more = max(math.ceil(limit - months), 0)
    sentence = (
        f"{months:.1f} months of record; to tell this Sharpe ratio from 0 at 95% takes {12.0 * needed:,.1f}, and at "
        f"least {least:g} are asked" + (f": this record would need {_count(more, 'more month')}." if more else ".")
    )
    return [_criterion("track_record", months, ">=", limit, sentence, why)]


def _conduct(evaluation: Evaluation, config: GateConfig) -> list[Criterion]:
    """How far it fell, and how often it traded."""
    policy = evaluation.metrics.get(POLICY, {})
    why = evaluation.evidence.problems.get("trust", "it is not among the record's metrics")
    fall, trades = policy.get("max_drawdown"), policy.get("trades")
    fallen = _shown(fall, "<=", config.max_drawdown, digits=1, percent=True)
    allowed = f"Largest fall from a peak {fallen}, at most {_percent(config.max_drawdown)} allowed."
    closed = f"{_shown(trades, '>=', config.trades, digits=0)} closed round trips, at least {config.trades:,} asked."
    return [
        _criterion("max_drawdown", fall, "<=", config.max_drawdown, allowed, why, low=0.0),
        _criterion("trades", trades, ">=", config.trades, closed, why, low=0.0),
    ]


def _permutation(evaluation: Evaluation, config: GateConfig) -> list[Criterion]:
    """The largest p value over both kinds of permutation: the edge must not survive either."""
    evidence, limit = evaluation.evidence, config.permutation_p
    kinds = {made.kind for made in evidence.permutations if len(made.values) >= config.permutation_paths}
    short = next((made for made in evidence.permutations if len(made.values) < config.permutation_paths), None)
    if short is not None or not {"bars", "blocks"} <= kinds:
        why = f"price paths of permuted {'blocks' if 'bars' in kinds else 'bars'} are missing"
        if short is not None:
            least = config.permutation_paths
            why = f"{_count(len(short.values), 'path')} of permuted {short.kind}, at least {least:,} are needed"
        return [_criterion("permutation_p", None, "<=", limit, "", _why(evidence, "permutations", why))]
    # Not by max alone: comparing with a p value that is not a number is false either way.
    unsound = [made for made in evidence.permutations if _sound(made.p, 0.0, 1.0) is None]
    worst = unsound[0] if unsound else max(evidence.permutations, key=lambda made: made.p)
    as_good = sum(value >= worst.real for value in worst.values)
    # Of very many paths three decimals would show 0, which no p value is.
    shown = _shown(worst.p, "<=", limit, digits=3 if worst.p >= 0.001 else 7)
    what = "single bars" if worst.kind == "bars" else f"blocks of {worst.block_bars} bars"
    sentence = (
        f"With {what} of the price path in random order the policy did as well on {as_good:,} of "
        f"{len(worst.values):,} paths: p {shown}, at most {limit:g} allowed."
    )
    return [
        _criterion("permutation_p", worst.p, "<=", limit, sentence, "its p value is no probability", low=0.0, high=1.0)
    ]


def _kelly(evaluation: Evaluation, config: GateConfig) -> list[Criterion]:
    """What the policy adds to the chain with multiplier 1 on the same bars, by its claim."""
    evidence = evaluation.evidence
    difference = _against(evidence, KELLY_ONLY)
    why = _why(
        evidence, "differences", "Kelly only was not compared with, or one of the two has no Sharpe ratio on these bars"
    )
    if config.claim == "return":
        low = difference.sharpe.low if difference else None
        if low == 0.0:
            # "Above 0" is asked; a bootstrap's quantile is 0 to the last digit only where most bars are the same.
            low, why = None, "policy and Kelly only did the same on too many bars to tell them apart"
        sentence = f"{_compared(difference, 'Kelly only')}; the lower end must be above 0."
        return [_criterion("versus_kelly", low, ">=", 0.0, sentence, why)]
    limit = 1.0 - config.risk_reduction
    ratio = difference.volatility if difference else None
    less = (
        f"Volatility {_shown(ratio, '<=', limit, digits=1, percent=True)} of Kelly only's, "
        f"at most {_percent(limit)} allowed."
    )
    return [
        *_not_worse("kelly", difference, "Kelly only", config.margin, why),
        _criterion("less_risk", ratio, "<=", limit, less, why, low=0.0),
    ]


def _champion(evaluation: Evaluation, config: GateConfig) -> list[Criterion]:
    """Not worse than what serves; where nothing serves the difference to it counts as 0."""
    evidence = evaluation.evidence
    difference = _against(evidence, CHAMPION)
    if "champion" in evidence.problems:
        return _not_worse("champion", None, "", config.margin, _why(evidence, "champion", ""))
    if difference is None and evidence.champion is None:
        nobody = "There is no champion yet: nothing to be worse than."
        return [_criterion("versus_champion", 0.0, ">=", 0.0, nobody, "")]
    name = f"the champion {evidence.champion or ''}".rstrip()
    otherwise = f"{name} was not compared with on the same bars"
    if difference:
        otherwise = f"the policy or {name} has no Sharpe ratio on these bars"
    return _not_worse("champion", difference, name, config.margin, _why(evidence, "differences", otherwise))


def _not_worse(other: str, difference: Difference | None, name: str, margin: float, why: str) -> list[Criterion]:
    """Not shown to be worse, and not by more than ``margin`` at worst: a record too short to tell shows nothing."""
    low, high = (difference.sharpe.low, difference.sharpe.high) if difference else (None, None)
    level = f"{difference.sharpe.level:.0%}" if difference else ""
    least = 0.0 - margin
    shown = f"{_compared(difference, name)}; the upper end must not be below 0."
    at_worst = (
        f"Against {name} at worst {_shown(low, '>=', least)}, the lower end of the {level} interval; "
        f"at least {least:g} asked."
    )
    return [
        _criterion(f"versus_{other}", high, ">=", 0.0, shown, why),
        _criterion(f"{other}_margin", low, ">=", least, at_worst, why),
    ]


def _degenerate(evaluation: Evaluation, config: GateConfig) -> list[Criterion]:
    """A policy that decides nothing is no policy, whatever its record."""
    evidence = evaluation.evidence
    found = evidence.degeneracy
    why = _why(evidence, "degeneracy", "the chain held nothing, so nothing was decided")
    spread = found.spread if found else None
    varies = (
        f"The multiplier's standard deviation is {_shown(spread, '>=', config.spread, digits=3)}, "
        f"at least {config.spread:g} asked of a policy that decides anything."
    )
    findings = found.findings if found else ()
    wrong = " ".join(map(_ended, findings)) or "Nothing speaks against the policy's decisions being its own."
    count = float(len(findings)) if found else None
    return [
        _criterion("not_degenerate", spread, ">=", config.spread, varies, why, low=0.0),
        _criterion("degeneracy_findings", count, "<=", 0.0, wrong, why),
    ]


def _leak(evaluation: Evaluation, _: GateConfig) -> list[Criterion]:
    """Nothing may depend on what came after it."""
    leak = evaluation.evidence.leak
    why = _why(evaluation.evidence, "leak", "nothing was computed again on truncated data")
    compared = leak is not None and leak.compared and leak.cuts
    differs = float(len(leak.differs)) if leak and compared else None
    again = f"computed again on data cut off at {_count(len(leak.cuts), 'bar')}" if leak else ""
    if differs and leak:
        named = ", ".join(leak.differs)
        sentence = f"{named[:1].upper()}{named[1:]}: {again}, and not the same, so the future is in them."
    else:
        what = _count(len(leak.compared) if leak else 0, "series")
        sentence = f"Signals, features, states and decisions ({what}) were {again}, and the same to the last bit."
    return [_criterion("no_leak", differs, "<=", 0.0, sentence, why)]


def _walk_forward(evaluation: Evaluation, config: GateConfig) -> list[Criterion]:
    """The procedure, over many policies: one lucky candidate is not enough."""
    asked = config.walk_forward
    if not asked.required:
        return []
    walk, limit = evaluation.evidence.walk_forward, asked.probabilistic_sharpe
    why = _why(evaluation.evidence, "walk_forward", "its stitched record has no Sharpe ratio that could be judged")
    likely = walk.trust.probabilistic if walk else None
    ratio = _ratio(walk.trust.sharpe) if walk else ""
    made = f"{_count(len(walk.folds), 'fold')} and {_count(len(walk.seeds), 'seed')}" if walk else ""
    sentence = (
        f"Stitched from {made}, the procedure's record shows a Sharpe ratio of {ratio}: probability "
        f"{_chance(likely, limit)} that its true one is above 0, at least {_percent(limit)} asked."
    )
    return [_criterion("walk_forward", likely, ">=", limit, sentence, why, low=0.0, high=1.0)]


def _criterion(
    name: str,
    value: float | None,
    comparison: _Sign,
    limit: float,
    sentence: str,
    why: str,
    *,
    low: float = -_INF,
    high: float = _INF,
) -> Criterion:
    """The answer; a value that is missing, not finite or outside [low, high] fails, because of ``why``."""
    sound = _sound(value, low, high)
    if sound is None:
        return Criterion(name, None, comparison, limit, False, f"Could not be computed, so it fails: {_ended(why)}")
    return Criterion(name, sound, comparison, limit, _holds(sound, comparison, limit), sentence)


def _sound(value: float | None, low: float, high: float) -> float | None:
    """The value where it is a number that it can be."""
    return float(value) if value is not None and math.isfinite(value) and low <= value <= high else None


def _holds(value: float, comparison: _Sign, limit: float) -> bool:
    return value >= limit if comparison == ">=" else value <= limit


def _why(evidence: Evidence, section: str, otherwise: str) -> str:
    """What the evidence says about its section; ``otherwise`` where the section is there and lacks one number."""
    missing = f"the evidence has no section {section!r}" if not getattr(evidence, section) else otherwise
    return evidence.problems.get(section, missing)


def _ended(sentence: str) -> str:
    text = " ".join(sentence.split())
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _against(evidence: Evidence, track: str) -> Difference | None:
    return next((difference for difference in evidence.differences if difference.against == track), None)


def _compared(difference: Difference | None, name: str) -> str:
    if difference is None:
        return ""
    interval = difference.sharpe
    estimate, low, high = (_ratio(value, sign="+") for value in (interval.estimate, interval.low, interval.high))
    return f"Sharpe ratio {estimate} against {name} on the same bars, {interval.level:.0%} interval {low} to {high}"


def _shown(value: float | None, comparison: _Sign, limit: float, *, digits: int = 2, percent: bool = False) -> str:
    """The value with the decimals at which it still answers as it does: 0.9499 never reads 0.95 beside 0.95."""
    if value is None or not math.isfinite(value):
        return "n/a"
    scale, unit = (100.0, "%") if percent else (1.0, "")
    for places in range(digits, 18):
        text = f"{value * scale:,.{places}f}"
        if _holds(float(text.replace(",", "")), comparison, limit * scale) == _holds(value, comparison, limit):
            break
    return text + unit


def _chance(value: float | None, limit: float) -> str:
    """An estimated probability against the least one asked: never as a certainty, which no finite record gives."""
    if value is None or not 0.0 <= value <= 1.0:
        return "n/a"
    if value > 0.999:
        return "above 99.9%" if limit <= 0.999 or value >= limit else _shown(value, ">=", limit, digits=1, percent=True)
    return "below 0.1%" if value < 0.001 else _shown(value, ">=", limit, digits=1, percent=True)


def _percent(limit: float) -> str:
    return f"{limit * 100.0:.12g}%"


def _ratio(value: float | None, sign: Literal["", "+"] = "") -> str:
    return f"{value:{sign}.2f}" if value is not None and math.isfinite(value) else "n/a"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 or what.endswith("s") else "s")
