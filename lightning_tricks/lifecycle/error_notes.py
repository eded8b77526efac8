"""Notes on errors: which technique failed, and which BatchNorm got one sample alone."""

from __future__ import annotations

from traceback import walk_tb

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_tricks.core.select import clean_name
from lightning_tricks.lifecycle.member import Member

__all__ = ["add_notes"]


def add_notes(error: Exception, module: nn.Module) -> None:
    """Note on ``error`` which technique raised it, or which BatchNorm of ``module`` got one sample alone.

    Args:
        error: On its way out of a run.
        module: Of the run.
    """
    frames = [frame.f_locals for frame, _ in walk_tb(error.__traceback__)]
    # Of several on the way the innermost.
    if members := [held["self"] for held in frames if isinstance(held.get("self"), Member)]:
        key, settings = members[-1].state_key, repr(members[-1])
        # What a mixin brings along has no settings and a name of its own.
        error.add_note(f"in {key}" if settings.startswith("_") else f"in {key}: {settings}")
    norms = [held["self"] for held in frames if isinstance(held.get("self"), _BatchNorm)]
    if norms and str(error).startswith("Expected more than 1 value per channel"):
        name = next((clean_name(name) for name, each in module.named_modules() if each is norms[-1]), "")
        error.add_note(
            f"{type(norms[-1]).__name__} {name!r} needs at least 2 samples in training, got a batch of one: "
            "leave such a batch out, DataLoader(..., drop_last=True), or take a layer that needs no others, "
            "such as GroupNorm"
        )
