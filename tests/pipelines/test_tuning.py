"""The compiled search runs here too: the same YAML, a loop of real trainings, one page."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import compile as compiler
from layer3 import trials
from layer3.agent.search import sample
from pipelines.local import ROOT, execute
from pipelines.observe import Execution, Watcher

DATA = "synthetic:bars=5000,edge=3,seed=5"
TRIALS = 2


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Execution], list[str]]:
    """The store, what ran, and what the watcher was told."""
    _, path = compiler.compile_pipelines(tmp_path_factory.mktemp("build"))
    store = tmp_path_factory.mktemp("store")
    folder = store / "runs" / "himari-tuning-1"
    (folder / "logs").mkdir(parents=True)
    told: list[str] = []
    watcher = Watcher(
        lambda one: told.append(f"start {one.name}"), lambda one: told.append(f"end {one.name}"), lambda *_: None
    )
    arguments = {"store": str(store), "data": DATA, "trials": TRIALS, "seeds": 2, "train_steps": 4_096}
    done = execute(yaml.safe_load(path.read_text()), arguments, folder, ROOT, watcher, caching=False)
    return store, done, told


def test_every_setting_ran_once_and_each_has_its_own_log(ran: tuple[Path, list[Execution], list[str]]) -> None:
    store, done, told = ran
    names = [one.name for one in done]
    # Neither of the first two waits for the other.
    assert sorted(names[:2]) == ["ingest", "propose"]
    assert names[2:] == [*["score"] * TRIALS, "compare"]
    assert all(one.succeeded and one.attempts == 1 for one in done)
    logs = store / "runs" / "himari-tuning-1" / "logs"
    written = {"ingest.log", "propose.log", "score.log", "score-2.log", "compare.log"}
    assert {path.name for path in logs.iterdir()} == written
    for one in done:
        assert one.log is not None
        if one.name == "score":
            assert f"Validation reward of 2 seeds: {one.outputs['Output']['scores']['reward']}" in one.log.read_text()
    assert sorted(told) == sorted(f"{word} {one.name}" for one in done for word in ("start", "end"))


def test_kfp_leaves_print_as_it_was(ran: tuple[Path, list[Execution], list[str]]) -> None:
    assert builtins.print.__module__ == "builtins"


def test_the_settings_are_the_sample_and_everything_is_on_record(
    ran: tuple[Path, list[Execution], list[str]],
) -> None:
    store, done, _ = ran
    proposed = sample(TRIALS, 1)
    (step,) = [one for one in done if one.name == "propose"]
    assert step.outputs["Output"] == [pytest.approx(point) for point in proposed]
    records: list[dict[str, Any]] = [json.loads(path.read_text()) for path in store.rglob("trials/*/*.json")]
    rates = {record["settings"][0]["ppo"]["learning_rate"] for record in records}
    assert rates == {point["ppo.learning_rate"] for point in proposed}
    for record in records:
        assert isinstance(record["settings"][0]["ppo"]["batch"], int)
    assert trials.count(str(store), records[0]["data"]["sha256"]) == 2 * TRIALS


def test_the_page_shows_them_all(ran: tuple[Path, list[Execution], list[str]]) -> None:
    store, done, _ = ran
    artifact = done[-1].outputs["comparison"]
    page = Path(artifact.path).read_text()
    assert page.count('<tr><th scope="row">') == TRIALS
    assert "SYNTHETIC DATA." in page
    assert f"{2 * TRIALS} different trainings" in page
    assert "himari-tuning-1" in page
    assert artifact.metadata["settings"] == TRIALS
    log = done[-1].log
    assert log is not None
    assert "Kelly only" in log.read_text()
    assert not (store / "models").exists()
