"""The benchmark of the ensemble's size judges disjoint groups, each beside the chain alone."""

from __future__ import annotations

import numpy as np

from bench import members
from bench.defaults import market
from layer3.agent.population import Settings, train
from layer3.agent.ppo import PPOConfig


def test_groups_are_disjoint_and_judged_beside_multiplier_1() -> None:
    bars, parts, _ = market(1)
    settings = [Settings(PPOConfig(steps=2_048, hidden=8))]
    trained = train(bars, seeds=range(1, 6), folds=[parts.train], settings=settings)
    pairs = members.groups(trained, 2)
    assert [pair.members for pair in pairs] == [2, 2]
    for place, pair in enumerate(pairs):
        for row in range(2):
            np.testing.assert_array_equal(pair.tensors["w1"][row], trained[2 * place + row].tensors["w1"])
    window = range(parts.test.start, parts.test.start + 1_000)
    gains, lows = members.judged(bars, window, members.groups(trained, 1))
    assert len(gains) == len(lows) == 5
    assert (lows < gains).all()
    assert len(set(gains.tolist())) == 5


def test_it_prints_a_row_for_every_size_that_has_two_groups(capsys) -> None:
    assert members.main(["--seeds", "4", "--steps", "2048"]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = [[word.strip() for word in line if word.strip()] for line in lines]
    assert [row[:2] for row in rows if row and row[0] in members.MARKETS] == [
        [name, size] for name in members.MARKETS for size in ("1", "2")
    ]
    assert [row[-1].split(" of ")[1] for row in rows if row and row[0] in members.MARKETS] == ["4", "2"] * 2
