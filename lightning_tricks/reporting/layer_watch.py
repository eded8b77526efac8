"""The health of each layer at steps that somebody asks about: gradients before one, updates after it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim import Optimizer

from lightning_tricks.core.exempt import EMBEDDINGS
from lightning_tricks.core.gradients import Groups, groups_of_held
from lightning_tricks.core.tensors import local
from lightning_tricks.reporting.health import LayerHealth, Part, layer_sums, layers_health, update_squares

__all__ = ["LayerWatch", "layer_of", "too_rarely", "unit_axes"]


def layer_of(name: str) -> str:
    """Return the name of the layer that has a parameter, whether torch parametrizes it or not.

    Example:
        >>> layer_of("net.0.weight"), layer_of("net.0.parametrizations.weight.original"), layer_of("scale")
        ('net.0', 'net.0', 'scale')
    """
    return (
        name.partition(".parametrizations.")[0]
        if ".parametrizations." in name
        else (name.rpartition(".")[0] or name)
    )


def unit_axes(module: nn.Module) -> dict[nn.Parameter, int | None]:
    """Return the axis of units of the parameters where it is not the first; ``None`` for tables."""
    axes: dict[nn.Parameter, int | None] = {}
    for layer in module.modules():
        if isinstance(layer, _ConvTransposeNd):
            axes |= dict.fromkeys(layer.parameters(), 1)
        elif isinstance(layer, EMBEDDINGS):
            axes |= dict.fromkeys(layer.parameters())
    return axes


def too_rarely(every: int, logged: int) -> str:
    """Return why no step of a run was looked at: of those that Lightning logs one, ``every`` apart."""
    return (
        "every and the Trainer's log_every_n_steps must be less than the steps of the run, "
        f"got {every} and {logged}"
    )


class LayerWatch:
    """Measures the layers of chosen parameters, optimizer by optimizer.

    Attributes:
        names: The layer of each parameter.
    """

    def __init__(
        self, chosen: Mapping[str, nn.Parameter], module: nn.Module, spread: Mapping[nn.Parameter, Groups]
    ) -> None:
        """Watch ``chosen`` of ``module``, of which ``spread`` are held in flat pieces among processes."""
        self.names = {parameter: layer_of(name) for name, parameter in chosen.items()}
        self._units = unit_axes(module)
        self._layers = {name: index for index, name in enumerate(dict.fromkeys(self.names.values()))}
        self._spread = spread
        self._copies: dict[nn.Parameter, Tensor] = {}
        self._kept: dict[nn.Parameter, Tensor] = {}
        self._sums: dict[Optimizer, Tensor] = {}
        self._results: list[tuple[Optimizer, dict[str, LayerHealth]]] = []

    def before_step(self, optimizer: Optimizer) -> None:
        """Measure gradients, once in a batch."""
        if optimizer not in self._sums and (chosen := self._stepped(optimizer)):
            parts = [self._part(parameter) for parameter in chosen]
            self._sums[optimizer] = layer_sums(parts, len(self._layers))
            self._copies |= {p: self._copy(p, part.weight) for p, part in zip(chosen, parts, strict=True)}

    def _copy(self, parameter: nn.Parameter, weight: Tensor) -> Tensor:
        old = self._kept.get(parameter)
        if old is not None and (old.shape, old.dtype) == (weight.shape, weight.dtype):
            return old.copy_(weight)
        copy = weight.clone()
        if weight.device.type == "cpu":  # where new memory costs several times what is done in it
            self._kept[parameter] = copy
        return copy

    def without_gradient(self, optimizer: Optimizer) -> list[str]:
        """Return the layers that ``optimizer`` steps of which no parameter has got a gradient.

        Of what is held in flat pieces nobody knows.
        """
        stepped = self._stepped(optimizer)
        reached = {self.names[p] for p in stepped if p.grad is not None or p in self._spread}
        return [name for name in dict.fromkeys(self.names[p] for p in stepped) if name not in reached]

    def samples(self, optimizer: Optimizer, most: int) -> dict[str, Tensor]:
        """Return of the gradients of each layer that ``optimizer`` steps some entries, evenly spread.

        Args:
            optimizer: The optimizer.
            most: Of each parameter.
        """
        found: dict[str, list[Tensor]] = {}
        for parameter in self._stepped(optimizer):
            if parameter.grad is not None:
                flat = local(parameter.grad).flatten()
                found.setdefault(self.names[parameter], []).append(flat[:: max(1, len(flat) // most)][:most])
        return {name: torch.cat(parts) for name, parts in found.items()}

    def after_step(self, optimizer: Optimizer) -> None:
        """Measure what the step did, if its gradients were measured."""
        if optimizer not in self._sums:
            return
        chosen = self._stepped(optimizer)
        before = [self._copies.pop(parameter) for parameter in chosen]
        squares = update_squares([self._part(p) for p in chosen], before, len(self._layers))
        health = layers_health(self._sums.pop(optimizer), squares)
        names = dict.fromkeys(self.names[parameter] for parameter in chosen)
        self._results.append((optimizer, {name: health[self._layers[name]] for name in names}))

    def end_batch(self) -> list[tuple[Optimizer, dict[str, LayerHealth]]]:
        """Return the health of layers by name, for each optimizer that was measured in the batch.

        What a gradient scaler cancelled made no step, and is measured another time.
        """
        results, self._results = self._results, []
        self._sums, self._copies = {}, {}
        return results

    def _stepped(self, optimizer: Optimizer) -> list[nn.Parameter]:
        members = [p for group in optimizer.param_groups for p in group["params"] if p in self.names]
        return [parameter for parameter in members if parameter.requires_grad]

    def _part(self, parameter: nn.Parameter) -> Part:
        weight, gradient = local(parameter.detach()), parameter.grad
        groups, flat = groups_of_held(parameter, self._spread), parameter in self._spread
        held = local(gradient) if gradient is not None else weight.new_zeros(0) if flat else None
        units = None if flat else self._units.get(parameter, 0)
        return Part(self._layers[self.names[parameter]], weight, held, groups, units)
