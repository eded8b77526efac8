"""A network divided into parts by patterns, each parameter in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_tricks.core.checks import listed
from lightning_tricks.core.select import Patterns, as_patterns, select

__all__ = ["check_covered", "check_initialised", "disjoint", "partition", "written"]


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
    found = disjoint(module, parts, name=name, part=part)
    check_covered(module, found, name=name, part=part)
    return found


def disjoint(
    module: nn.Module, parts: Sequence[Patterns], *, name: str, part: str
) -> list[dict[str, nn.Parameter]]:
    """Return the same where parameters that need a gradient may be in none, too.

    Raises:
        ValueError: If a pattern matches nothing, or a parameter is in two parts, or lazy.
    """
    found = [select(module, patterns, name=f"{name}[{index}]") for index, patterns in enumerate(parts)]
    for held in found:
        check_initialised(held, name=name)
    for (i, first), (k, second) in combinations(enumerate(found), 2):
        if both := [each for each in second if each in first]:
            raise ValueError(
                f"each parameter must be in one {part}, got {listed(both)} in {name}[{i}] "
                f"({written(parts[i])}) and {name}[{k}] ({written(parts[k])}): narrow the patterns of one "
                "of them; parameters that are tied count under all their names"
            )
    return found


def check_initialised(parameters: Mapping[str, nn.Parameter], *, name: str) -> None:
    """Accept parameters, by name, that have their shapes.

    Raises:
        ValueError: If one is lazy.
    """
    if lazy := [each for each, parameter in parameters.items() if is_lazy(parameter)]:
        raise ValueError(
            f"{name} must hold initialised parameters, got the lazy {listed(lazy)}: "
            "run one batch through the module first"
        )


def check_covered(
    module: nn.Module, found: Sequence[Mapping[str, nn.Parameter]], *, name: str, part: str
) -> None:
    """Accept parts that hold each parameter of ``module`` that needs a gradient now.

    Raises:
        ValueError: If one is in none.
    """
    held = {each for members in found for each in members}
    everything = select(module, "*", name="the module")
    if left := [each for each, p in everything.items() if p.requires_grad and each not in held]:
        raise ValueError(
            f"{name} must hold each parameter, got none for {listed(left)}: add a last {part} with patterns "
            "for them, or name them in one, or freeze them with requires_grad_(False)"
        )


def written(patterns: Patterns) -> str:
    """Return patterns as a reader of a table or an error wants them.

    Example:
        >>> written(("head", nn.LayerNorm))
        'head, LayerNorm'
    """
    entries = as_patterns("patterns", patterns)
    return ", ".join(e if isinstance(e, str) else getattr(e, "__name__", repr(e)) for e in entries)
