"""A search for better settings: Optuna over techniques, on and off, and settings of all kinds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

from lightning.pytorch import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_tricks.core import checks
from lightning_tricks.core.extras import extra
from lightning_tricks.study.arguments import Given, checked_mode, named
from lightning_tricks.study.found import Found, Tried, importances, tried
from lightning_tricks.study.identity import identity
from lightning_tricks.study.project import Project
from lightning_tricks.study.pruning import PRUNERS
from lightning_tricks.study.queue import Queue
from lightning_tricks.study.quiet import no_words
from lightning_tricks.study.recommended import recommended
from lightning_tricks.study.sampling import SAMPLERS, grid
from lightning_tricks.study.space import Point, Space
from lightning_tricks.study.storage import open_storage, quiet_optuna
from lightning_tricks.study.subjects import Factory, OfProject, Subject
from lightning_tricks.study.trial import Build, StudyError, flat, rehearse, seeded_setup
from lightning_tricks.study.trying import Trying
from lightning_tricks.study.wandb_runs import WandbGroup
from lightning_tricks.study.working import ended, said, tell_of_former, watched, work

__all__ = ["Search", "SearchProgress"]


class SearchProgress(NamedTuple):
    """How far a search is, whoever works on it: trials ended and wanted, and the best value so far."""

    ended: int
    wanted: int
    best: float | None


@final
@dataclass(eq=False)
class Search:
    """Look for settings, and techniques, with which a metric of validation gets better.

    The first trial changes nothing; it is what the best is compared with. All trials have one seed, so that
    they begin with the same weights and see the same data in the same order, and no point is tried twice. A
    trial that is worse than the median of the others was at the same validation is ended. Test data are never
    used.

    Trials are kept in a file, or a database, that several processes and machines may share: each trial runs
    in one of them, one that was killed is run again, and calling :meth:`run` again
    goes on. A trial that dies, or whose metric is not finite, is recorded with its error.

    Args:
        build: A :class:`~lightning_tricks.study.project.Project`; or a function of a seed, which has been
            set, and of settings by name with their defaults, that returns a new module, its data (a data
            module, or loaders of training and of validation) and a dict of settings for the Trainer.
        space: What may vary (:meth:`Space.of <lightning_tricks.study.space.Space.of>`); by default each
            technique, on and off, with the settings that :mod:`~lightning_tricks.study.ranges` recommends.
        techniques: Of a function, as for :class:`~lightning_tricks.Ablation`; those of a space that are not
            among them are this package's, and off in the first trial.
        metric: Of validation, measured with the weights that training leaves.
        mode: Whether less of it is better, ``"min"``, or more, ``"max"``; ``None`` for ``"min"``, of a loss
            only.
        sampler: ``"tpe"``, ``"random"``, ``"gp"`` (Gaussian process), ``"evolutionary"`` (NSGA-II) or
            ``"grid"`` (all points, shuffled).
        trials: How many, over all processes; at most as many as the space has points.
        timeout: Seconds after which this call begins no further trial, and breaks off none; ``None`` for no
            end.
        folds: Splits the training data and takes the mean over the parts
            (:mod:`~lightning_tricks.study.folds`), in the place of the validation split; ``None`` for that.
        pruner: ``"median"`` or ``"none"``. With folds, it looks at the mean so far after each.
        seed: Of trials and of draws.
        name: Of the study, in its storage.
        storage: A file, or the URL of a database.
        wandb: Logs each trial in a run of a group; ``None`` for nowhere.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If one is not as it must be.

    Example:
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> from lightning_tricks.recipes.residual import ResidualNet
        >>> def build(seed, lr=0.001):
        ...     module = DigitsClassifier(ResidualNet(widths=(4,)), lr=lr)
        ...     return module, DigitsData(training=128, seed=seed), {"max_epochs": 1, **QUIET}
        >>> space = {"lr": [0.001, 0.1], "techniques": {"GradientClip": {"optional": True}}}
        >>> path = getfixture("tmp_path") / "study.journal"
        >>> found = Search(build, space, trials=4, storage=path, sampler="grid").run()
        >>> len(found.trials), found.best.settings["lr"]
        (4, 0.1)
    """

    build: Project | Callable[..., Any]
    space: Space | Mapping[str, Any] | None = None
    _: KW_ONLY
    techniques: Mapping[str, Given] | list[Any] = field(default_factory=dict)
    metric: str = "val_loss"
    mode: Literal["min", "max"] | None = None
    sampler: str = "tpe"
    trials: int = 20
    timeout: float | None = None
    folds: int | None = None
    pruner: str = "median"
    seed: int = 0
    name: str = "search"
    storage: str | os.PathLike[str] = Path("search") / "study.journal"
    wandb: WandbGroup | None = None

    def __post_init__(self) -> None:
        """Check the arguments, and each value that a technique may get."""
        checks.text("metric", self.metric)
        self.mode = checked_mode(self.metric, self.mode)
        checks.one_of("sampler", self.sampler, list(SAMPLERS))
        checks.one_of("pruner", self.pruner, list(PRUNERS))
        checks.whole("trials", self.trials, 1)
        checks.whole("seed", self.seed)
        checks.text("name", self.name)
        if self.timeout is not None:
            checks.in_range("timeout", self.timeout, 0.0, open_low=True)
        if self.folds is not None:
            checks.whole("folds", self.folds, 2)
        with extra("study"):
            import optuna  # noqa: F401  # found missing now
        with no_words(), isolate_rng():
            space = recommended(self.subject) if self.space is None else self.space
            self.space = space if isinstance(space, Space) else Space.of(space)
            self.default  # noqa: B018  # refuses what cannot be
        self.space.check(self.default)
        if self.sampler == "grid":
            self.grid  # noqa: B018  # likewise
        SAMPLERS[self.sampler](0)  # what it needs is found missing now

    @cached_property
    def subject(self) -> Subject:
        """What is trained."""
        if isinstance(self.build, Project):
            if self.techniques:
                raise ValueError("techniques must be left out for a project, which has its own")
            return OfProject(self.build)
        if not callable(self.build):
            raise TypeError(f"build must be a Project or a function of a seed, got {self.build!r:.80}")
        return Factory(self.build, named(self.techniques) if self.techniques else {})

    @property
    def _space(self) -> Space:
        assert isinstance(self.space, Space)
        return self.space

    @cached_property
    def default(self) -> dict[str, Any]:
        """The point of the space at which nothing is changed."""
        return self.subject.default(self._space)

    @cached_property
    def grid(self) -> list[dict[str, Any]]:
        """All points of the space, the default first."""
        return grid(self._space, self.default, seed=self.seed)

    @property
    def _trying(self) -> Trying:
        return Trying(
            self.subject,
            self._space,
            self.default,
            grid=self.grid if self.sampler == "grid" else None,
            **{key: getattr(self, key) for key in ("metric", "sampler", "folds", "pruner", "seed", "wandb")},
        )

    @property
    def wanted(self) -> int:
        """How many trials there are to be."""
        return min(self.trials, self._space.size or self.trials)

    @property
    def _keys(self) -> dict[str, int]:
        """The place of each trial by its key."""
        return {f"trial {place}": place for place in range(self.wanted)}

    def queue(self) -> Queue:
        """Make the study in its storage, or join it; to be closed.

        Raises:
            OSError: If the storage is out of reach.
            ValueError: If the study was begun with other settings; names the first.
        """
        with quiet_optuna():
            queue = Queue(open_storage(self.storage), self.name, maximize=self.mode == "max")
            queue.enter(self._settings(), {key: {"place": place} for key, place in self._keys.items()})
        return queue

    def _settings(self) -> dict[str, Any]:
        with no_words(), isolate_rng():
            build = self.subject.build({})
            setup = seeded_setup(build, self.seed)
            of_subject = self.subject.plain()
        found = {"space": self._space.plain(), **identity(build, setup)}
        own = {key: getattr(self, key) for key in ("metric", "mode", "sampler", "pruner", "seed")}
        return {**own, "folds": self.folds or 0, **flat(found), **of_subject}

    def run(self, watch: Callable[[SearchProgress], None] | None = None) -> Found:
        """Run the trials that nobody else runs, and wait for those that others do.

        Args:
            watch: Is called at once, and then twice a second from a thread of its own. Without it, a line
                says how many trials had ended before, if any.

        Raises:
            OSError: If the storage is out of reach.
            ValueError: If the study was begun with other settings, nothing logs the metric, the training data
                cannot be split into folds, or the default does not get through two steps.
        """
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        self._rehearse()
        with closing(self.queue()) as queue, quiet_optuna():
            if watch is None:
                tell_of_former(queue, self._keys)
            look = None if watch is None else lambda: watch(self.progress(queue))
            with watched(look):
                work(queue, self._keys, partial(self._trying.one, queue), deadline=deadline)
            return self.found(queue)

    def _rehearse(self) -> None:
        """Find out before any trial whether there can be one."""
        try:
            rehearse(*self.parts(self.default), seed=self.seed, metric=self.metric)
        except StudyError:
            raise
        except Exception as error:  # a user's own code, which may raise anything
            raise StudyError(f"training must run as configured to be searched: {said(error)}") from error

    def progress(self, queue: Queue) -> SearchProgress:
        """Return how far the search is."""
        pieces = [trial for key, trial in queue.pieces().items() if key in self._keys]
        values = [trial.value for trial in pieces if trial.value is not None]
        best = (min if self.mode == "min" else max)(values, default=None)
        return SearchProgress(sum(map(ended, pieces)), self.wanted, best)

    def so_far(self) -> Found:
        """Return what came of the trials that have ended, without running any.

        Raises:
            OSError: If the storage is out of reach.
            ValueError: If the study was begun with other settings.
        """
        with closing(self.queue()) as queue, quiet_optuna():
            return self.found(queue)

    def found(self, queue: Queue) -> Found:
        """Return what came of the trials that have ended so far."""
        pieces = queue.pieces().values()
        trials = tuple(sorted((tried(each) for each in pieces if ended(each)), key=lambda each: each.number))
        assert self.mode is not None
        importance = importances(trials, self._space, self.mode)
        return Found(self.metric, self.mode, trials, max(self.wanted, len(pieces)), importance)

    def config(self, trial: Tried) -> dict[str, Any]:
        """Return the configuration of a project with which LightningCLI trains as a trial did.

        Raises:
            TypeError: If what is searched is no project.
        """
        if not isinstance(self.subject, OfProject):
            raise TypeError(
                f"build must be a Project to be written as a configuration, got {self.build!r:.80}"
            )
        return self.subject.config(self._space, self.point(trial), seed=self.seed)

    def point(self, trial: Tried) -> dict[str, Any]:
        """Return the point that a trial tried; what did not act in it as in the default."""
        dimensions = self._space.dimensions
        acted = {name: dimensions[name].drawn(value) for name, value in trial.settings.items()}
        return {**self.default, **acted}

    def parts(self, point: Point) -> tuple[Build, list[Callback]]:
        """Return what makes module, data and Trainer's settings at a point, and its techniques, new."""
        return self._trying.parts(point)
