"""Running statistics of frozen layers: used as they are, and left alone, until a parameter opens."""

from __future__ import annotations

from torch import nn

__all__ = ["FrozenStatistics", "statistics_modules"]


def statistics_modules(module: nn.Module) -> dict[nn.Module, list[nn.Parameter]]:
    """Return the modules that keep running statistics, each with the parameters that it goes with.

    These are its own. A layer without any goes with the module that has parameters and comes just before
    it in the closest part of the network that holds both, else with the first after it.

    Running statistics are buffers whose names begin with ``running_``, as in every normalisation layer of
    torch that keeps any.
    """
    order = list(module.named_modules())
    own = [list(part.parameters(recurse=False)) for _, part in order]
    return {
        part: own[index] or _companions(order, own, index)
        for index, (_, part) in enumerate(order)
        if any(name.startswith("running_") for name, _ in part.named_buffers(recurse=False))
    }


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


class FrozenStatistics:
    """Layers that normalise with their running statistics as long as their parameters are frozen."""

    def __init__(self, module: nn.Module | None = None) -> None:
        """Look after all such layers of ``module``; without it, after none."""
        self._layers = {} if module is None else statistics_modules(module)
        self._held: dict[nn.Module, bool] = {}

    def update(self) -> None:
        """Take up or give back each layer, as its parameters require a gradient now."""
        for layer, companions in self._layers.items():
            if not any(parameter.requires_grad for parameter in companions):
                self._held.setdefault(layer, layer.training)
            elif layer in self._held:
                layer.training = self._held.pop(layer)
        self.hold()

    def hold(self) -> None:
        """Put the frozen layers into evaluation mode, each alone: what it holds may drop out as it did."""
        for layer in self._held:
            if layer.training:
                layer.training = False

    def release(self, *, training: bool) -> None:
        """Give all layers back: in their own modes, or with ``training`` false in evaluation mode."""
        for layer, mode in self._held.items():
            layer.training = mode and training
        self._layers, self._held = {}, {}
