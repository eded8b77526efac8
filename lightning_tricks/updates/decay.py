"""How weights are pulled towards zero: by their gradients, or past the optimizer.

    L2 penalty      L + strength / 2 * |w|^2,   so   g <- g + strength * w
    L1 penalty      L + strength * |w|_1,       so   g <- g + strength * sign(w)
    decoupled       w <- (1 - rate * strength) w,   then the optimizer's own step
    proximal L1     the optimizer's own step, then   w <- sign(w) max(|w| - k, 0)

Under an optimizer that divides by the size of past gradients the first two are divided too: weights with
large gradients are pulled less. ``k`` is rate * strength, divided as the step itself is.

References: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019,
https://arxiv.org/abs/1711.05101; Parikh and Boyd, "Proximal Algorithms", 2014, section 6.5.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tricks.core.tensors import local
from lightning_tricks.updates.combined import stepper, steppers

__all__ = [
    "LARGEST",
    "add_l1_",
    "add_l2_",
    "coupled_adaptive",
    "decay_",
    "pairs_of",
    "prox_",
    "why_not_coupled",
    "without_proximal",
]

LARGEST = 1e6
"""The greatest strength; one of 1e308 would overflow within an optimizer."""


def pairs_of(group: dict[str, Any], chosen: set[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights of a parameter group that a step will change, and their gradients.

    Returns:
        What this process holds of each, in the same memory.
    """
    moved = [p for p in group["params"] if p.grad is not None and p in chosen]
    return [local(p.detach()) for p in moved], [local(p.grad) for p in moved]


@torch.no_grad()
def add_l2_(grads: list[Tensor], weights: list[Tensor], *, strength: float) -> None:
    """Add the gradient of ``strength / 2 * |w|^2``, in place."""
    if grads and strength != 0.0:
        torch._foreach_add_(grads, _like(weights, grads), alpha=strength)


@torch.no_grad()
def add_l1_(grads: list[Tensor], weights: list[Tensor], *, strength: float) -> None:
    """Add the gradient of ``strength * |w|_1``, in place; 0 where a weight is 0."""
    if grads and strength != 0.0:
        torch._foreach_add_(grads, _like(torch._foreach_sign(weights), grads), alpha=strength)


def _like(tensors: Iterable[Tensor], others: list[Tensor]) -> list[Tensor]:
    return [tensor.to(other.dtype) for tensor, other in zip(tensors, others, strict=True)]


@torch.no_grad()
def decay_(weights: list[Tensor], *, factor: float | Tensor, unless: Tensor | None = None) -> None:
    """Multiply ``weights`` by ``factor``, in place.

    Args:
        weights: Tensors of any shapes and types.
        factor: 1 - rate * strength; a 0-d tensor where the rate is one.
        unless: Leaves all as it is where this 0-d bool tensor is true, which stays on its device.
    """
    narrow = any(weight.dtype.itemsize < 4 for weight in weights)
    # On a CPU, foreach kernels round a factor to a narrow type before they multiply.
    if weights and unless is None and not isinstance(factor, Tensor) and not narrow:
        torch._foreach_mul_(weights, factor)
        return
    for weight in weights:
        wide = torch.promote_types(weight.dtype, torch.float32)
        by = torch.as_tensor(factor, dtype=wide, device=weight.device)
        by = by if unless is None else torch.where(unless.to(weight.device), 1.0, by)
        # With as many axes as the weight, or torch would round it to the weight's type likewise.
        weight.mul_(by.view([1] * weight.ndim))


def _steps(state: dict[str, Any]) -> Tensor:
    step: Tensor = state["step"]
    # In single precision 1 - 0.999 would be off by 1e-5; another device may have no double.
    return step.double() if step.device.type == "cpu" else step


def _adam(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    second: Tensor = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    correction: Tensor = 1 - group["betas"][1] ** _steps(state)
    return (local(second) / correction).sqrt_().add_(group["eps"])


def _adagrad(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    past: Tensor = 1 + (_steps(state) - 1) * group["lr_decay"]
    return past * local(state["sum"]).sqrt().add_(group["eps"])


def _rmsprop(state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    second = local(state["square_avg"])
    if group["centered"]:
        mean = local(state["grad_avg"])
        second = second - mean * mean
    return second.sqrt().add_(group["eps"])


# What each optimizer divides its step by; nothing where it does not.
_DIVISORS: dict[type[Optimizer], Callable[[dict[str, Any], dict[str, Any]], Tensor] | None] = {
    torch.optim.SGD: None,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.Adagrad: _adagrad,
    torch.optim.RMSprop: _rmsprop,
}


def without_proximal(optimizer: Optimizer) -> str | None:
    """Return the name of an optimizer of which :func:`prox_` does not know what it divides its step by."""
    kinds = (type(each) for each in steppers([optimizer]))
    return next((kind.__name__ for kind in kinds if kind not in _DIVISORS), None)


@torch.no_grad()
def prox_(
    optimizer: Optimizer,
    group: dict[str, Any],
    chosen: set[nn.Parameter],
    *,
    strength: float,
    applied: bool | Tensor,
) -> None:
    """Pull weights towards zero by what an L1 penalty makes of the step just done, and no further.

    Args:
        optimizer: One for which :func:`without_proximal` has no name.
        group: The parameter group of it.
        chosen: The parameters concerned.
        strength: Of the penalty, at least 0.
        applied: Whether the step was applied; a 0-d bool tensor where only the device knows.
    """
    divisor = _DIVISORS[type(stepper(optimizer, group))]
    for parameter in group["params"]:
        if parameter not in chosen or parameter.grad is None or applied is False:
            continue
        weight = local(parameter.detach())
        most = torch.as_tensor(group["lr"] * strength, dtype=torch.float64).to(weight)
        if divisor is not None:
            most = most / divisor(optimizer.state[parameter], group)
        if isinstance(applied, Tensor):
            most = torch.where(applied.to(weight.device), most, 0.0)
        # Not by its sign and size: so a weight within reach comes out as exactly 0.
        weight -= torch.maximum(torch.minimum(weight, most), -most)


_ADAPTIVE = (
    torch.optim.Adadelta,
    torch.optim.Adafactor,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
)
_ADAPTIVE_NAMES = ("AdamWScheduleFree", "RAdamScheduleFree")  # of a package that may be missing


def coupled_adaptive(optimizers: Iterable[Optimizer]) -> str | None:
    """Return the name of the first of ``optimizers`` that divides by the size of past gradients, if any."""
    for each in steppers(optimizers):
        name = type(each).__name__
        if isinstance(each, _ADAPTIVE) or name in _ADAPTIVE_NAMES:
            return name
    return None


def why_not_coupled(name: str) -> str:
    """Return what is wrong with a penalty in the gradients of the optimizer called ``name``."""
    return (
        f"{name} divides a penalty's gradient by the size of past gradients, so weights with large gradients "
        "are hardly pulled"
    )
