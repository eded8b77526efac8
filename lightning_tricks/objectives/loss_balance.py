"""How several losses become one to minimise: what a strategy is asked, and weights that you choose yourself.

    L = sum of w_i L_i

Reference: Caruana, "Multitask Learning", 1997, https://doi.org/10.1023/A:1007379606734.
"""

# Without postponed annotations: LightningCLI would look names in those of ``LossBalance`` up where its
# subclasses are defined, and know the type of none of their settings when one is missing there.

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.duration import Horizon
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course, Schedule
from lightning_tricks.core.select import Patterns

__all__ = ["FixedWeights", "LossBalance", "Moment", "State", "at_least_floor"]

State = dict[str, Tensor]
"""What a strategy remembers of a run, by name."""

FLOOR = 1e-12
"""What nothing smaller is divided by: a loss that has become 0 must not count infinitely much."""


def at_least_floor(values: Tensor) -> Tensor:
    """Return ``values``, or 1e-12 where they are smaller.

    Example:
        >>> at_least_floor(torch.tensor([2.0, 0.0]))
        tensor([2.0000e+00, 1.0000e-12])
    """
    return values.clamp(min=FLOOR)


class Moment(NamedTuple):
    """What the weights of a step are made of.

    Attributes:
        names: The losses, in alphabetical order.
        step: Optimizer steps before this one.
        state: What the strategy remembers.
        courses: Its schedules over the run, by the name of the loss.
        learned: What an optimizer learns for it, shape (losses,); ``None`` if nothing.
    """

    names: tuple[str, ...]
    step: int
    state: State
    courses: Mapping[str, Course]
    learned: Tensor | None


class LossBalance(ABC):
    """Base of the strategies; frozen dataclasses, which hold no state of a run themselves.

    Attributes:
        looks: Whether weights follow from the losses, so that processes must agree on these.
        nonnegative: Whether a negative loss has no meaning for it.
    """

    looks: ClassVar[bool] = True
    nonnegative: ClassVar[bool] = True

    @property
    def learned(self) -> tuple[str, ...]:
        """The losses for each of which an optimizer learns a number."""
        return ()

    @property
    def shared(self) -> Patterns | None:
        """The parameters whose gradients it looks at, if any."""
        return None

    def check(self, names: tuple[str, ...]) -> None:  # noqa: B027  # most fit any losses
        """Refuse losses that the settings do not fit."""

    def lay(self, horizon: Horizon) -> dict[str, Course]:
        """Return the schedules over a run of this length."""
        return {}

    def begin(self, losses: Tensor, norms: Tensor | None) -> State:
        """Return what is remembered before the first step.

        Args:
            losses: Those of the first batch, shape (losses,), the same in all processes.
            norms: Of their gradients, if these are looked at.
        """
        return {}

    def advance(
        self, state: State, losses: Tensor, norms: Tensor | None, *, count: int, ends_epoch: bool
    ) -> State:
        """Return what is remembered after a step.

        Args:
            state: What was before.
            losses: Means over the batches of the step, shape (losses,), the same in all processes.
            norms: Of their gradients, if these are looked at.
            count: How many steps there were, this one included.
            ends_epoch: Whether it was the last one of an epoch.
        """
        return state

    @abstractmethod
    def weigh(self, moment: Moment) -> Tensor:
        """Return the weights of a step, shape (losses,)."""

    def learning_term(self, moment: Moment, losses: Tensor) -> Tensor | None:
        """Return what trains ``moment.learned``; the losses themselves get no gradient of it.

        Args:
            moment: That of the step.
            losses: Those of the batch, shape (losses,), the same in all processes.
        """
        return None


@dataclass(frozen=True)
class FixedWeights(LossBalance):
    """Weights that you choose; without any, each is 1: the baseline of all others, at no cost.

    Promise: none about scales. A loss's share of the gradient is that of its own gradient times its weight.

    Args:
        weights: A number, a schedule or its text for each loss, at least 0; empty for 1 each.

    Example:
        >>> FixedWeights({"box": 1.0, "class": "0.5 * linear(to=0.1)"}).weights["box"]
        1.0
    """

    looks: ClassVar[bool] = False
    nonnegative: ClassVar[bool] = False

    weights: Mapping[str, float | str | Schedule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the setting."""
        if not isinstance(self.weights, Mapping):
            raise TypeError(f"weights must be weights by the names of losses, got {self.weights!r}")
        self._schedules()

    def _schedules(self) -> dict[str, Schedule]:
        return {
            name: as_schedule(f"weights[{name!r}]", value, 0.0, open_high=True)
            for name, value in self.weights.items()
        }

    def check(self, names: tuple[str, ...]) -> None:
        if self.weights and set(self.weights) != set(names):
            raise ValueError(
                f"weights must be for the losses, {checks.listed(names)}, got "
                f"{checks.listed(sorted(self.weights))}"
            )

    def lay(self, horizon: Horizon) -> dict[str, Course]:
        return {
            name: schedule.resolve(horizon if schedule.varies else Horizon(None), name=f"weights[{name!r}]")
            for name, schedule in self._schedules().items()
        }

    def weigh(self, moment: Moment) -> Tensor:
        courses = moment.courses
        values = [courses[name](moment.step) if courses else 1.0 for name in moment.names]
        return torch.tensor(values, dtype=torch.double)


# Else a module that saves them as hyperparameters could not be resumed: they hold plain values only.
torch.serialization.add_safe_globals([FixedWeights])
