"""Steps that do not happen because gradients are not finite: cancelled on the device, or by the host."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_tricks.core.tensors import local

__all__ = [
    "cancel_step_",
    "cancels_on_device",
    "counts_skipped_steps",
    "drop_gradients_",
    "non_finite_names",
]


def cancel_step_(optimizer: torch.optim.Optimizer, norm: Tensor) -> Tensor:
    """Let a fused ``optimizer`` cancel its next step on the device if ``norm`` is not finite.

    Returns:
        Whether it will, a 0-d bool tensor; nothing is read back to the host.
    """
    broken = ~torch.isfinite(norm)
    mark = broken.to(torch.float32)
    marked = getattr(optimizer, "found_inf", None)  # for other gradients of the same step
    vars(optimizer)["found_inf"] = mark if marked is None else torch.maximum(marked, mark)
    return broken


def cancels_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether :func:`cancel_step_` is right for the next step of ``optimizer``.

    It must be fused, and no momentum be missing yet: torch makes the buffer of a first step without filling
    it, and leaves it so if that step is cancelled.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    return not any(
        parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None
        for group in optimizer.param_groups
        if group.get("momentum")
        for parameter in group["params"]
    )


def drop_gradients_(optimizer: torch.optim.Optimizer) -> None:
    """Set all gradients of ``optimizer`` to ``None``.

    Every optimizer of torch but LBFGS takes that as "leave weights, state and decay alone".
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def counts_skipped_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether ``optimizer`` moves on even where it gets no gradient, so that it cannot skip."""
    return isinstance(optimizer, torch.optim.LBFGS) or "schedulefree" in type(optimizer).__module__


def non_finite_names(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Return the names of the parameters whose gradient holds an entry that is not finite."""
    return [
        name
        for name, parameter in parameters.items()
        if parameter.grad is not None and not torch.isfinite(local(parameter.grad)).all()
    ]
