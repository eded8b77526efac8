"""Gradient noise: Gaussian noise, fading over training, added to every gradient.

    g <- g + n,    n ~ Normal(0, s_t ** 2),    s_t ** 2 = variance / (1 + t) ** decay

``t`` counts optimizer steps from 0. ``variance`` has the unit of a squared gradient entry.

Reference: Neelakantan et al., "Adding Gradient Noise Improves Learning for Very Deep Networks",
2015, https://arxiv.org/abs/1511.06807, equations 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.core.chosen import chosen_parameters
from lightning_tricks.core.gradients import Groups, gradients_of
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course, Schedule
from lightning_tricks.core.seeds import seed_of
from lightning_tricks.core.select import Patterns, as_patterns
from lightning_tricks.lifecycle.strategies import flat_shards
from lightning_tricks.lifecycle.technique import Technique

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["GradientNoise", "add_noise_", "noise_std"]


def noise_std(step: int, *, variance: float, decay: float) -> float:
    """Return the standard deviation of the noise at optimizer step ``step`` (from 0).

    Example:
        >>> round(noise_std(99, variance=0.01, decay=1.0), 12)
        0.01
    """
    return math.sqrt(variance) * math.pow(1 + step, -decay / 2)


@torch.no_grad()
def add_noise_(grads: list[Tensor], *, std: float, seed: int) -> None:
    """Add independent Normal(0, std ** 2) noise to each entry of ``grads``, in place.

    Args:
        grads: At least one tensor; of any shapes, one floating or complex type and one device.
        std: Standard deviation, in units of a gradient entry. With 0 nothing changes.
        seed: Where the noise starts; the same numbers for the same seed, shapes and kind of device.
    """
    if std == 0.0:
        return
    generator = torch.Generator(grads[0].device).manual_seed(seed)
    for grad in grads:
        noise = torch.randn(grad.shape, generator=generator, device=grad.device, dtype=grad.dtype)
        grad += noise.mul_(std)


@final
@dataclass(eq=False, repr=False, kw_only=True)
class GradientNoise(Technique):
    """Add fading Gaussian noise to the gradients (:func:`noise_std`, :func:`add_noise_`).

    It is the same on all processes, and when resumed.

    * **When** just before each optimizer step, on unscaled and accumulated gradients, before any clipping.
    * **Changes** the gradients of the parameters that ``params`` matches, in place. Copies of a weight in
      several processes get the same noise, each part of a weight over shards its own.
    * **Logs** ``gradient_noise/std``, in units of a gradient entry.
    * **Saves** how many times it drew; the noise follows from that and from ``seed``.
    * **Cost** one random tensor per parameter; no memory between steps, no read to the host.
    * **Use** for very deep or badly initialised networks; **not** with an already small batch.

    Args:
        variance: Noise variance at the first step, at least 0; a number, a schedule or its text. With 0
            training is unchanged. The paper chooses among 0.01, 0.3 and 1.
        decay: Power with which the variance falls, at least 0. With 0 only a schedule changes it.
        params: Name patterns of the parameters to disturb.
        seed: Seed of the noise, at least 0.

    Example:
        >>> GradientNoise(variance=0.1)
        GradientNoise(variance=0.1, decay=0.55, params='*', seed=0)
    """

    variance: float | str | Schedule = 0.01
    decay: float = 0.55
    params: Patterns = "*"
    seed: int = 0
    _chosen: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _members: set[nn.Parameter] = field(default_factory=set, init=False, repr=False)
    _spread: dict[nn.Parameter, Groups] = field(default_factory=dict, init=False, repr=False)
    _course: Course | None = field(default=None, init=False, repr=False)
    _drawn: int = field(default=0, init=False, repr=False)

    @property
    def gradient_stage(self) -> str:
        return "noise"

    def __post_init__(self) -> None:
        as_schedule("variance", self.variance, 0.0, open_high=True)
        self.decay = checks.in_range("decay", self.decay, 0.0, open_high=True)
        as_patterns("params", self.params)
        checks.whole("seed", self.seed)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._chosen = chosen_parameters(pl_module, self.params, trainer.optimizers)
        self._members, self._spread = set(self._chosen.values()), flat_shards(trainer)

    def claims(self) -> Iterable[Claim]:
        return [self.claim("gradient_noise", self._chosen)]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._course = self.lay(trainer, "variance", as_schedule("variance", self.variance))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        assert self._course is not None
        position = self.clock.position
        std = noise_std(position, variance=self._course(position), decay=self.decay)
        for number, (grads, groups) in enumerate(gradients_of(optimizer, self._members, self._spread)):
            place = [dist.get_rank(group) for group in groups]
            add_noise_(grads, std=std, seed=seed_of(self.seed, self.label, self._drawn, number, place))
        self._drawn += 1
        self.report(trainer, pl_module, optimizer, std=std)

    def saved(self) -> dict[str, Any]:
        return {"drawn": self._drawn}

    def restore(self, state: dict[str, Any]) -> None:
        self._drawn = state["drawn"]
