"""GradNorm: weights under which all losses train at similar rates.

    G_i = w_i |g_i|,    g_i the gradient of L_i over the shared parameters
    r_i = (L_i / L_i(0)) / mean over j of (L_j / L_j(0))
    minimise over w:  sum of |G_i - mean(G) r_i ** alpha|,    then divide w by its mean

``L_i(0)`` is the loss of the first batch. A step of the descent is made on ``log w_i``, in units of the mean
norm: ``log w_i <- log w_i - lr sign(G_i - mean(G) r_i ** alpha) G_i / mean(G)``. On ``w_i`` itself, as in
the paper, one rate could not serve losses whose scales differ by much, and a weight could become negative.
For the same reason weights start not at 1, but where the descent would end on the first batch:
``w_i ~ 1 / |g_i|``.

Reference: Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
Networks", 2018, https://arxiv.org/abs/1711.02257, equations 1 and 2, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.optim import Optimizer

from lightning_tricks.core import checks
from lightning_tricks.core.chosen import chosen_parameters
from lightning_tricks.core.compiled import is_compiled
from lightning_tricks.core.select import Patterns, as_patterns, select
from lightning_tricks.objectives.loss_balance import LossBalance, Moment, State, at_least_floor

__all__ = ["GradNorm", "grad_norm_step", "norms_of", "shared_parameters", "task_gradients"]


def shared_parameters(
    module: nn.Module, patterns: Patterns, optimizers: Iterable[Optimizer] | None
) -> list[nn.Parameter]:
    """Return the parameters of ``module`` to look at.

    Args:
        module: The module.
        patterns: Which.
        optimizers: Those of the run, if there is one.

    Raises:
        ValueError: If none of them is trained, or compiled code would not let its graph be used again.
    """
    if optimizers is None:
        found = list(select(module, patterns).values())
    else:
        found = list(chosen_parameters(module, patterns, optimizers).values())
    if not any(parameter.requires_grad for parameter in found):
        raise ValueError(f"params must match a parameter that is trained, got {patterns!r}")
    if functorch_config.donated_buffer and is_compiled(module):
        raise ValueError(
            "torch._functorch.config.donated_buffer must be False for GradNorm, which needs the graph of "
            "compiled code more than once, got True: set it before training"
        )
    return found


def task_gradients(losses: Sequence[Tensor], shared: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the gradients of each loss, of ``shared`` in turn; 0 where a loss does not reach one.

    The graph stays, so that the losses can be propagated after this.
    """
    trained = [parameter for parameter in shared if parameter.requires_grad]
    found = []
    for loss in losses:
        own: dict[nn.Parameter, Tensor | None] = {}
        if loss.requires_grad and trained:
            grads = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
            own = dict(zip(trained, grads, strict=True))
        found += [torch.zeros_like(p) if (grad := own.get(p)) is None else grad for p in shared]
    return found


def norms_of(gradients: Sequence[Tensor], count: int) -> Tensor:
    """Return the norm of the gradients of each of ``count`` losses, shape (count,), at least float32.

    Example:
        >>> norms_of([torch.tensor([3.0, 4.0]), torch.zeros(1), torch.zeros(2), torch.ones(1)], 2)
        tensor([5., 1.])
    """
    each = len(gradients) // count
    wide = torch.promote_types(gradients[0].dtype, torch.float32)
    norms = torch.stack([torch.linalg.vector_norm(grad, dtype=wide) for grad in gradients])
    total: Tensor = torch.linalg.vector_norm(norms.view(count, each), dim=1)
    return total


def grad_norm_step(weights: Tensor, norms: Tensor, ratios: Tensor, *, alpha: float, lr: float) -> Tensor:
    """Return the weights after a step (equations above); as they were where a norm is not finite.

    Args:
        weights: Shape (losses,), above 0.
        norms: Of the gradients of the losses without weights.
        ratios: Each loss divided by what it was at first.
        alpha: At least 0.
        lr: Above 0.

    Example:
        >>> weights, norms = torch.ones(2), torch.tensor([3.0, 1.0])
        >>> grad_norm_step(weights, norms, torch.ones(2), alpha=1.5, lr=0.1)
        tensor([0.9003, 1.0997])
    """
    weighted = weights * norms
    mean = weighted.mean()
    gaps = weighted / mean - (ratios / ratios.mean()) ** alpha
    # Where it has arrived, as at first, rounding should not say which way it goes.
    ways = torch.where(gaps.abs() > 1e-5, gaps.sign(), 0.0)
    moved = weights * torch.exp(-lr * ways * weighted / mean)
    moved = moved / moved.mean()
    return torch.where(moved.isfinite().all(), moved, weights)


@dataclass(frozen=True)
class GradNorm(LossBalance):
    """Weigh losses by the norms of their gradients, those that have fallen less more (equations above).

    Costs a backward pass per loss and batch, from the losses down to the shared parameters, and their
    gradients in memory once per loss; over processes these gradients are averaged. For three losses on four
    convolutions and a linear layer a step takes 1.07 times as long (CPU) if that last shared layer is looked
    at, and 2.7 times if all of it is. Needs whole gradients: DDP, not shards.

    Promise: the share of loss ``i`` in the sum of the norms over the shared parameters is ``r_i ** alpha``
    divided by the sum of these, on average within 10 percentage points; with ``alpha=0`` they are equal.

    Args:
        params: Name patterns of the shared parameters to look at; of the last layer that all losses share, in
            the paper.
        alpha: How much more those count that have fallen less, at least 0. The paper takes 1.5, and 0.12 for
            tasks that are alike.
        lr: Rate of the descent, in (0, 1].

    Example:
        >>> GradNorm("trunk.3", alpha=0.5)
        GradNorm(params='trunk.3', alpha=0.5, lr=0.025)
    """

    params: Patterns
    alpha: float = 1.5
    lr: float = 0.025

    def __post_init__(self) -> None:
        """Check the settings."""
        as_patterns("params", self.params)
        object.__setattr__(self, "alpha", checks.in_range("alpha", self.alpha, 0.0, 100.0))
        object.__setattr__(self, "lr", checks.in_range("lr", self.lr, 0.0, 1.0, open_low=True))

    @property
    def shared(self) -> Patterns:
        return self.params

    def begin(self, losses: Tensor, norms: Tensor | None) -> State:
        assert norms is not None
        inverse = 1 / at_least_floor(norms)
        sane = norms.isfinite().all()
        return {"first": losses, "weights": torch.where(sane, inverse / inverse.mean(), 1.0).to(losses)}

    def advance(
        self, state: State, losses: Tensor, norms: Tensor | None, *, count: int, ends_epoch: bool
    ) -> State:
        assert norms is not None
        ratios = losses / at_least_floor(state["first"])
        moved = grad_norm_step(
            state["weights"], norms.to(losses), at_least_floor(ratios), alpha=self.alpha, lr=self.lr
        )
        return {**state, "weights": moved}

    def weigh(self, moment: Moment) -> Tensor:
        return moment.state["weights"]


# Else a module that saves it as a hyperparameter could not be resumed: it holds plain values only.
torch.serialization.add_safe_globals([GradNorm])
