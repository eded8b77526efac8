"""By how much an exponential moving average forgets in one step: values, schedules and policies.

    half-life       d = 2 ** (-x / h)                         x the length of the step, in the unit of h
    power function  d = (1 - 1 / t) ** (gamma + 1)            t steps made, this one included
    inverse         d = 1 - (1 + t / inv_gamma) ** (-power)   t steps made before this one

Everything is written as the share 1 - d of the live weights, which 64 bits hold to the end where d is near 1.
With a power function the average of t steps is the weighted mean with weights proportional to s ** gamma at
step s; its relative width sigma_rel is sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)).

References: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2024,
https://arxiv.org/abs/2312.02696, section 3.1; the inverse form is that of ``EMAWarmup`` in k-diffusion, also
in timm and diffusers. The warm-up is that of TensorFlow's ``ExponentialMovingAverage``.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.duration import Duration, as_unit
from lightning_tricks.core.schedule import Course
from lightning_tricks.lifecycle.clock import Clock

__all__ = [
    "EMADecay",
    "FollowingDecay",
    "HalfLife",
    "InverseDecay",
    "PowerDecay",
    "half_life_share",
    "inverse_share",
    "joint_share",
    "power_share",
    "warmed_share",
]

_SAMPLES = re.compile(r"\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*samples?\s*")


def warmed_share(share: float | Tensor, updates: int | Tensor) -> float | Tensor:
    """Return ``share``, but at least 9 / (10 + t), so that the first weights are soon forgotten.

    Args:
        share: 1 - d, in [0, 1].
        updates: t, the real steps before this one; a 0-d tensor stays on its device.

    Example:
        >>> warmed_share(0.001, 0), warmed_share(0.001, 8), warmed_share(0.001, 10_000)
        (0.9, 0.5, 0.001)
    """
    early = 9 / (10 + updates)
    if not isinstance(early, Tensor):
        return max(share, early)
    return early.maximum(share) if isinstance(share, Tensor) else early.clamp(min=share)


def joint_share(first: float | Tensor, second: float | Tensor) -> float | Tensor:
    """Return the share of the live weights if both steps are made as one: the decays' product, from 1.

    Example:
        >>> joint_share(0.5, 0.5)
        0.75
    """
    return first + (1.0 - first) * second


def half_life_share(half_lives: float) -> float:
    """Return the share of what is new after so many half-lives, which may be a part of one.

    Example:
        >>> half_life_share(1.0), half_life_share(2.0)
        (0.5, 0.75)
    """
    return -math.expm1(-math.log(2.0) * half_lives)


def power_share(updates: int | Tensor, *, gamma: float, steps: int | Tensor = 1) -> float | Tensor:
    """Return that of the power function's average: 1 at the first step, then about (gamma + 1) / t.

    Args:
        updates: The real steps before, at which the average has moved last; a 0-d tensor stays on its device.
        gamma: Power of the weight with which a step enters, above -1.
        steps: How many real steps have been made since, by which it moves as one: 1 - (1 - steps / t) **
            (gamma + 1); may be such a tensor too.

    Example:
        >>> power_share(0, gamma=1.0), power_share(1, gamma=1.0)  # in all: weights 1 : 2 of two steps
        (1.0, 0.75)
    """
    if isinstance(made := updates + steps, Tensor):
        return -torch.expm1((gamma + 1) * torch.log1p(-steps / made.clamp(min=1)))
    if updates == 0 or steps == 0:
        return float(steps > 0)
    return -math.expm1((gamma + 1) * math.log1p(-steps / made))


def inverse_share(updates: int | Tensor, *, power: float, inv_gamma: float) -> float | Tensor:
    """Return that of the inverse form: 1 at the first step, then falling as a power of the steps.

    Args:
        updates: The real steps before this one; a 0-d tensor stays on its device.
        power: Above 0.
        inv_gamma: Steps that the fall needs to begin, above 0.

    Example:
        >>> inverse_share(0, power=0.5, inv_gamma=1.0), inverse_share(3, power=0.5, inv_gamma=1.0)
        (1.0, 0.5)
    """
    share: float | Tensor = (1 + updates / inv_gamma) ** -power
    return share


class EMADecay(ABC):
    """Base of the policies; frozen dataclasses, which hold no state of a run themselves.

    Attributes:
        warms_up: Whether it starts from a decay of 0 by itself, and so takes no other warm-up.
        in_samples: Whether it counts the samples of each step.
    """

    warms_up: ClassVar[bool] = False
    in_samples: bool = False

    @abstractmethod
    def share(self, updates: int | Tensor, *, samples: int, clock: Clock) -> float | Tensor:
        """Return 1 - d of one step.

        Args:
            updates: The real steps since averaging began, before this one; a 0-d tensor if only the device
                knows.
            samples: Those of this step, all processes and accumulated batches together.
            clock: Where the run stands; its position counts this step.

        Raises:
            ValueError: If the policy needs a length of the run that is unknown.
        """


@dataclass(frozen=True)
class FollowingDecay(EMADecay):
    """The decay that a schedule has where the run stands."""

    course: Course

    def share(self, updates: int | Tensor, *, samples: int, clock: Clock) -> float | Tensor:
        return 1.0 - self.course(clock.position - 1)


@dataclass(frozen=True)
class HalfLife(EMADecay):
    """Forget half of what the average holds within ``half_life``.

    In samples, it is the same average at any batch size and on any number of devices. A step has those of all
    batches that it accumulates, times the number of processes that get data of their own; so all are taken to
    have batches as large as this one's, which needs no communication. The size of a batch is that of the
    first dimension of its first tensor, as Lightning's logging has it.

    Attributes:
        half_life: Optimizer steps, ``"2 epochs"``, ``"5%"`` of the run, or ``"2000 samples"``; above 0.

    Example:
        >>> HalfLife("2000 samples")
        HalfLife(half_life='2000 samples')
        >>> HalfLife("2000 samples").share(0, samples=1000, clock=Clock())
        0.2928932188134525
    """

    half_life: int | str
    in_samples: bool = field(init=False, repr=False)
    _length: Duration | float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the setting."""
        found = _SAMPLES.fullmatch(self.half_life) if isinstance(self.half_life, str) else None
        if found:
            length: Duration | float = checks.in_range(
                "half_life", float(found[1]), 0.0, open_low=True, open_high=True
            )
        else:
            try:
                length = as_unit("half_life", self.half_life)
            except (TypeError, ValueError) as error:
                error.add_note("a half-life may also be written in samples, as '2000 samples'")
                raise
        object.__setattr__(self, "in_samples", bool(found))
        object.__setattr__(self, "_length", length)

    def share(self, updates: int | Tensor, *, samples: int, clock: Clock) -> float | Tensor:
        if not isinstance(self._length, Duration):
            return half_life_share(samples / self._length)
        if self._length.unit == "steps":  # needs no length of the run, so none is marked as used
            return half_life_share(1 / self._length.amount)
        return half_life_share(clock.horizon.elapsed(clock.position - 1, clock.position, self._length))


@dataclass(frozen=True)
class PowerDecay(EMADecay):
    """The power function average of Karras et al.: as long as the run, whatever its length.

    The weights of step s enter in proportion to s ** gamma, so that the average always spans the same part of
    what has been trained.

    Attributes:
        gamma: At least 0, which is the plain mean; the paper uses 6.94 (a relative width of 0.10) and 16.97
            (0.05).

    Example:
        >>> PowerDecay()
        PowerDecay(gamma=6.94)
    """

    warms_up: ClassVar[bool] = True

    gamma: float = 6.94

    def __post_init__(self) -> None:
        """Check the setting."""
        object.__setattr__(self, "gamma", checks.in_range("gamma", self.gamma, 0.0, open_high=True))

    def share(self, updates: int | Tensor, *, samples: int, clock: Clock) -> float | Tensor:
        return power_share(updates, gamma=self.gamma)


@dataclass(frozen=True)
class InverseDecay(EMADecay):
    """A decay that rises from 0 towards ``max_decay`` as 1 - (1 + t / inv_gamma) ** (-power).

    Attributes:
        power: Above 0; 2/3 is meant for runs of a million steps and more, 3/4 for shorter ones.
        inv_gamma: Steps after which the decay begins to rise in earnest, above 0.
        max_decay: In [0, 1].

    Example:
        >>> InverseDecay(0.75, max_decay=0.9999)
        InverseDecay(power=0.75, inv_gamma=1.0, max_decay=0.9999)
    """

    warms_up: ClassVar[bool] = True

    power: float = 2 / 3
    inv_gamma: float = field(default=1.0, kw_only=True)
    max_decay: float = field(default=0.9999, kw_only=True)

    def __post_init__(self) -> None:
        """Check the settings."""
        checks.in_range("power", self.power, 0.0, open_low=True, open_high=True)
        checks.in_range("inv_gamma", self.inv_gamma, 0.0, open_low=True, open_high=True)
        checks.in_range("max_decay", self.max_decay, 0.0, 1.0)

    def share(self, updates: int | Tensor, *, samples: int, clock: Clock) -> float | Tensor:
        share = inverse_share(updates, power=self.power, inv_gamma=self.inv_gamma)
        least = 1.0 - self.max_decay
        return share.clamp(min=least) if isinstance(share, Tensor) else max(share, least)
