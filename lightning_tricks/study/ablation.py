"""An ablation: none, all, all but one and each alone of several techniques, over seeds, paired by seed."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final

from lightning.pytorch import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_tricks.core import checks
from lightning_tricks.core.conflicts import ConflictError
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.study.arguments import Given, checked_mode, checked_seeds, made_from, named
from lightning_tricks.study.arms import Names, arms, rotated
from lightning_tricks.study.effects import Effects, Outcome
from lightning_tricks.study.identity import identity
from lightning_tricks.study.queue import Claim, Queue
from lightning_tricks.study.quiet import no_words
from lightning_tricks.study.storage import open_storage, quiet_optuna
from lightning_tricks.study.trial import (
    Build,
    MeasuredTrial,
    StudyError,
    flat,
    rehearse,
    run_trial,
    seeded_setup,
)
from lightning_tricks.study.wandb_runs import WandbGroup
from lightning_tricks.study.working import ended, said, tell_of_former, watched, work

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["Ablation", "Plan", "Progress"]


class Plan(NamedTuple):
    """A trial to be run: the techniques, what their arm is called, and the seed."""

    names: Names
    arm: str
    seed: int


class Progress(NamedTuple):
    """How far a study is, whoever works on it: trials done, dead and wanted, and what runs now."""

    done: int
    dead: int
    wanted: int
    running: tuple[str, ...]


@final
@dataclass(eq=False)
class Ablation:
    """Measure what each technique brings, and what it costs.

    Trains with none, with all, with all but one and with each alone, with every seed. Trials of one seed
    begin with the same weights and see the same data in the same order; effects are means of differences
    within seeds, with a 95 % interval (:mod:`~lightning_tricks.study.bootstrap`). Each seed's trials run one
    after another, and each seed begins with another arm, so that whatever else the machine does meets all
    arms. Only training and validation data are used.

    Trials are kept in a file, or a database, that several processes and machines may share: each trial runs
    in one of them, one that was killed is run again by another, and calling :meth:`run` again goes on. A
    trial that dies is recorded with its error.

    Args:
        build: Gets a seed, which has been set; returns a new module, its data (a data module, or loaders of
            training and of validation) and a dict of settings for the Trainer.
        techniques: By name, callbacks, which are copied for each trial, or functions that make one; or just
            callbacks of different classes.
        seeds: How many, from 0; or which. Those that the study has of an earlier call are counted, too.
        metric: Of validation, measured with the weights that training leaves; or of training.
        mode: Whether less of it is better, ``"min"``, or more, ``"max"``; ``None`` for ``"min"``, of a loss
            only.
        name: Of the study, in its storage.
        storage: A file, or the URL of a database.
        settings: What else must be the same in all trials, such as hyperparameters, by name; plain values,
            or lists and mappings of them. A study is not gone on with if one has changed.
        wandb: Logs each trial in a run of a group; ``None`` for nowhere.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If one is not as it must be.

    Example:
        >>> from lightning_tricks import EMAWeights, GradientClip
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> from lightning_tricks.recipes.residual import ResidualNet
        >>> def build(seed):
        ...     module = DigitsClassifier(ResidualNet(widths=(4,)))
        ...     return module, DigitsData(training=128, seed=seed), {"max_epochs": 1, **QUIET}
        >>> path = getfixture("tmp_path") / "study.journal"
        >>> ablation = Ablation(
        ...     build, [EMAWeights(decay=0.9), GradientClip(max_norm=1.0)], seeds=2, storage=path
        ... )
        >>> [effect.name for effect in ablation.run().rows]
        ['all together', 'EMAWeights', 'GradientClip']
    """

    build: Build
    techniques: Mapping[str, Given] | Sequence[Callback]
    _: KW_ONLY
    seeds: int | Sequence[int] = 5
    metric: str = "val_loss"
    mode: Literal["min", "max"] | None = None
    name: str = "ablation"
    storage: str | os.PathLike[str] = Path("ablation") / "study.journal"
    settings: Mapping[str, Any] = field(default_factory=dict)
    wandb: WandbGroup | None = None
    _techniques: dict[str, Given] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not callable(self.build):
            raise TypeError(f"build must be a function of a seed, got {self.build!r:.80}")
        checks.text("metric", self.metric)
        self.mode = checked_mode(self.metric, self.mode)
        checks.text("name", self.name)
        self.seeds = checked_seeds(self.seeds)
        self._techniques = named(self.techniques)

    @property
    def plans(self) -> dict[str, Plan]:
        """The trials by their keys, in the order in which they are run."""
        assert not isinstance(self.seeds, int)
        found = list(arms(list(self._techniques)).items())
        return {
            f"{arm}, seed {seed}": Plan(names, arm, seed)
            for turn, seed in enumerate(self.seeds)
            for names, arm in rotated(found, turn)
        }

    def queue(self) -> Queue:
        """Make the study in its storage, or join it; to be closed.

        Raises:
            OSError: If the storage is out of reach.
            ValueError: If the study was begun with other settings; names the first.
        """
        with quiet_optuna():
            queue = Queue(open_storage(self.storage), self.name, maximize=self.mode == "max")
            about = {key: {"arm": plan.arm, "seed": plan.seed} for key, plan in self.plans.items()}
            queue.enter(self._settings(), about)
        return queue

    def _settings(self) -> dict[str, Any]:
        assert not isinstance(self.seeds, int)
        with no_words(), isolate_rng():  # also so that what cannot be built is told before any trial
            setup = seeded_setup(self.build, self.seeds[0])
            made = {name: made_from(each) for name, each in self._techniques.items()}
        techniques = {
            name: {
                "class": type(each).__qualname__,
                **(each.settings() if isinstance(each, Technique) else {}),
            }
            for name, each in made.items()
        }
        found = {"techniques": techniques, **identity(self.build, setup)}
        return {"metric": self.metric, "mode": self.mode, **flat(found), **flat(self.settings)}

    def run(self, watch: Callable[[Progress], None] | None = None) -> Effects:
        """Run the trials that nobody else runs, and wait for those that others do.

        Args:
            watch: Is called at once, and then twice a second from a thread of its own. Without it, a line
                says how many trials had ended before, if any.

        Raises:
            OSError: If the storage is out of reach.
            ValueError: If the study was begun with other settings, nothing logs the metric, techniques
                exclude one another, or neither a training without them nor one with all of them gets
                through two steps.
        """
        plans = self.plans
        self._rehearse()
        with closing(self.queue()) as queue, quiet_optuna():
            if watch is None:
                tell_of_former(queue, plans)
            look = None if watch is None else lambda: watch(self.progress(queue))
            with watched(look):
                work(queue, plans, lambda claim: self._one(claim, plans[claim.key]))
            return self.effects(queue)

    def _rehearse(self) -> None:
        """Find out before any trial whether there can be one."""
        assert not isinstance(self.seeds, int)
        seed, metric, alone = self.seeds[0], self.metric, True
        try:
            rehearse(self.build, [], seed=seed, metric=metric)
        except StudyError:
            raise
        except Exception:  # some train with their techniques alone
            alone = False
        try:
            rehearse(self.build, list(map(made_from, self._techniques.values())), seed=seed, metric=metric)
        except ConflictError as error:
            raise StudyError(f"techniques must go together to be measured: {said(error)}") from error
        except Exception as error:  # what dies in a trial is recorded there, if others can live
            if not alone:
                raise StudyError(f"training must run to be measured: {said(error)}") from error

    def _one(self, claim: Claim, plan: Plan) -> None:
        with claim:
            try:
                found = self._measured(claim.key, plan)
            except StudyError:
                raise
            except Exception as error:
                claim.died(said(error))
            else:
                claim.done(found.value, {**found.plain(), "host": platform.node()})

    def _measured(self, key: str, plan: Plan) -> MeasuredTrial:
        techniques = [made_from(self._techniques[name]) for name in plan.names]
        run = partial(run_trial, self.build, techniques, seed=plan.seed, metric=self.metric)
        if self.wandb is None:
            return run()
        config = {**plan._asdict(), "techniques": list(map(repr, techniques)), **self.settings}
        with self.wandb.run(key, config) as logger:
            found: MeasuredTrial = run(logger=logger)
            logger.experiment.summary.update(found.plain())
        return found

    def progress(self, queue: Queue) -> Progress:
        """Return how far the study is."""
        pieces = {key: trial for key, trial in queue.pieces().items() if key in self.plans}
        by_state = [trial.state.name for trial in pieces.values()]
        dead = sum("error" in trial.user_attrs and ended(trial) for trial in pieces.values())
        running = tuple(key for key, trial in pieces.items() if trial.state.name == "RUNNING")
        return Progress(by_state.count("COMPLETE"), dead, len(self.plans), running)

    def effects(self, queue: Queue) -> Effects:
        """Return what came of the trials that have ended so far, those of the study's other seeds too."""
        pieces = queue.pieces()
        done = {key: trial.user_attrs for key, trial in pieces.items() if ended(trial)}
        outcomes = [
            Outcome(arm, names, about["seed"], *_found(pieces[key]))
            for names, arm in arms(list(self._techniques)).items()
            for key, about in done.items()
            if about["arm"] == arm
        ]
        outcomes.sort(key=lambda outcome: outcome.seed)  # of one seed the arms stay in their order
        wanted = len(self.plans.keys() | done.keys())
        assert self.mode is not None
        return Effects(self.metric, self.mode, tuple(self._techniques), tuple(outcomes), wanted)


def _found(trial: FrozenTrial) -> tuple[Mapping[str, Any] | None, str | None]:
    if trial.state.name == "COMPLETE":
        return trial.user_attrs["result"], None
    return None, trial.user_attrs["error"]
