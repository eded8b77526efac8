"""Pieces of work in an Optuna study, each done by one of the processes that share its storage.

A piece has a key. Its first attempt is put into the study as a waiting trial; whoever turns that into a
running one, which the storage allows once, has taken it. If the taker is lost, the trial fails and the next
attempt is put. Of two trials for one attempt, which two processes may put at the same moment, the one with
the lower number counts, and whoever put the other sees that, because a storage hands numbers out in order.
So whatever a process was doing when it was killed, another can go on from what is stored.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from lightning_tricks.study.alive import BEAT_SECONDS, Beat, Watch, has_ended, this_process

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

__all__ = ["Claim", "Queue", "attempts"]

_LOST_AT_MOST = 3  # attempts: work that kills whoever takes it shall not kill all
_ERROR_LENGTH = 2000
_TAKER = "taker "


def attempts(trials: Iterable[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    """Return of each key the trials that count, one for each attempt, in the order of the attempts."""
    found: dict[str, dict[int, FrozenTrial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        key = trial.user_attrs.get("key")
        if key is not None:
            found.setdefault(key, {}).setdefault(trial.user_attrs["attempt"], trial)
    return {key: [chain[index] for index in sorted(chain)] for key, chain in found.items()}


@dataclass
class Queue:
    """The pieces of work of one study.

    Args:
        storage: Of Optuna; see :func:`~lightning_tricks.study.storage.open_storage`.
        name: Of the study.
        maximize: Whether higher values are better.
        grace_seconds: After how long without a beat a taker on another machine is taken for lost.
        patience_seconds: How long to wait for whoever makes the study, if nothing comes of it.
    """

    storage: BaseStorage
    name: str
    maximize: bool = False
    grace_seconds: float = 12 * BEAT_SECONDS
    patience_seconds: float = 10.0
    _study: int = field(default=-1, init=False)
    _watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        """Begin to watch."""
        self._watch = Watch(self.grace_seconds)

    def close(self) -> None:
        """Close the connections to a database, if the storage has any."""
        self.storage.remove_session()
        if hasattr(self.storage, "engine"):
            self.storage.engine.dispose()

    def study(self) -> Study:
        """Return the study as Optuna's samplers and pruners take it."""
        from optuna.study import load_study

        return load_study(study_name=self.name, storage=self.storage)

    def enter(self, settings: Mapping[str, Any], work: Mapping[str, Mapping[str, Any]]) -> None:
        """Make the study, or go on with the one that is there.

        Args:
            settings: What all trials of the study have in common; plain values.
            work: Of each key what the trial shall say of itself; those not yet in the study are put there.

        Raises:
            ValueError: If the study was made with other settings; names the first.
        """
        from optuna.exceptions import DuplicatedStudyError
        from optuna.study import StudyDirection

        direction = StudyDirection.MAXIMIZE if self.maximize else StudyDirection.MINIMIZE
        try:
            self._study = self.storage.create_new_study([direction], self.name)
        except DuplicatedStudyError:
            self._study = self.storage.get_study_id_from_name(self.name)
            if (found := self._settings_of_maker()) is not None:
                _check_same(self.name, found, settings)
                self._fill(work)
                return
        self._fill(work)
        # Last, so that who sees them need not ask whether the rest is there.
        self.storage.set_study_user_attr(self._study, "settings", dict(settings))

    def _settings_of_maker(self) -> Mapping[str, Any] | None:
        """Wait for the settings; return None if whoever made the study was killed before they were stored."""
        seen, since = -1, time.monotonic()
        while time.monotonic() - since < self.patience_seconds:
            found: Mapping[str, Any] | None = self.storage.get_study_user_attrs(self._study).get("settings")
            if found is not None:
                return found
            if (count := len(self.trials())) > seen:
                seen, since = count, time.monotonic()
            time.sleep(0.02)
        return None

    def _fill(self, work: Mapping[str, Mapping[str, Any]]) -> None:
        there = attempts(self.trials())
        for key, about in work.items():
            if key not in there:
                self._put(key, 0, about)

    def _put(self, key: str, attempt: int, about: Mapping[str, Any]) -> FrozenTrial:
        """Put an attempt into the study; return the trial that counts for it, ours or an earlier one."""
        from optuna.trial import TrialState, create_trial

        attrs = {"key": key, "attempt": attempt, **about}
        own = self.storage.create_new_trial(
            self._study, create_trial(state=TrialState.WAITING, user_attrs=attrs)
        )
        counts = attempts(self.trials())[key][attempt]
        if self._id(counts) != own:
            self._finish(own, TrialState.PRUNED)
        return counts

    def trials(self) -> Sequence[FrozenTrial]:
        """Return all trials of the study, those that do not count included."""
        try:
            return self.storage.get_all_trials(self._study, deepcopy=False)
        except KeyError:
            raise ValueError(f"the study {self.name!r} must stay in its storage, but was deleted") from None

    def pieces(self) -> dict[str, FrozenTrial]:
        """Return of each key the trial that counts, which is that of the latest attempt."""
        return {key: chain[-1] for key, chain in attempts(self.trials()).items()}

    def claim(self, keys: Iterable[str]) -> Claim | None:
        """Take the first piece of ``keys`` that waits or whose taker is lost; None if there is none."""
        from optuna.trial import TrialState

        found = attempts(self.trials())
        for key in keys:
            trial: FrozenTrial | None = found[key][-1]
            if self._is_lost(found[key][-1]):
                trial = self._again(found[key])
            if trial is not None and trial.state == TrialState.WAITING and self._take(own := self._id(trial)):
                return Claim(self, key, own)
        return None

    def _take(self, trial: int) -> bool:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        process = this_process()
        try:
            # Before it is taken, so that of a taker that is killed there and then it is known who it was.
            name = f"{_TAKER}{process['pid']} {process['started']}"
            self.storage.set_trial_user_attr(trial, name, process)
        except UpdateFinishedTrialError:
            return False
        return self._finish(trial, TrialState.RUNNING)

    def _is_lost(self, trial: FrozenTrial) -> bool:
        from optuna.trial import TrialState

        said = trial.user_attrs
        if trial.state == TrialState.RUNNING:
            takers = [value for name, value in said.items() if name.startswith(_TAKER)]
            if "process" not in said and takers and all(map(has_ended, takers)):
                return True
            return self._watch.is_lost(trial.number, said.get("process"), said.get("beat"))
        return trial.state == TrialState.FAIL and "error" not in said

    def _again(self, chain: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """Give up the last of ``chain`` and put the next; None if there is to be none."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        last = chain[-1]
        lost = sum("released" not in trial.user_attrs for trial in chain)
        if last.state == TrialState.RUNNING:
            try:
                if lost >= _LOST_AT_MOST:
                    reason = f"its process was lost {lost} times"
                    self.storage.set_trial_user_attr(self._id(last), "error", reason)
            except UpdateFinishedTrialError:
                return None
            if not self._finish(self._id(last), TrialState.FAIL) or lost >= _LOST_AT_MOST:
                return None
        about = {
            name: value
            for name, value in last.user_attrs.items()
            if name not in _OF_AN_ATTEMPT and not name.startswith(_TAKER)
        }
        return self._put(last.user_attrs["key"], last.user_attrs["attempt"] + 1, about)

    def _id(self, trial: FrozenTrial) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study, trial.number)

    def _finish(self, trial: int, state: Any, value: float | None = None) -> bool:
        """Change the state of a trial; return whether it was for us to change."""
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            return self.storage.set_trial_state_values(trial, state, None if value is None else [value])
        except UpdateFinishedTrialError:
            return False


_OF_AN_ATTEMPT = {"key", "attempt", "process", "beat", "released", "error", "result", "settings"}


class Claim:
    """A piece of work that this process has taken; left without an outcome, it is given back.

    Attributes:
        key: Of the piece.
        trial: The number by which the storage knows it.
    """

    def __init__(self, queue: Queue, key: str, trial: int) -> None:
        """Say who works on it."""
        self.key: str = key
        self.trial: int = trial
        self._queue, self._open = queue, True
        self._beat = Beat(lambda count: self._set("beat", count))
        self._set("process", this_process())

    def _set(self, name: str, value: Any) -> None:
        self._queue.storage.set_trial_user_attr(self.trial, name, value)

    def __enter__(self) -> Self:
        self._beat.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._beat.__exit__(*error)
        if self._open:
            from optuna.trial import TrialState

            self._end(TrialState.FAIL, released=True)

    def done(self, value: float, result: Mapping[str, Any]) -> bool:
        """Store a finite value and what else was measured; False if another has taken it over meanwhile."""
        from optuna.trial import TrialState

        return self._end(TrialState.COMPLETE, value, result=dict(result))

    def pruned(self, result: Mapping[str, Any]) -> bool:
        """Store that it was ended early; False if another has taken it over meanwhile."""
        from optuna.trial import TrialState

        return self._end(TrialState.PRUNED, result=dict(result))

    def died(self, error: str) -> bool:
        """Store why there is no value; False if another has taken it over meanwhile."""
        from optuna.trial import TrialState

        return self._end(TrialState.FAIL, error=error[:_ERROR_LENGTH])

    def _end(self, state: Any, value: float | None = None, **attrs: Any) -> bool:
        from optuna.exceptions import UpdateFinishedTrialError

        self._open = False
        try:
            for name, each in attrs.items():
                self._set(name, each)
        except UpdateFinishedTrialError:
            return False
        return self._queue._finish(self.trial, state, value)


def _check_same(name: str, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for key in sorted(found.keys() | settings.keys()):
        before, now = found.get(key, "not given"), settings.get(key, "not given")
        if before != now:
            raise ValueError(
                f"{key} must be {before!r}, as the study {name!r} was begun, got {now!r}: take another name "
                "or storage for another study"
            )
