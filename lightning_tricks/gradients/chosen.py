"""Which parameters' gradients a technique works on."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from lightning_tricks.core.select import Patterns, select

__all__ = ["chosen_parameters"]


def chosen_parameters(
    module: nn.Module, patterns: Patterns, optimizers: Iterable[Optimizer]
) -> dict[str, nn.Parameter]:
    """Return the parameters of ``module`` that ``patterns``, the setting ``params``, matches.

    Raises:
        ValueError: If a pattern matches nothing, none of them belongs to an optimizer, or one gets sparse
            gradients.
    """
    chosen = select(module, patterns)
    stepped = {p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if stepped.isdisjoint(chosen.values()):
        raise ValueError(f"params must match a parameter of an optimizer, got {patterns!r}")
    sparse = {layer.weight for layer in module.modules() if getattr(layer, "sparse", False) is True}
    for name, parameter in chosen.items():
        if parameter in sparse:
            raise ValueError(f"params must match parameters with dense gradients, got {name!r}")
    return chosen
