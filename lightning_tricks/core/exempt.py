"""Which weights decay leaves alone: biases, normalisation and embeddings, told by type and shape.

Not by name: ``"LayerNorm"`` misses a layer that is called ``norm1``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

__all__ = ["EMBEDDINGS", "NORM_LAYERS", "exempt_from_decay"]

NORM_LAYERS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_MATRICES = (nn.Linear, nn.Bilinear, _ConvNd)


def exempt_from_decay(
    module: nn.Module, shapes: Mapping[nn.Parameter, torch.Size] | None = None
) -> set[nn.Parameter]:
    """Return the parameters of ``module`` that decay should leave alone.

    These are all parameters of normalisation layers and embeddings, and of other layers those called
    ``bias`` or with at most one axis longer than 1: scales, class tokens, temperatures. The ``weight`` of a
    linear layer or a convolution decays whatever its shape. A parameter that two layers share is left alone
    if either says so. What torch's parametrization makes a weight of counts as the weight where it is one
    tensor.

    Args:
        module: Searched with all its children.
        shapes: Shapes of parameters that do not tell them, such as the flat pieces of FSDP1.

    Raises:
        ValueError: If one whose shape must be known is lazy.

    Example:
        >>> net = nn.Sequential(nn.Embedding(9, 2), nn.Linear(2, 1), nn.LayerNorm(1))
        >>> exempt = exempt_from_decay(net)
        >>> [name for name, parameter in net.named_parameters() if parameter in exempt]
        ['0.weight', '1.bias', '2.weight', '2.bias']
    """
    return {
        parameter
        for layer in module.modules()
        for name, parameter in _held(layer)
        if parameter is not None and _exempt(layer, name, parameter, shapes or {})
    }


def _held(layer: nn.Module) -> Iterator[tuple[str, nn.Parameter | None]]:
    """Yield the parameters of ``layer`` itself, those that are parametrized by their own names."""
    for name, parameter in layer._parameters.items():
        if name != "original" or not isinstance(layer, ParametrizationList):
            yield name, parameter
    if is_parametrized(layer):
        for name, chain in layer.parametrizations.items():  # type: ignore[union-attr, operator]  # untyped
            yield name, chain._parameters.get("original")


def _exempt(
    layer: nn.Module, name: str, parameter: nn.Parameter, shapes: Mapping[nn.Parameter, torch.Size]
) -> bool:
    if isinstance(layer, NORM_LAYERS + EMBEDDINGS) or name == "bias":
        return True
    if isinstance(layer, _MATRICES) and name == "weight":
        return False
    if is_lazy(parameter):
        raise ValueError(
            f"parameters must be initialised to tell whether they decay, got the lazy {name!r} of "
            f"{type(layer).__name__}: run one batch through the module first"
        )
    return sum(size > 1 for size in shapes.get(parameter, parameter.shape)) <= 1
