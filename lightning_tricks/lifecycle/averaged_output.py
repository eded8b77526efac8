"""What a module computes with the averaged weights of a run, while it holds the live ones."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.func import functional_call

from lightning_tricks.core.functional import in_evaluation
from lightning_tricks.core.select import clean_name
from lightning_tricks.lifecycle.member import Member
from lightning_tricks.lifecycle.notice import callbacks_of

__all__ = ["averaged_output"]


@torch.no_grad()
def averaged_output(trainer: Trainer, pl_module: LightningModule, *inputs: Any) -> Any:
    """Return ``pl_module(*inputs)`` in evaluation mode, with averaged weights if the run evaluates any.

    To be called outside of evaluations, in which the module itself holds the average.
    """
    members = (each for each in callbacks_of(trainer) if isinstance(each, Member))
    averages = [each.average() or {} for each in members if each.evaluates_average]
    averaged = {name: value for average in averages for name, value in average.items()}
    held = chain(pl_module.named_parameters(), pl_module.named_buffers())
    own = {name: averaged[clean_name(name)].to(value) for name, value in held if clean_name(name) in averaged}
    with in_evaluation(pl_module):
        return functional_call(pl_module, own, inputs)
