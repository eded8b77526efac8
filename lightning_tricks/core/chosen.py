"""Which parameters a technique works on as an optimizer steps them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from lightning_tricks.core.select import Patterns, select

__all__ = ["chosen_parameters"]


def chosen_parameters(
    module: nn.Module, patterns: Patterns, optimizers: Iterable[Optimizer], *, exclude: Patterns = ()
) -> dict[str, nn.Parameter]:
    """Return the parameters of ``module`` that ``patterns``, the setting ``params``, matches.

    Args:
        module: The module.
        patterns: Which.
        optimizers: Those of the run.
        exclude: Patterns of those to leave out; empty for none.

    Raises:
        ValueError: If a pattern matches nothing, none of them belongs to an optimizer, or one gets sparse
            gradients.
    """
    chosen = select(module, patterns)
    if exclude != ():
        left_out = select(module, exclude, name="exclude")
        chosen = {name: parameter for name, parameter in chosen.items() if name not in left_out}
        if not chosen:
            raise ValueError(f"exclude must leave a parameter that params matches, got {exclude!r}")
    stepped = {p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if stepped.isdisjoint(chosen.values()):
        raise ValueError(f"params must match a parameter of an optimizer, got {patterns!r}")
    sparse = {layer.weight for layer in module.modules() if getattr(layer, "sparse", False) is True}
    for name, parameter in chosen.items():
        if parameter in sparse:
            raise ValueError(f"params must match parameters with dense gradients, got {name!r}")
    return chosen
