"""Layers of frozen parts whose mode matters: those with running statistics, and those that drop out."""

from __future__ import annotations

from collections.abc import Set

from torch import nn

__all__ = ["DROPOUT", "NORM_STATS", "frozen_layers", "statistics_modules"]

NORM_STATS = ("frozen", "train")
DROPOUT = ("on", "off")


def frozen_layers(
    module: nn.Module, parameters: Set[nn.Parameter], *, norm_stats: str, dropout: str
) -> dict[nn.Module, list[nn.Parameter]]:
    """Return the layers that run in evaluation mode while the parameters given with each are all frozen.

    Args:
        module: The whole network.
        parameters: Those that somebody freezes; layers that go with none of them are left out.
        norm_stats: ``"frozen"`` for layers with running statistics, or ``"train"`` for none of them.
        dropout: ``"off"`` for all other layers: some drop out by functions, as told by their mode. A
            recurrent layer that does not drop out is left alone, since cuDNN trains none in evaluation mode.
            ``"on"`` for none.
    """
    statistics = statistics_modules(module)
    found = statistics if norm_stats == "frozen" else {}
    if dropout == "off":
        order, own = _layers(module)
        for index, (_, part) in enumerate(order):
            still = isinstance(part, nn.RNNBase) and not part.dropout
            if part not in statistics and not still:
                found[part] = list(part.parameters()) or _companions(order, own, index)
    return {part: held for part, held in found.items() if not parameters.isdisjoint(held)}


def statistics_modules(module: nn.Module) -> dict[nn.Module, list[nn.Parameter]]:
    """Return the modules that keep running statistics, each with the parameters that it goes with.

    These are its own. A layer without any goes with the module that has parameters and comes just before
    it in the closest part of the network that holds both, else with the first after it.

    Running statistics are buffers whose names begin with ``running_``, as in every normalisation layer of
    torch that keeps any.
    """
    order, own = _layers(module)
    return {
        part: own[index] or _companions(order, own, index)
        for index, (_, part) in enumerate(order)
        if any(name.startswith("running_") for name, _ in part.named_buffers(recurse=False))
    }


def _layers(module: nn.Module) -> tuple[list[tuple[str, nn.Module]], list[list[nn.Parameter]]]:
    order = list(module.named_modules())
    return order, [list(part.parameters(recurse=False)) for _, part in order]


def _companions(
    order: list[tuple[str, nn.Module]], own: list[list[nn.Parameter]], index: int
) -> list[nn.Parameter]:
    around = order[index][0]
    while around:
        around = around.rpartition(".")[0]
        prefix = f"{around}." if around else ""
        inside = [i for i, (path, _) in enumerate(order) if own[i] and f"{path}.".startswith(prefix)]
        if inside:
            return own[max((i for i in inside if i < index), default=inside[0])]
    return []
