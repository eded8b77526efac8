"""Weights of several losses by their uncertainties, which an optimizer learns.

    L = sum of c_i exp(-s_i) L_i + s_i / 2,    c_i = 1/2 for regression, 1 for classification

``s_i`` is the logarithm of the variance of loss ``i``, and best at ``s_i = log(2 c_i L_i)``: a loss counts as
much as it is small. ``L`` may be negative.

Reference: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry
and Semantics", 2018, https://arxiv.org/abs/1705.07115, equations 7 and 10.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tricks.core import checks
from lightning_tricks.objectives.loss_balance import LossBalance, Moment, State, at_least_floor

__all__ = ["UncertaintyBalance", "check_learned", "uncertainty_loss"]

FACTORS = {"regression": 0.5, "classification": 1.0}


def uncertainty_loss(losses: Tensor, log_variances: Tensor, factors: Tensor) -> Tensor:
    """Return the objective, shape ().

    Args:
        losses: Shape (losses,).
        log_variances: ``s``, of the same shape.
        factors: ``c``, of the same shape.

    Example:
        >>> uncertainty_loss(torch.tensor([2.0, 1.0]), torch.zeros(2), torch.tensor([0.5, 1.0]))
        tensor(2.)
    """
    return (factors * torch.exp(-log_variances) * losses + log_variances / 2).sum()


def check_learned(parameter: nn.Parameter, optimizers: Iterable[Optimizer]) -> float:
    """Return the weight decay of the group that holds ``parameter``.

    Raises:
        ValueError: If no optimizer holds it.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(each is parameter for each in group["params"]):
                return float(group.get("weight_decay", 0.0))
    raise ValueError(
        "loss_log_variances must be in an optimizer for UncertaintyBalance, got none that holds it: let "
        "configure_optimizers take self.parameters(), or add a group for it"
    )


@dataclass(frozen=True)
class UncertaintyBalance(LossBalance):
    """Let the optimizer learn how uncertain each loss is, and count it by that (equation above).

    ``s`` is learnt as the module's parameter ``loss_log_variances``, one number per loss in alphabetical
    order, which counts from where ``s`` starts; so it begins at 0, and what decays it pulls it there.

    Promise: from ``start=None``, units do not matter: to multiply a loss by 10,000 changes nothing. With a
    number they do until ``s`` has arrived, which takes long: of two losses whose scales differ by 10,000, the
    greater still has 99 % of the gradient after 200 steps of Adam at a rate of 0.05.

    Args:
        kinds: For each loss, ``"regression"`` or ``"classification"``.
        start: Where each ``s`` starts, such as 0; ``None`` for the logarithm of the loss of the first batch.

    Example:
        >>> UncertaintyBalance({"box": "regression", "class": "classification"}).start is None
        True
    """

    kinds: Mapping[str, str]
    start: float | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if not isinstance(self.kinds, Mapping) or not self.kinds:
            raise TypeError(f"kinds must be the kind of each loss by its name, got {self.kinds!r}")
        for name, kind in self.kinds.items():
            checks.one_of(f"kinds[{name!r}]", kind, list(FACTORS))
        if self.start is not None:
            checks.in_range("start", self.start, -20.0, 20.0)

    @property
    def learned(self) -> tuple[str, ...]:
        return tuple(sorted(self.kinds))

    def check(self, names: tuple[str, ...]) -> None:
        if names != self.learned:
            raise ValueError(
                f"kinds must be for the losses, {checks.listed(names)}, got {checks.listed(self.learned)}"
            )

    def begin(self, losses: Tensor, norms: Tensor | None) -> State:
        if self.start is not None:
            return {"unit": torch.full_like(losses, math.exp(self.start))}
        return {"unit": at_least_floor(losses)}

    def _factors(self, like: Tensor) -> Tensor:
        factors = torch.tensor([FACTORS[self.kinds[name]] for name in self.learned], dtype=like.dtype)
        return factors.to(like.device, non_blocking=True)

    def weigh(self, moment: Moment) -> Tensor:
        assert moment.learned is not None
        unit = moment.state["unit"]
        return self._factors(unit) * torch.exp(-moment.learned.detach().to(unit)) / unit

    def learning_term(self, moment: Moment, losses: Tensor) -> Tensor:
        assert moment.learned is not None
        unit = moment.state["unit"]
        # Of losses that are the same in all processes, and so is the gradient: no strategy need average it.
        return uncertainty_loss(losses / unit, moment.learned.to(unit), self._factors(unit))


# Else a module that saves it as a hyperparameter could not be resumed: it holds plain values only.
torch.serialization.add_safe_globals([UncertaintyBalance])
