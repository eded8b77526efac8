"""Gradient centralization: the mean of each row or filter is taken out of its gradient.

    G_i <- G_i - mean(G_i)    for each index i of the first axis, of every gradient of more than one axis

So the sum of the weights in a row or a filter is left as it is, but for decay and momentum from before.

Reference: Yong et al., "Gradient Centralization: A New Optimization Technique for Deep Neural Networks",
2020, https://arxiv.org/abs/2004.01461, equation 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_tricks.core.chosen import chosen_parameters
from lightning_tricks.core.gradients import Groups
from lightning_tricks.core.select import Patterns, as_patterns
from lightning_tricks.gradients.units import check_units, units_of, within_units
from lightning_tricks.lifecycle.strategies import flat_shards
from lightning_tricks.lifecycle.technique import Technique

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["GradientCentralization", "centralize_"]


@torch.no_grad()
def centralize_(grads: Iterable[Tensor], groups: Groups = ()) -> None:
    """Subtract from each of ``grads`` of more than one axis its mean over all axes but the first, in place.

    Args:
        grads: Tensors of any shape.
        groups: Process groups over which the other axes are spread, so that each process holds a part.

    Example:
        >>> grad = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
        >>> centralize_([grad])
        >>> grad
        tensor([[-1.,  1.],
                [ 0.,  0.]])
    """
    for grad in grads:
        if grad.ndim < 2:
            continue
        axes = within_units(grad, (0,))
        if not groups:
            grad -= grad.mean(dim=axes, keepdim=True)
            continue
        wide = torch.promote_types(grad.dtype, torch.float32)
        total = grad.sum(dim=axes, keepdim=True, dtype=wide)
        count = total.new_full((), grad[:1].numel())  # made on the device, without a wait
        for group in groups:
            dist.all_reduce(total, group=group)
            dist.all_reduce(count, group=group)
        grad -= total / count


@final
@dataclass(eq=False, repr=False, kw_only=True)
class GradientCentralization(Technique):
    """Take the mean out of the gradient of each row or filter (:func:`centralize_`).

    * **When** just before each optimizer step, on unscaled and accumulated gradients, before any noise and
      clipping.
    * **Changes** the gradients of more than one axis of the parameters that ``params`` matches, in place; the
      rows of a transposed convolution too, as in the authors' code, are those of its first axis. Over FSDP2
      rows are those of the whole weights; under FSDP1, whose flat pieces cut them, it refuses.
    * **Logs** nothing.
    * **Saves** nothing.
    * **Cost** two small operations per matrix; no memory between steps, no read to the host.
    * **Use** for convolutional and dense networks, with momentum or Adam; **not** on a layer without bias
      whose inputs have a mean, where a unit must learn the sum of its weights.

    Args:
        params: Name patterns of the parameters whose gradients are centralized.

    Example:
        >>> GradientCentralization(params="encoder.*")
        GradientCentralization(params='encoder.*')
    """

    params: Patterns = "*"
    _chosen: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _members: set[nn.Parameter] = field(default_factory=set, init=False, repr=False)

    @property
    def gradient_stage(self) -> str:
        return "centralization"

    def __post_init__(self) -> None:
        as_patterns("params", self.params)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        chosen = chosen_parameters(pl_module, self.params, trainer.optimizers)
        check_units(chosen, flat_shards(trainer))
        self._chosen = {name: p for name, p in chosen.items() if is_lazy(p) or p.ndim > 1}
        if not self._chosen:
            raise ValueError(f"params must match a weight of more than one axis, got {self.params!r}")
        self._members = set(self._chosen.values())

    def claims(self) -> Iterable[Claim]:
        return [self.claim("gradient_mean", self._chosen)]

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        for units in units_of(optimizer, self._members):
            centralize_(units.gradients, units.groups)
