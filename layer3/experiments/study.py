"""A search that remembers: optuna over a journal file, one writer, as many trainings at once as asked.

A study belongs to its data, space, steps, seeds and code; any of them changed makes another study, so
that numbers which cannot be compared never meet. Run again, it goes on; what was in flight when it
was killed is tried again.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from layer3.agent.search import SPACE, Values, default_values, to_optuna
from layer3.errors import ConfigurationError, TrainingError
from layer3.experiments.options import folder_name
from layer3.experiments.scoring import OBJECTIVE, Result, Scores
from layer3.experiments.workers import Workers

if TYPE_CHECKING:
    import optuna

__all__ = ["Finished", "finished", "open_study", "search", "study_name"]

#: Where a trial's scores, what went wrong with it, and whether it is the defaults' stand in the journal.
_SCORES: Final = "scores"
_REFUSAL: Final = "refusal"
_DEFAULTS: Final = "defaults"


@dataclass(frozen=True, slots=True)
class Finished:
    """A trial that came to its end: with scores, or with the reason why there are none.

    ``result`` is whole when a search tells of it; the journal keeps the scores alone.
    """

    number: int
    values: Values
    defaults: bool
    scores: Scores
    refusal: str
    result: Result | None = field(default=None, compare=False, repr=False)


def study_name(symbol: str, identity: Mapping[str, Any]) -> str:
    """The market, for readers, and a hash of everything that makes two scores comparable.

    ``identity`` is plain JSON: data, steps, seeds, code; the space is added here.
    """
    return folder_name(symbol, {**identity, "space": [asdict(entry) for entry in SPACE]})


@contextmanager
def open_study(folder: Path) -> Iterator[optuna.Study]:
    """The study in ``folder``, made there if need be; nobody else may work on it meanwhile.

    Trials that a killed search left running are marked as failed and will be tried again; the
    defaults are always the first to be tried.

    Raises
    ------
    ConfigurationError : another process works on it, or optuna is not installed
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
        from optuna.trial import TrialState
    except ImportError as error:
        raise ConfigurationError(f"a search needs an extra package ({error}): pip install 'himari[tune]'") from error

    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / "journal.log"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"another search works on {folder}: let it end, or stop it; they would undo each other's trials"
            ) from None
        _mend(journal)
        path = str(journal)
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path))),
            study_name=folder.name,
            direction="maximize",
            load_if_exists=True,
        )
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            _settle(study, trial)
        if not study.trials:
            study.enqueue_trial(default_values(), user_attrs={_DEFAULTS: True})
        yield study


def _settle(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """End a trial that a killed search left running; what it had no time to try is tried again."""
    from optuna.trial import TrialState

    attributes = trial.user_attrs
    if _SCORES in attributes:
        study.tell(trial.number, _objective(attributes[_SCORES]))
        return
    study.tell(trial.number, state=TrialState.FAIL)
    if attributes.get(_DEFAULTS):
        study.enqueue_trial(default_values(), user_attrs={_DEFAULTS: True})
    elif _REFUSAL not in attributes:
        study.enqueue_trial(trial.params)


def _mend(journal: Path) -> None:
    """Take away what a killed writer left: half a last line, and the journal's own lock."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists():
        content = journal.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with journal.open("rb+") as file:
                file.truncate(len(whole))


def finished(study: optuna.Study) -> list[Finished]:
    """Every trial that came to its end, in the order in which they were begun."""
    from optuna.trial import TrialState

    return [
        Finished(
            trial.number,
            dict(trial.params),
            bool(trial.user_attrs.get(_DEFAULTS)),
            trial.user_attrs.get(_SCORES, {}),
            trial.user_attrs.get(_REFUSAL, ""),
        )
        for trial in study.get_trials()
        if trial.state == TrialState.COMPLETE or _REFUSAL in trial.user_attrs
    ]


def search(
    study: optuna.Study,
    crew: Workers,
    trials: int,
    *,
    seed: int,
    on_progress: Callable[[int], None],
    on_end: Callable[[Finished], None],
) -> None:
    """Go on until ``trials`` trials have ended.

    Each worker gets a point of the space and answers with a :class:`~layer3.experiments.scoring.Result`.
    What is tried next depends on what ended before and on ``seed``: with one worker the same search
    tries the same points, however often it was interrupted.

    Parameters
    ----------
    on_progress : hears how many environment steps were done since it was last called
    on_end : hears of each trial before the journal does, so that what is told there is never lost

    Raises
    ------
    TrainingError : the defaults themselves cannot be trained
    """
    import optuna
    from optuna.trial import TrialState

    running: dict[int, tuple[optuna.Trial, Values]] = {}
    steps: dict[int, int] = {}
    ended = len(finished(study))
    while True:
        for worker in crew.idle[: max(trials - ended - len(running), 0)]:
            # One stream per trial: a sampler that starts afresh after a stop would draw the first points again.
            study.sampler = optuna.samplers.TPESampler(seed=seed + ended + len(running))
            trial = study.ask()
            running[worker] = trial, to_optuna(trial)
            steps[worker] = 0
            crew.give(worker, running[worker][1])
        if not running:
            return
        event = crew.listen()
        if event.kind == "progress":
            on_progress(event.value - steps[event.worker])
            steps[event.worker] = event.value
            continue
        trial, values = running.pop(event.worker)
        defaults = bool(trial.user_attrs.get(_DEFAULTS))
        answered = event.kind == "answer"
        if defaults and not answered:
            raise TrainingError(f"the default settings cannot be trained here: {event.value}")
        if answered:
            result: Result = event.value
            on_end(Finished(trial.number, values, defaults, result.scores, "", result))
            trial.set_user_attr(_SCORES, result.scores)
            study.tell(trial, _objective(result.scores))
        else:
            on_end(Finished(trial.number, values, defaults, {}, event.value))
            trial.set_user_attr(_REFUSAL, event.value)
            study.tell(trial, state=TrialState.FAIL)
        ended += 1


def _objective(scores: Scores) -> float:
    """What is maximised: the mean over seeds."""
    return fmean(value for value in scores[OBJECTIVE] if value is not None)
