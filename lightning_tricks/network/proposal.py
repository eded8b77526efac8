"""Stages that a network itself suggests: its children, or the layers it is built of, from the head down."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from itertools import pairwise

from torch import nn

from lightning_tricks.core import checks
from lightning_tricks.core.layers import own_layers
from lightning_tricks.core.select import clean_name, select

__all__ = ["propose_stages"]


def propose_stages(module: nn.Module, stages: int | None = None) -> list[str | tuple[str, ...]]:
    """Return stages of ``module``, from its head down: one for each child, or ``stages`` of them by depth.

    Each top-level child that has parameters is a stage, the last child first. A lone child is looked into,
    since a single stage would freeze nothing. Parameters that ``module`` holds itself (a class token, a
    position embedding) form one more stage, the last.

    By depth, the layers that the network is built of (the entries of each ``nn.Sequential`` or
    ``nn.ModuleList``, and what comes before, between and after these) are dealt out evenly; what is left over
    goes to the stages near the input. Parameters that ``module`` holds itself count to the first layer.

    Children or layers that share a parameter are in one stage, in the place of the last of them.

    Raises:
        TypeError: If ``stages`` is no whole number.
        ValueError: If there is no parameter, or ``stages`` is below 1 or above the number of layers.

    Example:
        >>> body = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        >>> net = nn.ModuleDict({"body": body, "head": nn.Linear(2, 1)})
        >>> propose_stages(net)
        ['head', 'body']
        >>> propose_stages(net, 3)
        ['head', 'body.2', ('body.1', 'body.0')]
    """
    if next(module.parameters(), None) is None:
        raise ValueError(f"the module must have parameters, got {type(module).__name__} without any")
    found = _children(module) if stages is None else _by_depth(module, checks.whole("stages", stages, 1))
    return [names[0] if len(names) == 1 else tuple(names) for names in found]


def _children(module: nn.Module) -> list[list[str]]:
    paths = [clean_name(name).split(".") for name, _ in module.named_parameters(remove_duplicate=False)]
    depth = _lone_depth(paths)
    # Names may hold what a pattern would take for a wildcard.
    own = {
        ".".join(map(glob.escape, path[: depth + 1])): len(path) == depth + 1 for path in paths
    }  # of each child, or parameter of the module's own, whether it is such a one
    loose = [name for name in own if own[name]]
    return _untied(
        module, [*([name] for name in reversed(own) if not own[name]), *([loose] if loose else [])]
    )


def _lone_depth(paths: list[list[str]]) -> int:
    """Return how many modules hold all parameters between them and the first one that branches."""
    depth = 0
    while len({tuple(path[: depth + 1]) for path in paths}) == 1 and max(map(len, paths)) > depth + 2:
        depth += 1
    return depth


def _by_depth(module: nn.Module, count: int) -> list[list[str]]:
    own = [[each] if isinstance(each, str) else list(each) for each in own_layers(module)[0]]
    layers = _untied(module, reversed(own))
    if count > len(layers):
        raise ValueError(
            f"stages must be at most {len(layers)}, the layers that {type(module).__name__} is built of, got "
            f"{count}: name the parts of larger ones by patterns"
        )
    size, over = divmod(len(layers), count)
    ends = [size * k + max(0, k - (count - over)) for k in range(count + 1)]
    return [[name for layer in layers[begin:end] for name in layer] for begin, end in pairwise(ends)]


def _untied(module: nn.Module, stages: Iterable[list[str]]) -> list[list[str]]:
    """Return ``stages`` with those in one that share a parameter."""
    found: list[tuple[list[str], set[nn.Parameter]]] = []
    for names in stages:
        held = set(select(module, tuple(names)).values())
        shared = [pair for pair in found if not held.isdisjoint(pair[1])]
        first = shared[0] if shared else ([], set())
        for other in shared[1:]:
            found.remove(other)
            first[0].extend(other[0])
            first[1].update(other[1])
        first[0].extend(names)
        first[1].update(held)
        if not shared:
            found.append(first)
    return [names for names, _ in found]
