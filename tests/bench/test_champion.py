"""The champion's benchmark asks the real gate of a twin and of the chain alone, on heads of the same records."""

from __future__ import annotations

from bench import champion
from bench.champion import Answer
from layer3.agent.population import Settings
from layer3.agent.ppo import PPOConfig

SHORT = Settings(PPOConfig(steps=8_192, hidden=8))


def test_every_candidate_is_asked_after_every_length() -> None:
    found = list(champion.answers(2.0, range(1, 3), years=(0.1, 0.2), training_years=0.3, settings=SHORT))
    asked = [(one.level, one.candidate, one.years) for one in found]
    assert asked == [(2.0, name, years) for _ in range(2) for years in (0.1, 0.2) for name in ("twin", "chain")]
    assert all(one.not_shown for one in found if one.not_worse)
    assert len({one.estimate for one in found}) == len(found)


def test_the_shares_are_of_the_markets_of_each_row(capsys) -> None:
    champion.report(
        [
            Answer(1.0, "twin", 0.5, 0.5, True, True),
            Answer(1.0, "chain", 0.5, -1.0, True, False),
            Answer(1.0, "twin", 0.5, -0.1, True, True),
            Answer(1.0, "chain", 0.5, -2.0, False, False),
        ]
    )
    twin, chain = capsys.readouterr().out.splitlines()[-2:]
    assert twin.split("  ")[0] == "another seed"
    assert "+0.20" in twin
    assert twin.count("100.0% (34.2% to 100.0%)") == 2
    assert "-1.50" in chain
    assert "50.0% (9.5% to 90.5%)" in chain
    assert chain.endswith("0.0% (0.0% to 65.8%)")
