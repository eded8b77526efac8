"""Layer-wise rate decay: layers near the input learn more slowly than those near the output.

    rate of layer l = base rate * layer_decay ** (L - l),    l = 0 (input) .. L (output)

References: Clark et al., "ELECTRA", 2020, https://arxiv.org/abs/2003.10555; He et al., "Masked Autoencoders
Are Scalable Vision Learners", 2022, https://arxiv.org/abs/2111.06377.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_tricks.core.layers import own_layers
from lightning_tricks.core.partition import partition
from lightning_tricks.core.select import Patterns

__all__ = ["layers_of"]


def layers_of(
    module: nn.Module, layers: Sequence[Patterns] | None
) -> tuple[list[Patterns], dict[nn.Parameter, int]]:
    """Return the patterns of the layers from input to output, and the layer of each parameter.

    Args:
        module: The whole network.
        layers: For each layer one pattern or several; ``None`` for :func:`own_layers`. Frozen parameters
            that no pattern matches count to the first.

    Raises:
        ValueError: If a pattern matches nothing, a parameter is in two layers, or one that learns is in none.
    """
    if layers is None:
        names, depths = own_layers(module)
        return [*names], depths
    parts = partition(module, layers, name="layers", part="layer")
    depths = {parameter: depth for depth, part in enumerate(parts) for parameter in part.values()}
    return list(layers), {parameter: depths.get(parameter, 0) for parameter in module.parameters()}
