"""A pull of weights towards anchors, each as strong as an old task is sure of it.

    P = 1/2 sum over j of F_j |w_j - a_j| ** 2,    dP / dw_j = F_j (w_j - a_j)

Gradient descent with rate r on ``strength * P`` alone diverges where r * strength * F_j is above 2, and with
momentum m where it is above 2 (1 + m).

References: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017,
https://arxiv.org/abs/1612.00796, equation 3; Goh, "Why Momentum Really Works", 2017,
https://distill.pub/2017/momentum, for the limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Anchors", "consolidate_", "consolidation_penalty", "of_parameters", "sgd_limit"]

Anchors = dict[nn.Parameter, tuple[Tensor, Tensor]]
"""Anchor and Fisher information of parameters, both in at least float32, the second real and not below 0."""


def of_parameters(
    parameters: Iterable[nn.Parameter], anchors: Anchors
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the weights of ``parameters`` that are anchored, with anchors and Fisher information."""
    found = [(p.detach(), *anchors[p]) for p in parameters if p in anchors]
    return [w for w, _, _ in found], [a for _, a, _ in found], [f for _, _, f in found]


@torch.no_grad()
def consolidate_(
    grads: list[Tensor],
    weights: list[Tensor],
    anchors: list[Tensor],
    fisher: list[Tensor],
    *,
    strength: float,
) -> None:
    """Add the gradient of ``strength`` times :func:`consolidation_penalty` to ``grads``, in place.

    Example:
        >>> grad, weight = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0])
        >>> consolidate_([grad], [weight], [torch.tensor([1.0, 1.0])], [torch.tensor([0.5, 8.0])], strength=2)
        >>> grad  # 2 * 0.5 * (3 - 1), and 0 at the anchor
        tensor([2., 0.])
    """
    if not grads or strength == 0.0:
        return
    pulls = torch._foreach_sub([w.to(a.dtype) for w, a in zip(weights, anchors, strict=True)], anchors)
    torch._foreach_mul_(pulls, fisher)
    torch._foreach_mul_(pulls, strength)
    # Only now, because a narrow type could not hold squares of small gradients.
    torch._foreach_add_(grads, [pull.to(grad.dtype) for pull, grad in zip(pulls, grads, strict=True)])


@torch.no_grad()
def consolidation_penalty(weights: list[Tensor], anchors: list[Tensor], fisher: list[Tensor]) -> Tensor:
    """Return half the sum of F |w - a| ** 2, shape (): in units of the loss; 0 of nothing.

    Example:
        >>> w, a, f = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.5, 8.0])
        >>> consolidation_penalty([w], [a], [f])  # 0.5 * 2 ** 2 / 2
        tensor(1.)
    """
    total = torch.zeros((), device=weights[0].device if weights else None)
    for weight, anchor, sure in zip(weights, anchors, fisher, strict=True):
        total = total + (sure * (weight.to(anchor.dtype) - anchor).abs().square()).sum().to(total)
    return total / 2


def sgd_limit(optimizers: Iterable[Optimizer], tasks: list[Anchors]) -> float:
    """Return the strength above which the penalty alone diverges under SGD; infinite without SGD."""
    limit = math.inf
    for optimizer in optimizers:
        for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
            sums = [sum(task[p][1] for task in tasks if p in task) for p in group["params"]]
            steep = [float(each.max()) for each in sums if isinstance(each, Tensor) and each.numel()]
            rate = float(group.get("initial_lr", group["lr"])) * max(steep, default=0.0)
            if rate > 0.0:
                limit = min(limit, 2 * (1 + group["momentum"]) / rate)
    return limit
