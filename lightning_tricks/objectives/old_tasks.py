"""What is kept of tasks that were learnt before, and how it meets a module again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from lightning_tricks.core.select import clean_name
from lightning_tricks.core.tensors import Model
from lightning_tricks.lifecycle.checkpoints import read
from lightning_tricks.lifecycle.seal import unsealed
from lightning_tricks.objectives.anchors import Anchors

__all__ = ["OldTask", "anchors_of", "read_tasks"]


@dataclass(frozen=True)
class OldTask:
    """One task, by clean names of parameters.

    Attributes:
        anchors: The weights at its end.
        fisher: Of the same shapes.
    """

    anchors: Model
    fisher: Model


def read_tasks(path: str, who: str) -> list[OldTask]:
    """Return what the checkpoint at ``path`` holds under the name ``who``.

    Raises:
        ValueError: If there is no such checkpoint, or it holds nothing of the kind.
    """
    rule = f"previous must be a checkpoint of a run with {who}, got {path!r}"
    try:
        entry = unsealed({"callbacks": {}, **read(path)}, who)
    except (OSError, ValueError) as error:
        raise ValueError(f"{rule}: {error}") from error
    if entry is None:
        raise ValueError(rule)
    return [OldTask(**task) for task in entry["state"]["tasks"]]


def anchors_of(task: OldTask, module: nn.Module, members: Mapping[nn.Parameter, str]) -> Anchors:
    """Return the anchors of the parameters in ``members``.

    Raises:
        ValueError: If ``module`` lacks an anchored parameter, or one of ``members`` has another shape.
    """
    named = {clean_name(name): parameter for name, parameter in module.named_parameters()}
    found: Anchors = {}
    for name, anchor in task.anchors.items():
        parameter = named.get(name)
        if parameter is None or (parameter in members and parameter.shape != anchor.shape):
            got = "none" if parameter is None else f"one of shape {tuple(parameter.shape)}"
            raise ValueError(
                f"the module must have a parameter {name!r} of shape {tuple(anchor.shape)}, which is "
                f"anchored, got {got} in {type(module).__name__}"
            )
        if parameter in members:
            sure = task.fisher[name].to(parameter.device)
            wide = torch.promote_types(parameter.dtype, sure.dtype)
            found[parameter] = (anchor.to(parameter.device, wide), sure)
    return found
