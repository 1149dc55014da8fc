"""Training as a whole: who else is trained, how many workers, a kill in the middle: none of it changes a byte."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from layer3 import contract, storage
from layer3.agent import checkpoint
from layer3.agent.bars import Bars, concatenate
from layer3.agent.environment import EnvironmentConfig
from layer3.agent.networks import Network
from layer3.agent.policy import Policy, stack
from layer3.agent.population import Report, Settings, train
from layer3.agent.ppo import PPOConfig
from layer3.errors import ContractError, TrainingError
from tests.agent.populations import SHORT, TINY, WINDOW, differences, same
from tests.agent.worlds import make_bars

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bars() -> Bars:
    return make_bars(2_000)


def test_every_policy_of_a_population_is_the_one_trained_alone(bars: Bars) -> None:
    seeds, folds = [3, 1, 2], [WINDOW, range(700, 2_000)]
    together = train(bars, seeds=seeds, folds=folds, settings=[SHORT], workers=2)
    assert [(member.seed, member.fold) for member in together] == [(s, (f,)) for f in folds for s in seeds]
    for member in together:
        (alone,) = train(bars, seeds=[member.seed], folds=[member.fold], settings=[SHORT], workers=1)
        assert differences(member, alone) <= 1e-5
        np.testing.assert_array_equal(member.tensors["mean"], alone.tensors["mean"])
    assert len({member.tensors["w1"].tobytes() for member in together}) == 6


def test_a_policy_of_a_population_is_the_one_trained_alone_to_the_end(bars: Bars) -> None:
    """Rounding that differed once would have grown to another policy after so many updates."""
    settings = [Settings(PPOConfig(steps=100 * 2_048))]
    together = train(bars, seeds=[1, 2, 3], folds=[WINDOW], settings=settings)
    (alone,) = train(bars, seeds=[2], folds=[WINDOW], settings=settings)
    assert differences(together[1], alone) <= 1e-5


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(bars: Bars, workers: int) -> None:
    arguments: dict[str, Any] = {"seeds": range(5), "folds": [WINDOW], "settings": [SHORT]}
    one, other = train(bars, **arguments, workers=2), train(bars, **arguments, workers=workers)
    assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(bars: Bars) -> None:
    first, again = (train(bars, seeds=[7], folds=[WINDOW], settings=[TINY])[0] for _ in range(2))
    (other,) = train(bars, seeds=[8], folds=[WINDOW], settings=[TINY])
    assert same(first, again)
    assert first.tensors["w1"].tobytes() != other.tensors["w1"].tobytes()


def test_training_leaves_global_state_alone(bars: Bars) -> None:
    torch.manual_seed(5)
    torch_state, threads = torch.get_rng_state(), torch.get_num_threads()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    train(bars, seeds=[1], folds=[WINDOW], settings=[TINY])
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002
    assert torch.get_num_threads() == threads


def test_progress_is_told_after_every_update_and_kept_as_curves(bars: Bars) -> None:
    reports: list[Report] = []
    members = train(bars, seeds=[1, 2], folds=[WINDOW], settings=[TINY], on_progress=reports.append)
    assert [report.figures[1] for report in reports] == list(members[1].curves)
    assert [progress.steps for progress in members[0].curves] == list(range(128, 1_025, 128))
    for progress in members[0].curves:
        assert np.isfinite(dataclasses.astuple(progress)).all()
        assert 0.0 <= progress.multiplier_mean <= 2.0
        assert progress.total_steps == 1_024
    assert members[0].curves[0].learning_rate == TINY.ppo.learning_rate


def test_numpy_serves_the_very_network_that_was_trained(bars: Bars) -> None:
    """The old system served a network that was not the trained one."""
    (member,) = train(bars, seeds=[1], folds=[WINDOW], settings=[SHORT])
    t = member.tensors
    layers = torch.nn.Sequential(
        torch.nn.Linear(16, 128), torch.nn.Tanh(), torch.nn.Linear(128, 128), torch.nn.Tanh(), torch.nn.Linear(128, 2)
    )
    with torch.no_grad():
        for number, at in enumerate((0, 2, 4), start=1):
            layers[at].weight.copy_(torch.from_numpy(t[f"w{number}"].T.copy()))
            layers[at].bias.copy_(torch.from_numpy(t[f"b{number}"]))
        x = torch.from_numpy((member.states - t["mean"]) / t["std"]).clamp(-10.0, 10.0)
        expected = 2.0 * torch.sigmoid(layers(x)[:, 0])
    multiplier, _ = Policy(stack([t]), {}).act(member.states)
    np.testing.assert_allclose(multiplier, expected.numpy(), atol=1e-5)
    assert multiplier.std() > 0.0


def test_a_policy_of_several_windows_learns_from_all_of_them_and_from_nothing_else(bars: Bars) -> None:
    joined = concatenate([bars, make_bars(2_000, seed=2)])
    fold = [range(600), range(2_100, 2_700)]
    poisoned = {
        entry.name: np.where(np.isin(np.arange(4_000), [*fold[0], *fold[1]]), getattr(joined, entry.name), np.nan)
        for entry in dataclasses.fields(Bars)
        if getattr(joined, entry.name).dtype == np.float64
    }
    clean = train(joined, seeds=[1], folds=[fold], settings=[TINY])
    dirty = train(dataclasses.replace(joined, **poisoned), seeds=[1], folds=[fold], settings=[TINY])
    assert same(clean[0], dirty[0])
    (first_only,) = train(joined, seeds=[1], folds=[fold[0]], settings=[TINY])
    assert not same(clean[0], first_only)


RESUME = """
import sys
from layer3.agent.population import Settings, train
from layer3.agent.ppo import PPOConfig
from layer3.agent.policy import stack
from tests.agent.worlds import make_bars
import safetensors.numpy
trained = train(
    make_bars(2_000), seeds=[1, 2, 3], folds=[range(1_500)], settings=[Settings(PPOConfig(steps=40_960))],
    workers=2, checkpoint=sys.argv[1], checkpoint_every=2,
    on_progress=lambda report: print(report.steps, flush=True),
)
blob = safetensors.numpy.save(stack([member.tensors for member in trained]))
open(sys.argv[2], "wb").write(blob)
"""


def test_killed_at_any_moment_and_taken_up_again_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", RESUME, str(tmp_path / f"{name}.safetensors"), str(tmp_path / name)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    with start("whole") as process:
        process.communicate(timeout=300)
        assert process.returncode == 0
    rng, first_steps = np.random.default_rng(1), []
    for kill in (True, True, True, False):
        with start("killed") as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            if line:
                first_steps.append(int(line))
            if kill:
                # Somewhere in the next few updates, in the middle of a checkpoint as likely as anywhere.
                for _ in range(4):
                    process.stdout.readline()
                time.sleep(float(rng.uniform(0.0, 0.05)))
                process.kill()
            else:
                process.communicate(timeout=300)
    assert process.returncode == 0
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()
    # Every start but the first went on from where a checkpoint stood.
    assert first_steps[0] == 3 * 2_048
    assert all(later > earlier for earlier, later in itertools.pairwise(first_steps))


def test_a_checkpoint_may_be_taken_up_with_other_workers_and_a_finished_one_trains_no_more(
    bars: Bars, tmp_path: Path
) -> None:
    address = str(tmp_path / "deep" / "checkpoint.safetensors")
    arguments: dict[str, Any] = {"seeds": range(3), "folds": [WINDOW], "settings": [TINY], "checkpoint": address}
    whole = train(bars, seeds=range(3), folds=[WINDOW], settings=[TINY])

    def stop(report: Report) -> None:
        if report.steps == 3 * 128 * 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(bars, **arguments, workers=2, checkpoint_every=2, on_progress=stop)
    reports: list[Report] = []
    resumed = train(bars, **arguments, workers=1, checkpoint_every=2, on_progress=reports.append)
    assert reports[0].steps == 3 * 128 * 5
    assert all(same(a, b) for a, b in zip(whole, resumed, strict=True))
    reports.clear()
    finished = train(bars, **arguments, on_progress=reports.append)
    assert not reports
    assert all(same(a, b) for a, b in zip(whole, finished, strict=True))


def test_more_windows_than_a_batch_has_samples_share_the_buffers_too(bars: Bars) -> None:
    wide = Settings(dataclasses.replace(TINY.ppo, environments=96, batch=64, steps=96 * TINY.ppo.rollout * 2))
    arguments: dict[str, Any] = {"seeds": [1, 2, 3], "folds": [WINDOW], "settings": [wide]}
    one, other = (train(bars, **arguments, workers=workers) for workers in (1, 2))
    assert all(same(a, b) for a, b in zip(one, other, strict=True))
    (alone,) = train(bars, seeds=[2], folds=[WINDOW], settings=[wide], workers=1)
    assert differences(alone, one[1]) < 1e-5


def written(bars: Bars, folder: Path) -> str:
    address = str(folder / "checkpoint.safetensors")
    train(bars, seeds=[1], folds=[WINDOW], settings=[TINY], checkpoint=address, checkpoint_every=4)
    return address


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": [2]}, "seeds and folds"),
        ({"folds": [range(1_400)]}, "seeds and folds"),
        ({"settings": [Settings(dataclasses.replace(TINY.ppo, clip=0.3), TINY.environment)]}, "ppo"),
        ({"settings": [Settings(TINY.ppo, EnvironmentConfig(episode_steps=60))]}, "environment"),
        ({"bars": make_bars(2_000, seed=9)}, "data"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    bars: Bars, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    address = written(bars, tmp_path)
    arguments: dict[str, Any] = {"bars": bars, "seeds": [1], "folds": [WINDOW], "settings": [TINY]} | change
    before = Path(address).read_bytes()
    with pytest.raises(TrainingError, match=f"differs in {named}: remove it"):
        train(arguments.pop("bars"), **arguments, checkpoint=address)
    assert Path(address).read_bytes() == before


def test_a_checkpoint_of_another_contract_is_refused(
    bars: Bars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = written(bars, tmp_path)
    monkeypatch.setattr(contract, "VERSION", "himari-state-17/1")
    with pytest.raises(ContractError, match=r"himari-state-16/1.*himari-state-17/1"):
        train(bars, seeds=[1], folds=[WINDOW], settings=[TINY], checkpoint=address)


def test_a_checkpoint_of_another_version_is_refused(
    bars: Bars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(checkpoint, "_KIND", "himari-checkpoint/1")
        address = written(bars, tmp_path)
    with pytest.raises(TrainingError, match=r"is a himari-checkpoint/1, expected .*/2: another version.*remove it"):
        train(bars, seeds=[1], folds=[WINDOW], settings=[TINY], checkpoint=address)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint at all", None])
def test_a_damaged_checkpoint_is_refused_and_left_alone(bars: Bars, tmp_path: Path, damage: bytes | None) -> None:
    address = Path(written(bars, tmp_path))
    content = address.read_bytes()[:-100] if damage is None else damage
    address.write_bytes(content)
    with pytest.raises(TrainingError, match=r"is damaged or no checkpoint.*remove it to start anew"):
        train(bars, seeds=[1], folds=[WINDOW], settings=[TINY], checkpoint=str(address))
    assert address.read_bytes() == content


def test_a_checkpoint_that_cannot_be_read_is_refused_in_a_sentence(bars: Bars, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"cannot read the checkpoint .*: Is a directory: .*name another"):
        train(bars, seeds=[1], folds=[WINDOW], settings=[TINY], checkpoint=str(tmp_path))


def test_a_full_disk_ends_in_a_sentence_with_the_last_checkpoint_intact(
    bars: Bars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(tmp_path / "checkpoint.safetensors")
    write, calls = storage.write_bytes, []

    def fill(uri: str, content: bytes) -> None:
        calls.append(uri)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(uri, content)

    monkeypatch.setattr(storage, "write_bytes", fill)
    with pytest.raises(
        TrainingError, match=r"No space left on device.*free some space.*after 4 updates, is .*checkpoint"
    ):
        train(bars, seeds=[1], folds=[WINDOW], settings=[TINY], checkpoint=address, checkpoint_every=2)
    monkeypatch.setattr(storage, "write_bytes", write)
    reports: list[Report] = []
    (resumed,) = train(bars, seeds=[1], folds=[WINDOW], settings=[TINY], checkpoint=address, on_progress=reports.append)
    assert reports[0].steps == 5 * 128
    assert same(resumed, train(bars, seeds=[1], folds=[WINDOW], settings=[TINY])[0])


@pytest.mark.parametrize("kept", [True, False])
def test_numbers_that_are_not_finite_stop_it_and_name_the_last_good_checkpoint(
    bars: Bars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    backward, calls = Network.backward, []

    def poison(self: Network, layers: Any, x: Any, slope: Any, slopes: Any) -> None:
        backward(self, layers, x, slope, slopes)
        calls.append(1)
        # One policy after the other, actor and critic: a gradient for each of 2 batches, 2 epochs. In the sixth update
        # the second policy's turn begins here.
        if len(calls) > 5 * 16 + 8:
            slopes.w1[-1] = torch.nan

    monkeypatch.setattr(Network, "backward", poison)
    address = str(tmp_path / "checkpoint.safetensors") if kept else None
    ending = "after 4 updates, is .*checkpoint.safetensors" if kept else "there is no checkpoint"
    with pytest.raises(TrainingError, match=f"seed 2 diverged after 768 steps .*no policy was written.*{ending}"):
        train(bars, seeds=[1, 2], folds=[WINDOW], settings=[TINY], checkpoint=address, checkpoint_every=4, workers=1)
    if address:
        monkeypatch.setattr(Network, "backward", backward)
        resumed = train(bars, seeds=[1, 2], folds=[WINDOW], settings=[TINY], checkpoint=address)
        whole = train(bars, seeds=[1, 2], folds=[WINDOW], settings=[TINY])
        assert all(same(a, b) for a, b in zip(resumed, whole, strict=True))


def test_a_low_target_ends_the_actors_epochs_early(bars: Bars) -> None:
    free = train(bars, seeds=[1], folds=[WINDOW], settings=[TINY])
    tight = Settings(dataclasses.replace(TINY.ppo, target_kl=1e-9), TINY.environment)
    held = train(bars, seeds=[1], folds=[WINDOW], settings=[tight])
    assert held[0].curves[-1].kl < free[0].curves[-1].kl
