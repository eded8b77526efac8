"""How many inputs an output sums up, and how many outputs an input reaches: the fans of a weight.

    linear                   n_in = in,                              n_out = out
    convolution              n_in = in / groups * k,                 n_out = out / groups * k
    transposed convolution   n_in = in / groups * k / stride,        n_out = out / groups * k

``k`` and ``stride`` are products over all axes of the kernel; a transposed convolution sums up so many inputs
on average. Of an ordinary convolution with a stride an input reaches only ``1 / stride`` of ``n_out``, for
which He et al. do not correct, nor does this. What torch computes from a weight's shape alone counts all
groups in ``n_out``, and takes the two fans of a transposed convolution for one another.

Reference: He et al., "Delving Deep into Rectifiers", 2015, https://arxiv.org/abs/1502.01852, section 2.2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = ["WEIGHTED", "Block", "Fans", "layer_fans", "weight_blocks"]

# The layers whose weights are known.
WEIGHTED = (nn.Linear, _ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)


class Fans(NamedTuple):
    """The fans of a weight.

    Attributes:
        n_in: Inputs that an output sums up, on average.
        n_out: Outputs that an input reaches, at stride 1.
    """

    n_in: float
    n_out: float


class Block(NamedTuple):
    """Rows of a weight that are a weight by themselves, such as those of one gate.

    Attributes:
        rows: Which of the first axis.
        fans: Their fans.
    """

    rows: slice
    fans: Fans


def layer_fans(layer: nn.Linear | _ConvNd) -> Fans:
    """Return the fans of the weight of a linear layer or a convolution.

    Example:
        >>> layer_fans(nn.Conv2d(8, 12, 3, groups=4))
        Fans(n_in=18.0, n_out=27.0)
        >>> layer_fans(nn.ConvTranspose2d(8, 12, 4, stride=2))
        Fans(n_in=32.0, n_out=192.0)
    """
    if isinstance(layer, nn.Linear):
        return Fans(float(layer.in_features), float(layer.out_features))
    kernel = math.prod(layer.kernel_size)
    apart = math.prod(layer.stride) if isinstance(layer, _ConvTransposeNd) else 1
    return Fans(layer.in_channels / layer.groups * kernel / apart, layer.out_channels / layer.groups * kernel)


def weight_blocks(layer: nn.Module, key: str) -> tuple[Block, ...]:
    """Return the blocks of rows of the weight ``key`` of ``layer``; none if it is no weight that is known.

    Attention has one each for query, key and value, a recurrent layer one for each gate, and a convolution
    one for each group.
    """
    weight = layer._parameters.get(key)
    if weight is None or not isinstance(layer, WEIGHTED) or "weight" not in key or not weight.numel():
        return ()
    size = weight.shape[0]
    if isinstance(layer, nn.Linear | _ConvNd):
        if key != "weight":
            return ()
        rows, fans = size // getattr(layer, "groups", 1), layer_fans(layer)
    else:
        rows = layer.embed_dim if isinstance(layer, nn.MultiheadAttention) else layer.hidden_size
        if key.startswith("weight_hr"):  # the projection of an LSTM
            rows = size
        fans = Fans(float(weight.shape[1]), float(rows))
    return tuple(Block(slice(first, first + rows), fans) for first in range(0, size, rows or 1))
