"""Noise in layers: Gaussian, added to what each of them returns.

    h <- h + n,    n ~ Normal(0, std^2)

References: Chintala et al., "How to Train a GAN?", 2016, https://github.com/soumith/ganhacks, hint 13;
Sønderby et al., "Amortised MAP Inference for Image Super-resolution", 2017,
https://arxiv.org/abs/1610.04490, section 3.2, for instance noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn

from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Schedule
from lightning_tricks.core.select import Patterns, as_patterns

__all__ = ["LayerNoise", "noisy", "noisy_layers"]


def noisy(samples: Tensor, *, std: float, generator: torch.Generator) -> Tensor:
    """Return ``samples`` with independent Normal(0, std ** 2) noise; themselves if ``std`` is 0.

    Args:
        samples: Of any shape and floating type, on the device of ``generator``.
        std: Standard deviation, in units of an entry, at least 0.
        generator: Source of the noise.
    """
    if std == 0.0:
        return samples
    noise = torch.randn(samples.shape, generator=generator, device=samples.device, dtype=samples.dtype)
    return samples + std * noise


@contextmanager
def noisy_layers(layers: Iterable[nn.Module], *, std: float, generator: torch.Generator) -> Iterator[None]:
    """Let each of ``layers`` return what it computes with noise (:func:`noisy`), within this."""

    def disturb(layer: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return noisy(output, std=std, generator=generator)

    with ExitStack() as stack:
        for layer in layers if std > 0.0 else ():
            stack.callback(layer.register_forward_hook(disturb).remove)
        yield


@dataclass(frozen=True)
class LayerNoise:
    """Noise in layers of the generators, in training only.

    Args:
        std: Its standard deviation in units of a layer's output, in [0, 1e6]; a number, a schedule or a text.
        layers: Patterns of the layers, by their names in the module or their types.
    """

    std: float | str | Schedule
    _: KW_ONLY
    layers: Patterns

    def __post_init__(self) -> None:
        """Check the settings."""
        as_schedule("std", self.std, 0.0, 1e6)
        as_patterns("layers", self.layers)
