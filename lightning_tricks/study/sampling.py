"""What a search tries next, drawn by Optuna's samplers.

Of a whole study nothing is kept in a process: for each trial a new sampler is made, whose seed follows from
the search's and the trial's place. So workers do not draw the same numbers, and a study that was killed goes
on as it would have. No point is tried twice, for with one seed it would give the same again.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_tricks.core.extras import extra
from lightning_tricks.study.space import Point, Space, acting

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

__all__ = ["SAMPLERS", "Drawing", "grid", "shown"]

_STARTUP = 5  # random trials before a model is made; Optuna's ten would be half of a usual search
_POPULATION = 8  # of a generation; with Optuna's fifty, a usual search would end within the first
_OWN_DRAWS, _DRAWS = 10, 1000
_GRID_AT_MOST = 100_000


def _random(seed: int) -> BaseSampler:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def _tpe(seed: int) -> BaseSampler:
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, n_startup_trials=_STARTUP, multivariate=True, constant_liar=True)


def _gp(seed: int) -> BaseSampler:
    with extra("study"):
        import scipy.optimize  # noqa: F401  # which it needs only when it has a model to make
        from optuna.samplers import GPSampler

    return GPSampler(seed=seed, n_startup_trials=_STARTUP, warn_independent_sampling=False)


def _evolutionary(seed: int) -> BaseSampler:
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=seed, population_size=_POPULATION)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": _tpe,
    "random": _random,
    "gp": _gp,
    "evolutionary": _evolutionary,
    "grid": _random,
}
"""Optuna's samplers by name: ``TPESampler``, ``RandomSampler``, ``GPSampler`` and ``NSGAIISampler``, which,
other than ``CmaEsSampler``, draws techniques on and off, too. Points of a :func:`grid` are not drawn."""


def shown(space: Space, point: Point) -> dict[str, Any]:
    """Return what acts at ``point``, as a storage can hold it."""
    return {name: space.dimensions[name].shown(value) for name, value in acting(point).items()}


def grid(space: Space, default: Point, *, seed: int) -> list[dict[str, Any]]:
    """Return all points, ``default`` first and the others shuffled.

    Optuna's ``GridSampler`` may give two workers the same point, and tries each value of a setting of a
    technique that is off.

    Raises:
        ValueError: If there is no end of them, or they are too many.
    """
    for name, each in space.dimensions.items():
        each.values_of(name)
    if (space.size or 0) > _GRID_AT_MOST:
        raise ValueError(
            f"space must have at most {_GRID_AT_MOST} points to try all of them, got {space.size}"
        )
    found = [point for point in space.points(default) if shown(space, point) != shown(space, default)]
    random.Random(seed).shuffle(found)
    return [dict(default), *found]


@dataclass(frozen=True)
class Drawing:
    """What draws the points of one study.

    Args:
        space: What may vary.
        sampler: By its name in :data:`SAMPLERS`.
        seed: Of all draws.
    """

    space: Space
    sampler: str
    seed: int

    def draw(
        self,
        study: Study,
        trial: FrozenTrial,
        *,
        place: int,
        tried: Sequence[Mapping[str, Any]],
        default: Point,
    ) -> dict[str, Any]:
        """Return a point that has not been tried.

        Args:
            study: As it is now.
            trial: That the point is for.
            place: Of the trial in the search.
            tried: What acted in other trials, as :func:`shown` returns it.
            default: The point at which nothing is changed.
        """
        drawn = (self._draw(study, trial, place, count) for count in range(_DRAWS))
        points = itertools.chain(drawn, self._rest(default, place))
        return next(point for point in points if shown(self.space, point) not in tried)

    def _rest(self, default: Point, place: int) -> Iterator[dict[str, Any]]:
        """Go through a space that is nearly used up, of which chance may not find the rest."""
        if self.space.size is not None:
            points = list(self.space.points(default))
            random.Random(place).shuffle(points)  # lest several workers all take the first
            yield from points

    def _draw(self, study: Study, trial: FrozenTrial, place: int, count: int) -> dict[str, Any]:
        # A model may insist on its point; chance does not.
        make = SAMPLERS[self.sampler] if count < _OWN_DRAWS else _random
        sampler = make(int(np.random.SeedSequence((self.seed, place, count)).generate_state(1)[0]))
        dimensions = self.space.dimensions
        distributions = {name: each.distribution() for name, each in dimensions.items()}
        sampler.before_trial(study, trial)
        drawn = sampler.sample_relative(study, trial, distributions)
        for name, each in distributions.items():
            if name not in drawn:
                drawn[name] = sampler.sample_independent(study, trial, name, each)
        return {name: each.drawn(drawn[name]) for name, each in dimensions.items()}

    def store(self, storage: BaseStorage, trial: int, point: Point) -> None:
        """Write a point into its trial."""
        for name, each in self.space.dimensions.items():
            distribution = each.distribution()
            value = distribution.to_internal_repr(each.as_drawn(point[name]))
            storage.set_trial_param(trial, name, value, distribution)
