"""Judging over files: the test part walked once, everything against it, and whatever is wrong a finding."""

from __future__ import annotations

import dataclasses
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layer3 import contract, storage, trials
from layer3.agent.bars import load_bars, save_bars
from layer3.agent.policy_file import FILES, load_policy
from layer3.backtest.engine import run
from layer3.backtest.evidence import Effort
from layer3.backtest.gate import judge
from layer3.backtest.overfitting import overfitting
from layer3.backtest.record import BUY_AND_HOLD, CHAMPION, FLAT, KELLY_ONLY, POLICY, Evaluation
from layer3.backtest.walk_forward import load_folds, save_folds
from layer3.champion import CHANNEL, Champion, Channel
from layer3.errors import HimariError
from layer3.judging import judge_policy
from layer3.walk_forward import train_folds
from layer3.workflow import fit, ingest, splits_of
from tests.agent.worlds import make_policy

STEPS = 4_096
NOW = datetime(2026, 11, 21, tzinfo=UTC)
QUICK = Effort(permutations=20, resamples=50, cuts=1)
SIZING = "max_exposure: 0.4\n"


class Run:
    """What the steps before left behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.candles, self.features, self.model = folder / "candles", folder / "features", folder / "model"
        self.walks = [folder / "walk-1", folder / "walk-2"]
        self.store = str(folder / "store")

    def judge(self, **changes: Any) -> Evaluation:
        given: dict[str, Any] = {"walks": self.walks, "sizing": SIZING, "store": self.store, "seed": 1}
        files = [changes.pop(name, getattr(self, name)) for name in ("candles", "features", "model")]
        return judge_policy(*files, **(given | {"effort": QUICK, "now": NOW} | changes))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("run"))
    ingest("synthetic:edge=1,bars=4200,seed=2", "SYNTH-USD", "", SIZING, run.candles, run.features)
    fit(run.features, run.model, seed=1, steps=STEPS, store=run.store, now=NOW)
    for number, path in enumerate(run.walks, start=1):
        train_folds(
            run.features, path, group=[number], folds=2, kind="expanding", seeds=(1, 2), steps=STEPS, store=run.store
        )
    return run


@pytest.fixture(scope="module")
def judged(done: Run) -> Evaluation:
    return done.judge()


def release(store: str, folder: Path, **details: Any) -> str:
    policy = make_policy(folder, **details)
    for name in FILES:
        storage.write_bytes(storage.join(store, "models", policy.model_id, name), (folder / name).read_bytes())
    entry = Champion(policy.model_id, policy.manifest["policy_sha256"], contract.VERSION, "2026-01-01", "run-1")
    storage.write_bytes(storage.join(store, *CHANNEL), Channel(entry).to_json().encode())
    return policy.model_id


def failed(evaluation: Evaluation, name: str) -> str:
    """The sentence of a criterion, which failed."""
    (asked,) = [criterion for criterion in judge(evaluation).criteria if criterion.name == name]
    assert not asked.passed
    return asked.sentence


def test_judging_walks_the_test_part_once(done: Run, judged: Evaluation) -> None:
    bars, _ = load_bars(done.features)
    test = splits_of(bars).test
    assert judged.timestamps[0] == bars.timestamp[test.start]
    assert len(judged.timestamps) == len(test) - 2
    assert set(judged.tracks) == {POLICY, KELLY_ONLY, BUY_AND_HOLD, FLAT}
    policy = load_policy(done.model)
    track = run(bars, test, {"x": lambda state, _: float(policy.act(state)[0])})["x"]
    np.testing.assert_array_equal(track.equity, judged.tracks[POLICY].equity)
    assert judged.context["training_period"]["end"] < judged.context["period"]["start"]
    assert judged.context["synthetic"] is True


def test_the_evidence_is_whole_and_comes_back_from_its_file(judged: Evaluation, tmp_path: Path) -> None:
    evidence = judged.evidence
    assert evidence.problems == {}
    assert evidence.leak is not None
    assert evidence.leak.differs == ()
    assert evidence.walk_forward is not None
    assert (evidence.walk_forward.kind, evidence.walk_forward.seeds) == ("expanding", (1, 2))
    assert evidence.champion is None
    judged.save(tmp_path / "e")
    assert Evaluation.load(tmp_path / "e").evidence == evidence


def test_what_was_tried_is_counted_once_however_often_it_is_judged(done: Run, judged: Evaluation) -> None:
    sha256 = judged.context["data_sha256"]
    again = done.judge()
    assert again.evidence == judged.evidence
    assert again.evidence.trust is not None
    assert again.evidence.trust.trials == trials.count(done.store, sha256) == 1 + 2 * 2
    walk = again.evidence.walk_forward
    assert walk is not None
    one, other = walk.seed_sharpes
    assert one is not None
    assert other is not None
    spread = trials.Spread(pytest.approx((one - other) ** 2 / 2), freedom=1, between=0)
    assert trials.sharpe_spread(done.store, sha256) == spread


def test_what_was_tried_is_asked_whether_its_best_was_luck(done: Run, judged: Evaluation, tmp_path: Path) -> None:
    assert judged.evidence.overfitting is None
    assert "overfitting" not in judged.evidence.problems
    shutil.copytree(done.store, tmp_path / "store")
    store, (bars, info) = str(tmp_path / "store"), load_bars(done.features)
    fit(done.features, tmp_path / "other", seed=2, steps=STEPS, members=2, store=store, now=NOW)
    found = done.judge(store=store).evidence.overfitting
    returns = trials.validation_returns(store, trials.Data.of(info), len(splits_of(bars).validation) - 2)
    assert returns.shape[1] == 3
    assert found == overfitting(returns.astype(np.float64), 16)
    beside = next((tmp_path / "store" / "trials").rglob("*.npy"))
    beside.write_bytes(b"x")
    damaged = done.judge(store=store).evidence
    assert damaged.overfitting is None
    assert f"{beside} holds no returns" in damaged.problems["overfitting"]
    assert damaged.trust is not None


def test_a_champion_walks_the_same_bars(done: Run, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    data = {"sha256": "0" * 64, "start": "2020-01-01T00:00:00+00:00", "end": "2021-01-01T00:00:00+00:00"}
    model_id = release(store, tmp_path / "champion", data=data | {"interval_seconds": 3_600})
    evaluation = done.judge(store=store)
    assert evaluation.evidence.champion == model_id
    assert CHAMPION in evaluation.tracks
    assert CHAMPION in [difference.against for difference in evaluation.evidence.differences]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"interval_seconds": 86_400}, "bars of 86,400 seconds, these have 3,600"),
        ({"end": "2022-12-31T00:00:00+00:00"}, "reach into the held-out bars"),
        ({"end": None}, "does not say what it was trained on"),
    ],
)
def test_a_champion_that_is_no_fair_match_is_a_finding(
    done: Run, judged: Evaluation, tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    base = {"sha256": judged.context["data_sha256"], "interval_seconds": 3_600, "start": "2020-01-01T00:00:00+00:00"}
    release(str(tmp_path / "store"), tmp_path / "c", data={"end": "2021-01-01T00:00:00+00:00"} | base | data)
    evaluation = done.judge(store=str(tmp_path / "store"))
    assert CHAMPION not in evaluation.tracks
    assert message in evaluation.evidence.problems["champion"]
    assert message in failed(evaluation, "versus_champion")


@pytest.mark.parametrize("damage", ["contract", "weights", "channel"])
def test_a_champion_that_cannot_be_read_is_a_finding(done: Run, tmp_path: Path, damage: str) -> None:
    store = tmp_path / "store"
    model = store / "models" / release(str(store), tmp_path / "c")
    if damage == "contract":
        manifest = json.loads((model / "manifest.json").read_text())
        (model / "manifest.json").write_text(json.dumps(manifest | {"contract": "himari-state-12/7"}))
    elif damage == "weights":
        (model / "policy.safetensors").write_bytes(b"cut short")
    else:
        (store / "channels" / "production.json").write_text("{")
    evaluation = done.judge(store=str(store))
    assert evaluation.evidence.problems["champion"].startswith("the champion cannot be compared with: ")
    assert failed(evaluation, "versus_champion")


def test_folds_that_are_missing_or_of_other_data_are_a_finding(done: Run, tmp_path: Path) -> None:
    missing = done.judge(walks=done.walks[:1] * 2)
    assert "do not follow each other" in failed(missing, "walk_forward")
    assert missing.evidence.trust is not None
    (tmp_path / "broken").write_bytes(b"x")
    assert "holds no folds" in failed(done.judge(walks=[tmp_path / "broken"]), "walk_forward")
    bars, info = load_bars(done.features)
    save_bars(tmp_path / "features", bars, info | {"data_sha256": "ef" * 32})
    other = done.judge(features=tmp_path / "features", store=str(tmp_path / "store"))
    assert "trained on other data" in failed(other, "walk_forward")


def test_folds_whose_policies_cannot_be_used_are_a_finding(done: Run, tmp_path: Path) -> None:
    whole = load_folds(done.walks[0])
    first = {name: np.full_like(tensor, np.nan) for name, tensor in whole.tensors[0][0].items()}
    save_folds(tmp_path / "walk", dataclasses.replace(whole, tensors=((first, *whole.tensors[0][1:]),)))
    broken = done.judge(walks=[tmp_path / "walk", done.walks[1]], store=str(tmp_path / "store"))
    assert "holds numbers that are not finite" in failed(broken, "walk_forward")


def test_a_ledger_that_says_nothing_fails_what_counts_on_it(done: Run, tmp_path: Path) -> None:
    nothing = done.judge(store=str(tmp_path / "a"), walks=[])
    assert "holds no record of what was tried" in failed(nothing, "deflated_sharpe")
    # Not one of the walk-forward's, which judging writes again, and so mends.
    records = (Path(done.store) / "trials").rglob("*.json")
    (record,) = (path for path in records if json.loads(path.read_text())["kind"] == "run")
    broken = tmp_path / "b" / record.relative_to(done.store)
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    damaged = done.judge(store=str(tmp_path / "b"))
    assert "is no record of a trial" in failed(damaged, "deflated_sharpe")
    assert "is no record of a trial" in failed(damaged, "walk_forward")


def test_numbers_that_are_not_finite_are_a_finding(done: Run, judged: Evaluation) -> None:
    """The file of features refuses them; whoever gets around it meets a verdict."""
    bars, info = load_bars(done.features)
    spoilt = bars.open.copy()
    spoilt[splits_of(bars).test.start + 40] = np.nan
    from layer3.backtest.engine import evaluate

    policy = load_policy(done.model)
    evaluation = evaluate(dataclasses.replace(bars, open=spoilt), splits_of(bars).test, policy, info)
    verdict = judge(evaluation)
    assert not verdict.passed
    assert sum("the record ends after 38 decisions" in criterion.sentence for criterion in verdict.criteria) >= 5


def test_a_missing_policy_is_an_error_on_purpose(done: Run, tmp_path: Path) -> None:
    with pytest.raises(HimariError, match="no policy at"):
        done.judge(model=tmp_path)
