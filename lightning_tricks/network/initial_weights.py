"""Which parameters get initial weights, which of them zero or another constant, and which are left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_tricks.core.checks import listed
from lightning_tricks.core.exempt import EMBEDDINGS, NORM_LAYERS
from lightning_tricks.core.select import Patterns, select
from lightning_tricks.lifecycle.table import text_table
from lightning_tricks.network.fans import WEIGHTED, Block, Fans, weight_blocks
from lightning_tricks.network.freshness import looks_fresh
from lightning_tricks.network.gains import following_gain, named_gain
from lightning_tricks.network.schemes import Scheme

if TYPE_CHECKING:
    from lightning_tricks.core.conflicts import Claim
    from lightning_tricks.lifecycle.technique import Technique

__all__ = [
    "Initial",
    "Whole",
    "check_in_place",
    "initial_claim",
    "initial_table",
    "initials_of",
    "left_alone",
    "owners_of",
]

_COLUMNS: dict[str, Literal["left", "right"]] = {
    "weight": "left",
    "layer": "left",
    "fans in, out": "left",
    "gain": "left",
    "std expected": "right",
    "measured": "right",
}


Whole = Callable[[str], Tensor]
"""Gives all values of a parameter by its clean name."""


@dataclass(frozen=True, eq=False)
class Initial:
    """A parameter that is to be set.

    Attributes:
        name: Its clean name.
        parameter: The parameter.
        shape: Its whole shape.
        owners: The layers that hold it, with its name there; it is set as the first has it.
        blocks: Its rows with their fans; none for a bias.
        activation: What follows the layer, and how that is known.
        gain: The gain of that.
    """

    name: str
    parameter: nn.Parameter
    shape: torch.Size
    owners: tuple[tuple[nn.Module, str], ...]
    blocks: tuple[Block, ...]
    activation: str
    gain: float

    @property
    def layer(self) -> nn.Module:
        """The first layer that holds it."""
        return self.owners[0][0]

    def looks_fresh(self, whole: Whole) -> bool:
        """Return whether it still is as torch made it for one of the layers that hold it.

        Args:
            whole: Gives all its values.
        """
        values = whole(self.name)
        return any(looks_fresh(layer, key, values) for layer, key in self.owners)

    def draw(self, scheme: Scheme, bias: float, generator: torch.Generator) -> Tensor:
        """Return its new values, whole, on the CPU; ``bias`` for a bias."""
        wide = torch.promote_types(self.parameter.dtype, torch.float32)
        values = torch.full(self.shape, bias, dtype=wide)
        for rows, fans in self.blocks:
            values[rows] = scheme.draw_(values[rows], fans, self.gain, generator)
        if isinstance(self.layer, EMBEDDINGS) and self.layer.padding_idx is not None:
            values[self.layer.padding_idx] = 0.0  # stands for nothing, and gets no gradient
        return values

    def deviation(self, scheme: Scheme) -> float:
        """Return the deviation to expect."""
        rows, fans = self.blocks[0]
        height = len(range(*rows.indices(self.shape[0])))
        return scheme.deviation((height, *self.shape[1:]), fans, self.gain)


def initials_of(
    module: nn.Module, params: Patterns, scheme: Scheme
) -> tuple[list[Initial], dict[str, tuple[str, str]]]:
    """Return the parameters that ``params`` matches and ``scheme`` sets, and type and reason of the others.

    A weight that two layers share is set once, and is left alone where it is to be in one of them.

    Raises:
        ValueError: If a pattern matches nothing, nothing is left to set, or a parameter has no values yet.
    """
    chosen, owners = select(module, params), owners_of(module)
    seen = following_gain(module) if scheme.gained else {}
    initials: list[Initial] = []
    alone: dict[str, tuple[str, str]] = {}
    for name, parameter in chosen.items():
        if is_lazy(parameter) or parameter.is_meta:
            place = "no shape yet" if is_lazy(parameter) else "no values yet, on device 'meta'"
            raise ValueError(
                f"params must match parameters that can be set, got {name!r} with {place}: make it first, or "
                "call lightning_tricks.initialize_ where it is made"
            )
        reasons = [(type(o).__name__, why) for o, key in owners[parameter] if (why := _alone(o, key, scheme))]
        if reasons:
            alone[name] = reasons[0]
            continue
        layer, key = owners[parameter][0]
        activation, gain = _activation(layer, scheme, seen)
        held, blocks = tuple(owners[parameter]), _blocks(layer, key)
        initials.append(Initial(name, parameter, parameter.shape, held, blocks, activation, gain))
    if not initials:
        raise ValueError(
            f"params must match a weight that a scheme is known for, got {params!r}: "
            + "; ".join(f"{name} is of {kind}, {why}" for name, (kind, why) in list(alone.items())[:3])
        )
    return initials, alone


def owners_of(module: nn.Module) -> dict[nn.Parameter, list[tuple[nn.Module, str]]]:
    """Return the layers that hold each parameter, with its name there."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for layer in module.modules():
        for key, parameter in layer._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append((layer, key))
    return owners


def _alone(layer: nn.Module, key: str, scheme: Scheme) -> str | None:
    """Return why a parameter is left alone, if it is."""
    parameter = layer._parameters[key]
    if isinstance(layer, NORM_LAYERS):
        return "normalisation starts as torch makes it"
    if isinstance(layer, EMBEDDINGS) and not scheme.normal:
        return "only the normal schemes set embeddings"
    if parameter is not None and not parameter.dtype.is_floating_point:
        return f"no scheme is known for {parameter.dtype}"
    is_bias = isinstance(layer, WEIGHTED) and "bias" in key and key not in ("bias_k", "bias_v")
    if is_bias or _blocks(layer, key):
        return None
    return "no scheme is known for such weights"


def _blocks(layer: nn.Module, key: str) -> tuple[Block, ...]:
    if isinstance(layer, EMBEDDINGS) and key == "weight" and layer.weight.numel():
        return (Block(slice(None), Fans(float(layer.num_embeddings), float(layer.embedding_dim))),)
    return weight_blocks(layer, key)


def _activation(
    layer: nn.Module, scheme: Scheme, seen: Mapping[nn.Module, tuple[str, float]]
) -> tuple[str, float]:
    if not scheme.gained:
        return "", 1.0
    if layer in seen:
        return seen[layer][0], seen[layer][1]
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
        own = getattr(layer, "nonlinearity", "sigmoid")  # that of gates
        return own, named_gain(own)
    if isinstance(layer, nn.MultiheadAttention):  # query, key and value
        return "linear", 1.0
    return f"{scheme.nonlinearity} (told)", scheme.gain


def check_in_place(initials: Iterable[Initial]) -> None:
    """Refuse parameters that something else has put into another place since, such as a parametrization.

    Raises:
        ValueError: If there is one; names it.
    """
    for each in initials:
        layer, key = each.owners[0]
        if layer._parameters.get(key) is not each.parameter:
            raise ValueError(
                f"weights to be initialised must not be parametrized, got {each.name!r}: leave it out of "
                "params, or out of what parametrizes it"
            )


def initial_claim(technique: Technique, initials: Iterable[Initial]) -> Claim:
    """Return the claim that ``technique`` alone gives first values to ``initials``."""
    claim = technique.claim("initial_weights", {each.name: each.parameter for each in initials})
    return replace(claim, remedy=f"{claim.remedy} or let its params match other weights")


def left_alone(alone: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """Yield a line for each type of layer and reason, with the parameters that are left alone."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, kind in alone.items():
        names.setdefault(kind, []).append(name)
    for (layer, why), held in names.items():
        yield f"left alone: {listed(held)} of {layer}, {why}"


def initial_table(
    title: str,
    initials: Iterable[Initial],
    alone: Mapping[str, tuple[str, str]],
    scheme: Scheme,
    whole: Whole,
) -> str:
    """Return what was set and what was not, with the deviations expected and measured.

    Args:
        title: The first line.
        initials: What was set.
        alone: What was not.
        scheme: How.
        whole: Gives all values of each.
    """
    rows = []
    for each in initials:
        if each.blocks:
            fan = each.blocks[0].fans
            measured = whole(each.name).double().std(correction=0).item()
            fans = "" if isinstance(each.layer, EMBEDDINGS) else f"{fan.n_in:g}, {fan.n_out:g}"
            gain = f"{each.gain:.4g} {each.activation}" if scheme.gained else ""
            kind = "Linear" if isinstance(each.layer, nn.Linear) else type(each.layer).__name__
            rows.append((each.name, kind, fans, gain, f"{each.deviation(scheme):.4g}", f"{measured:.4g}"))
    table = text_table(title, _COLUMNS, rows)
    return "\n".join([table, *left_alone(alone)])
