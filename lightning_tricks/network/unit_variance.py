"""Layers whose outputs a scale of their weights can bring to unit variance, and what measures them.

    W <- W / sqrt(Var(W x))

gives unit variance at once where the output is linear in the weight and there is no bias: in linear layers,
convolutions of both kinds, and in the projection behind attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_tricks.core.select import Patterns
from lightning_tricks.lifecycle.batchnorm import Moments
from lightning_tricks.network.initial_weights import Initial, initials_of
from lightning_tricks.network.schemes import Scheme

__all__ = ["ORTHOGONAL", "Gauge", "Measured", "measured_layers"]

ORTHOGONAL = Scheme(name="orthogonal", nonlinearity="linear", fan="in", std=0.02)
_LINEAR = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.MultiheadAttention,
)


@dataclass(frozen=True, eq=False)
class Measured:
    """A layer whose output is measured.

    Attributes:
        layer: The layer.
        initials: Its parameters: weights that become orthogonal, biases that become zero.
        scaled: The clean name of the weight that its output is linear in.
    """

    layer: nn.Module
    initials: tuple[Initial, ...]
    scaled: str

    @property
    def dtype(self) -> torch.dtype:
        """The type of its parameters."""
        return self.initials[0].parameter.dtype


def measured_layers(module: nn.Module, params: Patterns) -> tuple[list[Measured], dict[str, tuple[str, str]]]:
    """Return the layers of which ``params`` matches a weight, and type and reason of what is left alone.

    Raises:
        ValueError: If a pattern matches nothing, or there is no such layer.
    """
    chosen, alone = initials_of(module, params, ORTHOGONAL)
    around: dict[nn.Module, nn.Module] = {
        part.out_proj: part for part in module.modules() if isinstance(part, nn.MultiheadAttention)
    }
    layers = dict.fromkeys(around.get(each.layer, each.layer) for each in chosen if each.blocks)
    whole = {parameter for layer in layers for parameter in layer.parameters()}
    initials, _ = initials_of(module, lambda _, parameter: parameter in whole, ORTHOGONAL)
    found: list[Measured] = []
    for layer in layers:
        # Orthonormal as in the paper, whatever activation follows.
        held = (each for each in initials if around.get(each.layer, each.layer) is layer)
        own = tuple(replace(each, gain=1.0) for each in held)
        if why := _alone(layer, own):
            alone |= {each.name: (type(layer).__name__, why) for each in own}
        else:
            # That of attention comes behind those of query, key and value.
            found.append(Measured(layer, own, [each.name for each in own if each.blocks][-1]))
    if not found:
        reasons = "; ".join(f"{name} of {kind}, {why}" for name, (kind, why) in list(alone.items())[:3])
        raise ValueError(f"params must match a layer linear in its weight, got {params!r}: {reasons}")
    return found, alone


def _alone(layer: nn.Module, own: Iterable[Initial]) -> str | None:
    """Return why a layer is left alone, if it is."""
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
        return "its activations bound what comes out"
    if all(type(layer).forward is not known.forward for known in _LINEAR):
        return "its forward is not torch's"
    if any(len(each.owners) > 1 for each in own):
        return "it shares a weight"
    return None


class Gauge:
    """A forward hook that measures what comes out of a layer, and passes it on with unit variance if asked.

    Attributes:
        calls: How often the layer was called.
        variance: Of all entries that came out in all processes.
    """

    def __init__(
        self,
        like: Tensor,
        variance_of: Callable[[Moments], float],
        tolerance: float | None,
        order: list[Gauge],
    ) -> None:
        """Begin.

        Args:
            like: Shape (1,), gives device and least type to reckon in.
            variance_of: Gives the variance of what all processes have seen.
            tolerance: From which distance to 1 the output is scaled; ``None`` for never.
            order: Takes this gauge in when the layer is first called.
        """
        self.calls: int = 0
        self.variance: float = 0.0
        self._variance_of, self._tolerance, self._order = variance_of, tolerance, order
        self._moments = Moments(like)

    def __call__(self, layer: nn.Module, args: Any, output: Any) -> Any:
        out: Tensor = output[0] if isinstance(output, tuple) else output
        if not self.calls:
            self._order.append(self)
        self.calls += 1
        # At once: an activation may work in place.
        self._moments.add(out.detach().reshape(-1, 1))
        if self._tolerance is None:
            return None
        self.measure()
        if not self.is_off(self._tolerance):
            return None
        scaled = out / self.std
        return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

    def measure(self) -> None:
        """Take the variance of what has come out so far."""
        self.variance = self._variance_of(self._moments)

    @property
    def std(self) -> float:
        """The standard deviation of what came out."""
        return math.sqrt(self.variance)

    def is_off(self, tolerance: float) -> bool:
        """Return whether a scale is to bring the variance to 1, and can."""
        return 0.0 < self.variance < math.inf and abs(self.variance - 1.0) >= tolerance
