"""Which layers drop something at random, and where each keeps its probability."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from lightning_tricks.core.select import Patterns, select_layers

__all__ = ["dropout_layers", "rate_of", "set_rate_"]


def dropout_layers(module: nn.Module, patterns: Patterns) -> dict[str, nn.Module]:
    """Return the layers that drop out and that ``patterns``, the setting ``params``, matches, by name.

    These are torch's dropout layers, its attention, its recurrent layers of several layers (which drop out
    between them), and stochastic depth: layers with a number ``drop_prob``, such as timm's ``DropPath``, and
    torchvision's ``StochasticDepth``.

    Raises:
        ValueError: If a pattern matches none; lists the nearest names.

    Example:
        >>> list(dropout_layers(nn.TransformerEncoderLayer(8, 2), "*"))
        ['self_attn', 'dropout', 'dropout1', 'dropout2']
    """
    return select_layers(
        module,
        patterns,
        lambda layer: layer is not module and _place(layer) is not None,
        what="a dropout layer",
    )


def rate_of(layer: nn.Module) -> float:
    """Return the probability with which ``layer``, one of :func:`dropout_layers`, drops."""
    return float(vars(layer)[_place(layer) or ""])


def set_rate_(layer: nn.Module, rate: float) -> None:
    """Let ``layer``, one of :func:`dropout_layers`, drop with probability ``rate``."""
    setattr(layer, _place(layer) or "", rate)


def _place(layer: nn.Module) -> str | None:
    """Return the attribute that holds the probability; ``None`` if there is none."""
    if isinstance(layer, _DropoutNd) or type(layer).__name__ == "StochasticDepth":
        return "p"
    if isinstance(layer, nn.RNNBase):
        return "dropout" if layer.num_layers > 1 else None
    if isinstance(layer, nn.MultiheadAttention):
        return "dropout"
    return "drop_prob" if type(vars(layer).get("drop_prob")) in (int, float) else None
