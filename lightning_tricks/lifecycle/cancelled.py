"""Whether an optimizer step that is about to happen will be cancelled, which at times only a device knows."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["cancelled"]


def cancelled(trainer: Trainer, optimizer: Optimizer) -> Tensor | None:
    """Return whether the step that ``optimizer`` is about to make will be cancelled, for what is not finite.

    To be called in ``on_before_optimizer_step``, after all work on gradients.

    Returns:
        A 0-d bool tensor, without waiting for its device; ``None`` if nothing can cancel the step.
    """
    marks = [mark] if isinstance(mark := getattr(optimizer, "found_inf", None), Tensor) else []
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None:
        marks += scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values()
    return torch.stack([mark.reshape(()).to(marks[0]) for mark in marks]).any() if marks else None
