"""The shapes of two well-known networks' parameters, without the networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SETS", "Weights"]


def vit_b() -> list[tuple[int, ...]]:
    """Return those of ViT-B/16: 150 tensors, 86 million entries."""
    width, hidden = 768, 3072
    block = [
        *((width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)),
        *((width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,)),
    ]
    stem = [(1, 1, width), (1, 197, width), (width, 3, 16, 16), (width,)]
    return [*stem, *(12 * block), (width,), (width,)]


def resnet_50() -> list[tuple[int, ...]]:
    """Return those of all entries of ResNet-50's state dict: 320 tensors, 26 million entries."""
    shapes: list[tuple[int, ...]] = []

    def convolution(inputs: int, outputs: int, kernel: int) -> None:
        # With a BatchNorm: scale, shift, running mean and variance, and a count.
        shapes.extend([(outputs, inputs, kernel, kernel), *(4 * [(outputs,)]), ()])

    convolution(3, 64, 7)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for index in range(blocks):
            convolution(inputs, width, 1)
            convolution(width, width, 3)
            convolution(width, 4 * width, 1)
            if index == 0:
                convolution(inputs, 4 * width, 1)
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


SETS = {"ViT-B": vit_b, "ResNet-50": resnet_50}


class Weights(nn.Module):
    """Parameters of these shapes, with gradients of the size that training has: one for each shape."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        """Draw weights and gradients from a fixed seed."""
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def draw(shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=generator).mul_(0.02)

        self.weights = nn.ParameterList(draw(shape) for shape in shapes)
        # Else a third of the memory would hold what is only copied.
        of_shape = {shape: draw(shape) for shape in dict.fromkeys(shapes)}
        self.gradients = [of_shape[shape] for shape in shapes]

    def fill(self) -> None:
        """Give every weight its gradient anew, which clipping has changed."""
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            if weight.grad is None:
                weight.grad = gradient.clone()
            else:
                weight.grad.copy_(gradient)
