"""One trial of a search: what it tries, and how good that is."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_tricks.study.folds import folded
from lightning_tricks.study.pruning import Pruning, Reports
from lightning_tricks.study.queue import Claim, Queue
from lightning_tricks.study.quiet import no_words
from lightning_tricks.study.sampling import Drawing, shown
from lightning_tricks.study.space import Point, Space
from lightning_tricks.study.subjects import Subject
from lightning_tricks.study.trial import Build, run_trial
from lightning_tricks.study.wandb_runs import WandbGroup
from lightning_tricks.study.working import ended, said

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

__all__ = ["Trying"]


@dataclass(frozen=True)
class Trying:
    """Does trials; of the arguments, see :class:`~lightning_tricks.Search`.

    Args:
        subject: What is trained.
        space: What may vary.
        default: The point at which nothing is changed; the first trial's.
        metric: Of validation.
        sampler: By its name.
        grid: Of each trial its point, if they are not drawn.
        folds: How many parts the training data are split into.
        pruner: By its name.
        seed: Of trials and of draws.
        wandb: Where each trial is logged.
    """

    subject: Subject
    space: Space
    default: Point
    _: KW_ONLY
    metric: str
    sampler: str
    grid: Sequence[Point] | None
    folds: int | None
    pruner: str
    seed: int
    wandb: WandbGroup | None

    def one(self, queue: Queue, claim: Claim) -> None:
        """Do a trial, and store what came of it."""
        begin = time.perf_counter()
        with claim:
            try:
                point = self._point(queue, claim)
                if self._is_taken(queue, claim):
                    return  # another began the same at the same moment; this one is given back
                value = self._measured(queue, claim, point)
            except Exception as error:  # of the study's own too: where nothing was changed, training ran
                claim.died(said(error))
                return
            result = {"seconds": time.perf_counter() - begin, "host": platform.node()}
            if value is None:
                claim.pruned(result)
            else:
                claim.done(value, result)

    def _point(self, queue: Queue, claim: Claim) -> Point:
        """Return what a trial tries, and store it."""
        trial = queue.storage.get_trial(claim.trial)
        place, drawing = trial.user_attrs["place"], Drawing(self.space, self.sampler, self.seed)
        if place == 0:
            point = self.default
        elif self.grid is not None:
            point = self.grid[place]
        else:
            tried = self._tried(queue, claim)
            point = drawing.draw(queue.study(), trial, place=place, tried=tried, default=self.default)
        drawing.store(queue.storage, claim.trial, point)
        queue.storage.set_trial_user_attr(claim.trial, "settings", shown(self.space, point))
        return point

    def _tried(self, queue: Queue, claim: Claim) -> list[dict[str, Any]]:
        """Return what acts in the other trials that have ended or run now, and in the default."""
        others = [
            trial.user_attrs["settings"]
            for key, trial in queue.pieces().items()
            if key != claim.key
            and "settings" in trial.user_attrs
            and (ended(trial) or trial.state.name == "RUNNING")
        ]
        return [shown(self.space, self.default), *others]

    def _is_taken(self, queue: Queue, claim: Claim) -> bool:
        own, *_ = [trial.user_attrs for key, trial in queue.pieces().items() if key == claim.key]
        return own["place"] != 0 and own["settings"] in self._tried(queue, claim)

    def _measured(self, queue: Queue, claim: Claim, point: Point) -> float | None:
        """Return the value of a trial, or None if it was pruned."""
        from optuna import TrialPruned

        reports = Reports(queue.study(), queue.storage, claim.trial, self.pruner, self.metric)
        config = {**shown(self.space, point), "seed": self.seed}
        with nullcontext() if self.wandb is None else self.wandb.run(claim.key, config) as logger:
            try:
                value = self._trained(point, reports, logger)
            except TrialPruned:
                value = None
            if logger is not None:
                logger.experiment.summary.update({"value": value} if value is not None else {"pruned": True})
            return value

    def _trained(self, point: Point, reports: Reports, logger: WandbLogger | None) -> float:
        run = partial(run_trial, seed=self.seed, metric=self.metric)
        if self.folds is None:
            build, techniques = self.parts(point)
            return run(build, [*techniques, Pruning(self.metric, reports.add)], logger=logger).value
        values: list[float] = []
        for fold in range(self.folds):
            own = None if logger is None else type(logger)(experiment=logger.experiment, prefix=f"fold{fold}")
            values.append(run(*self.parts(point, fold), logger=own).value)
            reports.add(fmean(values))
        return fmean(values)

    def parts(self, point: Point, fold: int = 0) -> tuple[Build, list[Callback]]:
        """Return what makes a trial's module and data, and its techniques, new."""
        build = self.subject.build(self.subject.settings(self.space, point))
        if self.folds is not None:
            build = folded(build, fold=fold, folds=self.folds, seed=self.seed)
        with no_words(), isolate_rng():
            return build, self.subject.techniques(self.space, point)
