"""What came of a search."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from lightning_tricks.study.space import Space

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["Found", "Tried", "importances", "tried"]

_ENOUGH = 5  # trials from which something of importance may be told


@dataclass(frozen=True)
class Tried:
    """One trial that has ended.

    Attributes:
        number: From 0, which is the default.
        settings: What acted in it, as it can be shown.
        outcome: ``"done"``, ``"pruned"`` or ``"died"``.
        value: The metric; of a trial that was pruned, that of its last validation.
        error: Why it died.
        seconds: How long it took, if it was not lost.
    """

    number: int
    settings: Mapping[str, Any]
    outcome: Literal["done", "pruned", "died"]
    value: float | None = None
    error: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        metric: What was measured in validation.
        mode: Whether less of it is better, ``"min"``, or more, ``"max"``.
        trials: Those that have ended, by number.
        wanted: How many there are to be.
        importance: Share of each setting in what sets the better trials apart; empty if that cannot be told.
    """

    metric: str
    mode: Literal["min", "max"]
    trials: tuple[Tried, ...]
    wanted: int
    importance: Mapping[str, float]

    @property
    def ranked(self) -> list[Tried]:
        """The trials that are done, best first."""
        sign = 1.0 if self.mode == "min" else -1.0
        done = [
            (sign * each.value, each)
            for each in self.trials
            if each.outcome == "done" and each.value is not None
        ]
        return [each for _, each in sorted(done, key=lambda pair: (pair[0], pair[1].number))]

    @property
    def best(self) -> Tried | None:
        """The best trial; of equal ones the first, which is the default if it is among them."""
        return self.ranked[0] if self.ranked else None

    @property
    def default(self) -> Tried | None:
        """The trial in which nothing was changed, if it has ended."""
        return next((each for each in self.trials if each.number == 0), None)

    @property
    def gain(self) -> float | None:
        """How much better than the default the best is, in the unit of the metric; None without one."""
        if self.best is None or self.default is None or self.default.outcome != "done":
            return None
        assert self.best.value is not None
        assert self.default.value is not None
        return abs(self.best.value - self.default.value)

    def changed(self, trial: Tried) -> dict[str, Any]:
        """Return what acted in ``trial`` otherwise than in the default."""
        before = {} if self.default is None else self.default.settings
        return {name: value for name, value in trial.settings.items() if before.get(name, self) != value}

    def plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "metric": self.metric,
            "mode": self.mode,
            "wanted": self.wanted,
            "best": None if self.best is None else asdict(self.best),
            "gain": self.gain,
            "importance": dict(self.importance),
            "trials": [asdict(each) for each in self.trials],
        }


def importances(trials: tuple[Tried, ...], space: Space, mode: str) -> dict[str, float]:
    """Return the importance of each setting, the greatest first; together they are 1.

    By Optuna's PED-ANOVA, from the settings that acted in trials that are done, with five at least.

    Reference: Watanabe, Bansal and Hutter, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in
    Arbitrary Subspaces", 2023, https://arxiv.org/abs/2304.10255.
    """
    import optuna

    done = [each for each in trials if each.outcome == "done"]
    if len(done) < _ENOUGH:
        return {}
    distributions = {name: each.distribution() for name, each in space.dimensions.items()}
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    for each in done:
        here = {name: distributions[name] for name in each.settings}
        study.add_trial(optuna.create_trial(params=dict(each.settings), distributions=here, value=each.value))
    with warnings.catch_warnings():
        # Of what is experimental in Optuna.
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study)
    return {name: float(share) for name, share in found.items()}


_OUTCOMES: dict[str, Literal["done", "pruned", "died"]] = {
    "COMPLETE": "done",
    "PRUNED": "pruned",
    "FAIL": "died",
}


def tried(trial: FrozenTrial) -> Tried:
    """Return what came of a trial that has ended."""
    said, is_done = trial.user_attrs, trial.state.name == "COMPLETE"
    last = None if trial.last_step is None else trial.intermediate_values[trial.last_step]
    return Tried(
        int(said["place"]),
        said.get("settings", {}),
        _OUTCOMES[trial.state.name],
        trial.value if is_done else last,
        said.get("error"),
        said.get("result", {}).get("seconds"),
    )
