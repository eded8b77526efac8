"""Whether weights are still those that torch draws when it makes a layer, and may be lost.

Nothing marks weights that were loaded, or set by a user, so their values must tell: an entry outside the
interval that torch draws from, or a distribution that is not uniform on it (normal, for embeddings) by the
test of Kolmogorov and Smirnov,

    sqrt(n) * sup |F_n(w) - F(w)| > 3.3,

which one in a thousand million fresh weights exceeds. Of ``n`` entries at most 65,536 are looked at, evenly
spread. What has few entries, such as the bias of a small head, can pass by chance; a trained network cannot.

Reference: Massart, "The Tight Constant in the Dvoretzky-Kiefer-Wolfowitz Inequality", 1990,
https://doi.org/10.1214/aop/1176990746: the probability is at most 2 exp(-2 * 3.3 ** 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lightning_tricks.core.checks import listed
from lightning_tricks.core.exempt import EMBEDDINGS, NORM_LAYERS
from lightning_tricks.core.select import Patterns, select

__all__ = ["looks_fresh", "refuse_stale", "stale_names"]

LIMIT = 3.3
ENTRIES = 65536


def looks_fresh(layer: nn.Module, key: str, values: Tensor) -> bool:
    """Return whether torch could just have drawn a parameter of a layer.

    Args:
        layer: The layer; only its type and sizes are looked at, and running statistics.
        key: The name of the parameter in it.
        values: All its values.

    Example:
        >>> layer = nn.Linear(64, 64)
        >>> looks_fresh(layer, "weight", layer.weight), looks_fresh(layer, "weight", 2 * layer.weight)
        (True, False)
    """
    values = values.detach()
    if not values.numel():
        return True
    if isinstance(layer, NORM_LAYERS):
        return bool((values == (1.0 if key == "weight" else 0.0)).all()) and _unmoved(layer)
    if isinstance(layer, EMBEDDINGS):
        padding = torch.ones(len(values), dtype=torch.bool, device=values.device)
        if layer.padding_idx is not None:
            padding[layer.padding_idx] = False
        return _follows(values[padding], lambda w: torch.special.ndtr(w))
    bound = _bound(layer, key, values)
    if not bound:
        return bound == 0.0 and not values.any()
    room = bound * (1 + 2 * torch.finfo(values.dtype).eps)  # what rounding to a narrow type may add
    return bool((values.abs() <= room).all()) and _follows(values, lambda w: (w / bound + 1) / 2)


def stale_names(fresh: Mapping[str, bool], module: nn.Module, overwrite: Patterns | None) -> list[str]:
    """Return the weights that somebody may want to keep.

    Args:
        fresh: Whether each weight that is to be set looks fresh, by clean names.
        module: The module that holds them.
        overwrite: Patterns of those that may be lost all the same.

    Raises:
        ValueError: If a pattern matches nothing.
    """
    allowed = {} if overwrite is None else select(module, overwrite, name="overwrite")
    return [name for name, is_fresh in fresh.items() if not is_fresh and name not in allowed]


def refuse_stale(names: Sequence[str]) -> None:
    """Refuse to lose the weights of these names.

    Raises:
        ValueError: If there are any; names them, and says what to do.
    """
    if names:
        raise ValueError(
            f"params must choose weights as torch first draws them, got {listed(names)}, which somebody "
            "loaded, trained or set: choose others by params, or name those to be lost by overwrite"
        )


def _bound(layer: nn.Module, key: str, values: Tensor) -> float | None:
    """Return up to where torch draws uniform values; 0 where it sets zeros, ``None`` if unknown."""
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
        return 1 / math.sqrt(layer.hidden_size)
    if isinstance(layer, nn.MultiheadAttention):
        if "bias" in key:
            return 0.0
        return math.sqrt(6 / sum(values.shape)) if values.ndim == 2 else None
    if isinstance(layer, nn.Linear | _ConvNd):
        if key == "bias" and isinstance(layer, NonDynamicallyQuantizableLinear):  # that of attention
            return 0.0
        inputs = _torchs_fan_in(layer)
        return 1 / math.sqrt(inputs) if inputs else None
    return None


def _torchs_fan_in(layer: nn.Linear | _ConvNd) -> int:
    if isinstance(layer, nn.Linear):
        return layer.in_features
    channels = layer.out_channels if layer.transposed else layer.in_channels
    return channels // layer.groups * math.prod(layer.kernel_size)


def _unmoved(layer: nn.Module) -> bool:
    mean, var = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
    return (mean is None or not mean.any()) and (var is None or bool((var == 1).all()))


def _follows(values: Tensor, law: Callable[[Tensor], Tensor]) -> bool:
    """Return whether ``values`` may be drawn from the distribution whose distribution function is ``law``."""
    if not values.any() or (values.numel() > 1 and bool((values == values.flatten()[0]).all())):
        return False
    entries = values.flatten()
    sample = entries[:: max(1, math.ceil(len(entries) / ENTRIES))].double().sort().values
    count = len(sample)
    expected = law(sample)
    below = torch.arange(count, dtype=sample.dtype, device=sample.device) / count
    gap = torch.maximum(expected - below, below + 1 / count - expected).max()
    return gap.item() * math.sqrt(count) <= LIMIT
