"""A network divided into parts by patterns, each parameter in one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_tricks.core.checks import listed
from lightning_tricks.core.select import Patterns, as_patterns, select

__all__ = ["partition", "written"]


def partition(
    module: nn.Module, parts: Sequence[Patterns], *, name: str, part: str
) -> list[dict[str, nn.Parameter]]:
    """Return the parameters of each part by name, in the module's order.

    Parameters that need no gradient may be in none.

    Args:
        module: Searched with all its children.
        parts: For each part one pattern or several.
        name: What the user calls the setting that holds them, for errors.
        part: What the user calls a part.

    Raises:
        ValueError: If a pattern matches nothing, or a parameter is in two parts or in none, or lazy.
    """
    found = [select(module, patterns, name=f"{name}[{index}]") for index, patterns in enumerate(parts)]
    if lazy := [each for held in found for each, parameter in held.items() if is_lazy(parameter)]:
        raise ValueError(
            f"{name} must hold initialised parameters, got the lazy {listed(lazy)}: "
            "run one batch through the module first"
        )
    for (i, first), (k, second) in combinations(enumerate(found), 2):
        if both := [each for each in second if each in first]:
            raise ValueError(
                f"each parameter must be in one {part}, got {listed(both)} in {name}[{i}] "
                f"({written(parts[i])}) and {name}[{k}] ({written(parts[k])}): narrow the patterns of one "
                "of them; parameters that are tied count under all their names"
            )
    held = {each for members in found for each in members}
    everything = select(module, "*", name="the module")
    if left := [each for each, p in everything.items() if p.requires_grad and each not in held]:
        raise ValueError(
            f"{name} must hold each parameter, got none for {listed(left)}: add a last {part} with patterns "
            "for them, or name them in one, or freeze them with requires_grad_(False)"
        )
    return found


def written(patterns: Patterns) -> str:
    """Return patterns as a reader of a table or an error wants them.

    Example:
        >>> written(("head", nn.LayerNorm))
        'head, LayerNorm'
    """
    entries = as_patterns("patterns", patterns)
    return ", ".join(e if isinstance(e, str) else getattr(e, "__name__", repr(e)) for e in entries)
