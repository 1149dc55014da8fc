"""The search itself, with workers that answer at once: what is tried, what is kept, what is tried again."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from layer3.agent.search import default_values
from layer3.errors import ConfigurationError, TrainingError
from layer3.experiments.scoring import Result
from layer3.experiments.study import Finished, finished, open_study, search, study_name
from layer3.experiments.workers import Event

SEEDS = 2
Values = dict[str, float]


def scores_of(values: Values) -> dict[str, list[float | None]]:
    """A smooth hill: the search has something to find."""
    height = -((math.log10(values["ppo.learning_rate"]) + 3.0) ** 2) - (values["ppo.clip"] - 0.3) ** 2
    return {"reward": [height - 0.01, height + 0.01], "sharpe": [None, 1.0]}


class Crew:
    """Stands in for :class:`layer3.experiments.workers.Workers`: the last to begin is the first to end."""

    def __init__(self, count: int = 1, refuse: Any = lambda values: "", stop_after: int = 10**9) -> None:
        self._count, self._refuse, self._left = count, refuse, stop_after
        self._given: dict[int, Values] = {}
        self._told: set[int] = set()
        self.tried: list[Values] = []

    @property
    def idle(self) -> list[int]:
        return [number for number in range(self._count) if number not in self._given]

    def give(self, worker: int, values: Values) -> None:
        self._given[worker] = values
        self.tried.append(values)

    def listen(self) -> Event:
        worker = max(self._given)
        if worker not in self._told:
            self._told.add(worker)
            return Event(worker, "progress", 7)
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        self._told.discard(worker)
        values = self._given.pop(worker)
        refusal = self._refuse(values)
        if refusal:
            return Event(worker, "refusal", refusal)
        return Event(worker, "answer", Result(scores_of(values), np.zeros((3, SEEDS), np.float32)))


def go(folder: Path, trials: int, crew: Crew | None = None) -> tuple[list[Finished], list[Finished], list[int]]:
    """What the study holds after a search, what it told of, and its progress."""
    told: list[Finished] = []
    progress: list[int] = []
    with open_study(folder) as study:
        search(study, crew or Crew(), trials, seed=1, on_progress=progress.append, on_end=told.append)  # type: ignore[arg-type]
        return finished(study), told, progress


def test_the_defaults_come_first_and_every_trial_is_told_of(tmp_path: Path) -> None:
    kept, told, progress = go(tmp_path / "study", 12)
    assert kept == told
    assert [trial.number for trial in kept] == list(range(12))
    assert kept[0].values == default_values()
    assert [trial.defaults for trial in kept] == [True] + [False] * 11
    assert all(trial.scores == scores_of(trial.values) for trial in kept)
    assert all(trial.result and trial.result.scores == trial.scores for trial in told)
    assert progress == [7] * 12
    assert len({tuple(trial.values.values()) for trial in kept}) == 12


def test_it_finds_the_hill(tmp_path: Path) -> None:
    kept, _, _ = go(tmp_path / "study", 40)
    heights = [trial.scores["reward"][0] or 0.0 for trial in kept]
    assert sum(heights[25:]) / 15 > sum(heights[1:11]) / 10


def test_run_again_it_goes_on_and_asks_for_no_more_than_was_wanted(tmp_path: Path) -> None:
    first, _, _ = go(tmp_path / "study", 5)
    crew = Crew()
    assert go(tmp_path / "study", 5, crew)[0] == first
    assert go(tmp_path / "study", 3, crew)[0] == first
    assert crew.tried == []
    more, told, _ = go(tmp_path / "study", 8)
    assert more[:5] == first
    assert more[5:] == told


def test_however_often_it_is_interrupted_it_tries_the_same_points(tmp_path: Path) -> None:
    whole, _, _ = go(tmp_path / "whole", 16)
    for already in range(0, 16, 3):
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "broken", 16, Crew(stop_after=3 if already < 15 else 0))
    broken, _, _ = go(tmp_path / "broken", 16)
    assert [trial.values for trial in broken] == [trial.values for trial in whole]
    assert [trial.defaults for trial in broken] == [trial.defaults for trial in whole]


def test_what_was_in_flight_is_marked_as_failed_and_tried_again(tmp_path: Path) -> None:
    crew = Crew(3, stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "study", 5, crew)
    with open_study(tmp_path / "study") as study:
        states = [trial.state for trial in study.trials]
    assert states.count(TrialState.COMPLETE) == 1
    assert states.count(TrialState.RUNNING) == 0
    assert states.count(TrialState.FAIL) == 3
    kept, told, _ = go(tmp_path / "study", 5)
    assert len(kept) == 5
    assert len(told) == 4
    assert [trial.defaults for trial in kept].count(True) == 1
    assert all(values in [trial.values for trial in kept] for values in crew.tried)


def test_what_was_scored_before_the_kill_is_not_done_again(tmp_path: Path) -> None:
    """The moment between writing the scores and ending the trial."""
    with open_study(tmp_path / "study") as study:
        trial = study.ask()
        values = {name: trial.suggest_float(name, value / 2, value * 2) for name, value in default_values().items()}
        trial.set_user_attr("scores", scores_of(values))
    with open_study(tmp_path / "study") as study:
        assert [one.scores for one in finished(study)] == [scores_of(values)]
        assert study.trials[0].value == pytest.approx(scores_of(values)["reward"][0] + 0.01)  # type: ignore[operator]
        assert len(study.trials) == 1


def test_several_at_once_try_no_point_twice_and_end_where_they_should(tmp_path: Path) -> None:
    kept, _, _ = go(tmp_path / "study", 11, Crew(4))
    assert len(kept) == 11
    assert len({tuple(trial.values.values()) for trial in kept}) == 11


def test_a_setting_that_cannot_be_trained_is_counted_and_passed_over(tmp_path: Path) -> None:
    crew = Crew(refuse=lambda values: "diverged" if values["ppo.clip"] > 0.25 else "")
    kept, told, _ = go(tmp_path / "study", 10, crew)
    assert kept == told
    refused = [trial for trial in kept if trial.refusal]
    assert 0 < len(refused) < 10
    assert all(trial.refusal == "diverged" and trial.scores == {} for trial in refused)
    assert go(tmp_path / "study", 10)[0] == kept


def test_defaults_that_cannot_be_trained_end_the_search(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the default settings cannot be trained here: constant price"):
        go(tmp_path / "study", 10, Crew(refuse=lambda values: "constant price"))
    assert go(tmp_path / "study", 1)[0][0].defaults


@pytest.mark.parametrize("torn", [b'{"op_code":5,"wor', b"{", b'{"op_code": 4}'])
def test_half_a_line_of_a_killed_writer_is_taken_away(tmp_path: Path, torn: bytes) -> None:
    first, _, _ = go(tmp_path / "study", 3)
    journal = tmp_path / "study" / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + torn)
    (tmp_path / "study" / "journal.log.lock").touch()
    kept, _, _ = go(tmp_path / "study", 5)
    assert kept[:3] == first
    assert len(kept) == 5
    assert journal.read_bytes().startswith(whole)


def test_two_searches_at_once_are_refused(tmp_path: Path) -> None:
    with open_study(tmp_path / "study"), pytest.raises(ConfigurationError, match="another search works on"):
        go(tmp_path / "study", 1)


def test_a_missing_optuna_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna.storages.journal", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'himari\[tune\]'"), open_study(tmp_path / "study"):
        pass


def test_other_data_steps_seeds_or_space_are_another_study(monkeypatch: pytest.MonkeyPatch) -> None:
    from layer3.experiments import study

    identity = {"data": "ab", "steps": 1, "seeds": 3}
    name = study_name("BTC/USDT:USDT", identity)
    assert name.startswith("BTC-USDT-USDT-")
    assert study_name("BTC/USDT:USDT", dict(reversed(identity.items()))) == name
    others = {study_name("BTC/USDT:USDT", {**identity, key: 9}) for key in identity}
    monkeypatch.setattr(study, "SPACE", study.SPACE[1:])
    others.add(study_name("BTC/USDT:USDT", identity))
    assert len(others | {name}) == 5


def test_optuna_is_imported_when_a_study_is_opened(tmp_path: Path) -> None:
    code = "import sys, layer3.experiments.study; print([m for m in ('torch', 'optuna') if m in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
