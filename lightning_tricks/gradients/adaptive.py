"""Adaptive gradient clipping: no unit's gradient may be large beside the unit's own weights.

    G_i <- c max(||W_i||, eps) / ||G_i|| G_i    where ||G_i|| > c max(||W_i||, eps)

``W_i`` is a unit of a weight, with all that leads into one output: a row of a matrix, a filter of a
convolution; ``G_i`` is its gradient, and the norms are Euclidean. A vector or a scalar is one unit.

Reference: Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization", 2021,
https://arxiv.org/abs/2102.06171, equation 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.core.chosen import chosen_parameters
from lightning_tricks.core.gradients import Groups
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course, Schedule
from lightning_tricks.core.select import Patterns, as_patterns
from lightning_tricks.gradients.units import check_units, transposed, unit_norms, units_of
from lightning_tricks.lifecycle.strategies import flat_shards
from lightning_tricks.lifecycle.technique import Technique

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["AdaptiveGradientClip", "clip_units_"]


@torch.no_grad()
def clip_units_(
    grads: list[Tensor],
    weights: list[Tensor],
    axes: list[tuple[int, ...]],
    *,
    clip: float,
    eps: float,
    groups: Groups = (),
) -> Tensor:
    """Clip each unit of ``grads`` in place to ``clip`` times the norm of the same unit of ``weights``.

    Args:
        grads: At least one gradient; all of one type and device. Either each is one unit, or none is.
        weights: Their weights, of equal shapes; all of one type.
        axes: The axes of each along which its units lie; none where it is one unit.
        clip: Largest ratio of the two norms, at least 0.
        eps: Least norm that a unit of the weights counts for, above 0.
        groups: Process groups over which the entries of each unit are spread.

    Returns:
        Whether each unit was clipped, a 1-d bool tensor.

    Example:
        >>> grads = [torch.tensor([[3.0, 4.0], [0.3, 0.4]])]
        >>> clip_units_(grads, [torch.eye(2)], [(0,)], clip=1.0, eps=1e-3), grads
        (tensor([ True, False]), [tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])])
    """
    norms = unit_norms(grads, axes, groups)
    largest = clip * unit_norms(weights, axes, groups).clamp(min=eps)
    over = norms > largest
    factors = torch.where(over, largest / norms, 1.0)
    shapes = [
        [size if axis in own else 1 for axis, size in enumerate(grad.shape)]
        for grad, own in zip(grads, axes, strict=True)
    ]
    counts = [torch.Size(shape).numel() for shape in shapes]
    parts = torch.split_with_sizes(factors, counts)
    torch._foreach_mul_(grads, [part.view(shape) for part, shape in zip(parts, shapes, strict=True)])
    return over


@final
@dataclass(eq=False, repr=False, kw_only=True)
class AdaptiveGradientClip(Technique):
    """Clip the gradient of each unit to a share of the norm of the unit's own weights (:func:`clip_units_`).

    This is AGC, from networks without normalisation.

    * **When** just before each optimizer step, on unscaled and accumulated gradients. Beside GradientClip
      either may come first in the list, and acts first.
    * **Changes** the gradients of the parameters that ``params`` matches and ``exclude`` does not, in place.
      Over FSDP2 units are those of the whole weights; under FSDP1, whose flat pieces cut them, it refuses.
    * **Logs** ``adaptive_gradient_clip/clipped``, the share of units clipped in this step (over shards, of
      those that the first process holds), and ``/threshold``.
    * **Saves** nothing.
    * **Cost** the norms of all weights and gradients, two small operations per matrix, and one pass to scale;
      no memory between steps, no read to the host.
    * **Use** for networks without normalisation, large batches, spikes in single layers; **not** on the last
      layer, which is usually left out, nor against gradients that are not finite: GradientClip skips those.

    Args:
        clip: Largest norm of a unit's gradient as a share of the norm of its weights, at least 0; a number,
            a schedule or its text. 0.01 for batches of thousands, up to 0.16 for small ones.
        eps: Least norm that a unit counts for, in (0, 1], so that one that is zero can still learn.
        params: Name patterns of the parameters to clip.
        exclude: Name patterns of those among them to leave alone, such as the head; empty for none.

    Example:
        >>> AdaptiveGradientClip(clip=0.02, exclude="head")
        AdaptiveGradientClip(clip=0.02, eps=0.001, params='*', exclude='head')
    """

    clip: float | str | Schedule = 0.01
    eps: float = 1e-3
    params: Patterns = "*"
    exclude: Patterns = ()
    _chosen: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _members: set[nn.Parameter] = field(default_factory=set, init=False, repr=False)
    _turned: dict[nn.Parameter, int] = field(default_factory=dict, init=False, repr=False)
    _course: Course | None = field(default=None, init=False, repr=False)

    @property
    def gradient_stage(self) -> str:
        return "clipping"

    def __post_init__(self) -> None:
        as_schedule("clip", self.clip, 0.0)
        self.eps = checks.in_range("eps", self.eps, 0.0, 1.0, open_low=True)
        as_patterns("params", self.params)
        if not isinstance(self.exclude, tuple) or self.exclude:
            as_patterns("exclude", self.exclude)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._chosen = chosen_parameters(pl_module, self.params, trainer.optimizers, exclude=self.exclude)
        self._members, self._turned = set(self._chosen.values()), transposed(pl_module)
        check_units(self._chosen, flat_shards(trainer), self._turned)

    def claims(self) -> Iterable[Claim]:
        # Not all of clipping: one threshold for the norm of all gradients has its place beside this.
        return [self.claim("unit_clipping", self._chosen)]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._course = self.lay(trainer, "clip", as_schedule("clip", self.clip))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        assert self._course is not None
        clip = self._course(self.clock.position)
        over = [
            clip_units_(grads, weights, axes, clip=clip, eps=self.eps, groups=groups)
            for weights, grads, axes, groups in units_of(optimizer, self._members, self._turned)
        ]
        if over and self.reports(trainer):
            share = torch.cat([each.to(over[0].device) for each in over]).float().mean()
            self.report(trainer, pl_module, optimizer, clipped=share, threshold=clip)
