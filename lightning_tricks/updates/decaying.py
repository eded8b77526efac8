"""Which parameters a technique pulls towards zero, and which optimizers let it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_tricks.core.chosen import chosen_parameters
from lightning_tricks.core.conflicts import Claim
from lightning_tricks.core.exempt import exempt_from_decay
from lightning_tricks.core.select import Patterns
from lightning_tricks.updates.combined import stepper, steppers

__all__ = ["check_steps", "decaying_parameters", "own_decay"]


def check_steps(optimizers: Iterable[Optimizer], *, alone: bool) -> None:
    """Accept optimizers whose steps can be accompanied by a decay.

    Args:
        optimizers: All of the run.
        alone: Whether weights are changed past the optimizer.

    Raises:
        ValueError: If one asks for the gradient several times a step, or keeps a second set of weights.
    """
    for optimizer in steppers(optimizers):
        kind = type(optimizer).__name__
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError(f"the optimizer must step once per gradient to decay beside it, got {kind}")
        if alone and "schedulefree" in type(optimizer).__module__:
            raise ValueError(
                f"the optimizer must hold its weights once to decay them past it, got {kind}: "
                "use its own weight_decay"
            )


def decaying_parameters(
    module: nn.Module,
    patterns: Patterns | None,
    optimizers: Iterable[Optimizer],
    shapes: Mapping[nn.Parameter, torch.Size] | None = None,
) -> dict[str, nn.Parameter]:
    """Return the parameters that ``patterns``, the setting ``params``, names, by name.

    Args:
        module: The module.
        patterns: Which; ``None`` for all but biases, normalisation and embeddings.
        optimizers: Those of the run.
        shapes: Shapes of parameters that do not tell them, such as the flat pieces of FSDP1.

    Raises:
        ValueError: If a pattern matches nothing, there are none, no optimizer has one, or one is complex or
            gets sparse gradients.
    """
    if patterns is None:
        exempt = exempt_from_decay(module, shapes)
        if exempt.issuperset(module.parameters()):
            raise ValueError(
                "params must be given, got None, but the module has only biases, normalisation and embeddings"
            )
        chosen = chosen_parameters(module, lambda _, p: p not in exempt, optimizers)
    else:
        chosen = chosen_parameters(module, patterns, optimizers)
    if turning := [name for name, parameter in chosen.items() if parameter.is_complex()]:
        raise ValueError(f"params must match real parameters, got {turning[0]!r}")
    return chosen


def own_decay(optimizers: Iterable[Optimizer]) -> Iterator[Claim]:
    """Yield what ``optimizers`` decay by themselves."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if group.get("weight_decay"):
                kind, strength = type(stepper(optimizer, group)).__name__, group["weight_decay"]
                yield Claim(
                    "weight_decay",
                    f"{kind}(weight_decay={strength!r})",
                    frozenset(map(id, group["params"])),
                    f"pass weight_decay=0.0 to {kind}",
                )
