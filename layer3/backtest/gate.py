"""The gate: a model ships only if every criterion holds; one that cannot be computed fails and says why.

Five criteria are tests at a level of 5 % (the probabilistic and the deflated Sharpe ratio, permutation, the
difference to Kelly only, the walk-forward), and where something serves a sixth: that not more than ``margin``
is lost against it. All of them must hold, so a model of which even one of these claims is false is released in
at most 5 % of the cases, without any correction for asking several (Berger 1982, the intersection-union test),
and each further criterion can only lower that share.

What is *not* asked, and why: flat has no Sharpe ratio, and better than cash is what
``probabilistic_sharpe`` asks; Hansen's test and the probability of backtest overfitting are in the report,
but how much was tried counts through ``deflated_sharpe``, and better than Kelly only through the interval
of the difference.
"""

from __future__ import annotations

import dataclasses
import unicodedata

from layer3.backtest.criteria import ask
from layer3.backtest.limits import (
    GateConfig,
    WalkForwardLimits,
    gate_config_text,
    load_gate_config,
    parse_gate_config,
)
from layer3.backtest.record import Evaluation, Override, Verdict
from layer3.errors import ConfigurationError

__all__ = [
    "GateConfig",
    "WalkForwardLimits",
    "gate_config_text",
    "judge",
    "load_gate_config",
    "parse_gate_config",
    "parse_override",
]


def parse_override(name: str, reason: str) -> Override | None:
    """The override of two texts, trimmed; ``None`` where both are blank.

    Raises
    ------
    ConfigurationError : only one of them is given, it is longer than 200 (name) or 1,000 (reason)
        characters, or not one line of text that a reader sees as it stands
    """
    given = {"name": (name, 200), "reason": (reason, 1_000)}
    if not any(isinstance(text, str) and text.strip() for text, _ in given.values()):
        return None
    for key, (text, longest) in given.items():
        if not isinstance(text, str) or not text.strip():
            raise ConfigurationError(f"the override has no {key}: it needs a name and a reason, both are recorded")
        if len(text.strip()) > longest:
            raise ConfigurationError(
                f"the override's {key} has {len(text.strip()):,} characters, at most {longest:,} are recorded"
            )
        # Signs of the category Cf are not seen, or turn what stands after them around.
        unseen = any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in text.strip())
        if unseen or not any(map(str.isalnum, text)):
            raise ConfigurationError(f"the override's {key} is {text.strip()[:60]!r}, expected one line of text")
    return Override(name.strip(), reason.strip())


def judge(evaluation: Evaluation, config: GateConfig | None = None, override: Override | None = None) -> Verdict:
    """Ask every criterion, whatever the others say; pass only if all hold, or where somebody overrides.

    An ``override`` changes no criterion. It is in the verdict only where it was needed: ``passed`` with an
    override always means that the evidence said no.

    Raises
    ------
    ConfigurationError : the override lacks its name or its reason (:func:`parse_override`)
    """
    config = config or GateConfig()
    if override is not None:
        override = parse_override(override.name, override.reason)
        if override is None:
            raise ConfigurationError("the override has no name and no reason: it needs both, they are recorded")
    criteria = ask(evaluation, config)
    held = all(criterion.passed for criterion in criteria)
    needed = None if held else override
    return Verdict(held or needed is not None, criteria, needed, dataclasses.asdict(config))
