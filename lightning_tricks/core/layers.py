"""The layers that a network is built of, found by how its modules hold one another."""

from __future__ import annotations

import glob
from collections.abc import Iterator

from torch import nn

from lightning_tricks.core.exempt import EMBEDDINGS, exempt_from_decay
from lightning_tricks.core.select import clean_name

__all__ = ["own_layers"]


def own_layers(module: nn.Module) -> tuple[list[str | tuple[str, ...]], dict[nn.Parameter, int]]:
    """Return the layers that ``module`` is built of, in the order of its children.

    The entries of each ``nn.Sequential`` or ``nn.ModuleList`` that lies within no other are layers; what
    comes before, between and after them forms one layer each. Entries that only normalise count to the one
    before, the module's own parameters to the first layer, shared ones to the first that holds them.

    Example:
        >>> net = nn.ModuleDict({"embed": nn.Embedding(5, 2), "blocks": nn.Sequential(nn.Linear(2, 2),
        ...     nn.LayerNorm(2), nn.Linear(2, 2)), "norm": nn.LayerNorm(2), "head": nn.Linear(2, 5)})
        >>> own_layers(net)[0]
        ['embed', ('blocks.0', 'blocks.1'), 'blocks.2', ('norm', 'head')]
    """
    layers: list[list[tuple[str, nn.Module]]] = []
    for name, part, begins in _pieces(module, ""):
        if begins or not layers:
            layers.append([])
        layers[-1].append((name, part))
    depths: dict[nn.Parameter, int] = {}
    for depth, layer in enumerate(layers):
        for _, part in layer:
            for parameter in part.parameters():
                depths.setdefault(parameter, depth)
    named = [[glob.escape(clean_name(name)) for name, _ in layer] for layer in layers] or [[]]
    for name, parameter in module.named_parameters():
        if parameter not in depths:
            depths[parameter] = 0
            named[0].append(glob.escape(clean_name(name)))
    return [names[0] if len(names) == 1 else tuple(names) for names in named], depths


def _pieces(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield parts of ``module`` in order, each with whether a layer begins with it."""
    begins = True
    for name, child in module.named_children():
        if _listed(module):
            if _learns(child):
                yield f"{path}{name}", child, not _only_scales(child)
        elif _listed(child) or any(_listed(inner) for inner in child.modules()):
            yield from _pieces(child, f"{path}{name}.")
            begins = True
        elif _learns(child):
            yield f"{path}{name}", child, begins
            begins = False


def _listed(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList) and len(module) > 1


def _learns(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _only_scales(module: nn.Module) -> bool:
    embeds = any(isinstance(part, EMBEDDINGS) for part in module.modules())
    return not embeds and exempt_from_decay(module).issuperset(module.parameters())
