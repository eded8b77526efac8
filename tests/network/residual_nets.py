"""Residual networks built as torchvision, timm and GPT-2 build them, small."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """As torchvision's."""

    def __init__(self, old: int, new: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(old, new, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(new)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(new, new, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(new)
        self.downsample = None
        if (old, stride) != (new, 1):
            self.downsample = nn.Sequential(nn.Conv2d(old, new, 1, stride, bias=False), nn.BatchNorm2d(new))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """As timm's, with another activation behind the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, 2, 1), nn.BatchNorm2d(2)
        self.act1 = nn.SiLU()
        self.conv2, self.bn2 = nn.Conv2d(2, 2, 3, 1, 1), nn.BatchNorm2d(2)
        self.conv3, self.bn3 = nn.Conv2d(2, width, 1), nn.BatchNorm2d(width)
        self.se = Gate(width)
        self.act3 = nn.SiLU()
        self.downsample = None

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act3(self.se(self.bn3(self.conv3(out))) + x)


class Gate(nn.Module):
    """Scales its channels, as squeeze-and-excitation does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


class PreActivation(nn.Module):
    """Normalises before each convolution, and registers them in another order than it calls them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, 1, 1) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.bn1(x).relu())
        return self.shortcut(x) + self.conv2(self.bn2(out).relu())


class Attention(nn.Module):
    """As timm's."""

    def __init__(self, width: int, last: str = "proj") -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.add_module(last, nn.Linear(width, width))
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.get_submodule(self.last)(out)


class TimmMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class TimmBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width)
        self.norm2, self.mlp = nn.LayerNorm(width), TimmMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainBlock(nn.Module):
    """As a reference model's; after the sums it may normalise, and then is no identity."""

    def __init__(self, width: int, *, post: bool = False) -> None:
        super().__init__()
        self.attention = Attention(width, "out_proj")
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.Dropout(0.5))
        self.norm = nn.LayerNorm(width)
        self.post = post

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.attention(x)) if self.post else x + self.attention(self.norm(x))
        return x + self.mlp(x)


class OwnBlock(nn.Module):
    """Of which no rule knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class DownBlock(nn.Module):
    """As of a U-Net: makes its output smaller, and adds nothing."""

    def __init__(self, old: int, new: int, downsample: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(old, new, 3, 1, 1), nn.Conv2d(new, new, 3, 1, 1)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.conv2(self.conv1(x).relu()).relu())


class NormFirst(nn.Module):
    """As the second ResNet: its shortcut gets what a first normalisation makes of the input."""

    def __init__(self, old: int, new: int) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(old, new, 1, 2)
        self.norm1, self.conv1 = nn.BatchNorm2d(old), nn.Conv2d(old, new, 3, 2, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(new), nn.Conv2d(new, new, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x).relu()
        return self.downsample(x) + self.conv2(self.norm2(self.conv1(x)).relu())


class Flagged(nn.Module):
    """Says by a flag whether it adds its input."""

    def __init__(self, width: int, *, shortcut: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.conv1(x).relu())
        return x + out if self.shortcut else out


class Scaled(nn.Module):
    """A transformer's block with a scale of each channel behind its branches."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width)
        self.norm2, self.mlp = nn.LayerNorm(width), TimmMlp(width)
        self.gamma = nn.Parameter(torch.full((width,), scale))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x) + self.relative_position_bias_table)
        return x + self.gamma * self.mlp(self.norm2(x))


class Wrapped(nn.Module):
    """Takes and returns a dictionary, or is called in parts only."""

    def __init__(self, width: int, *, parts: bool = False) -> None:
        super().__init__()
        self.block, self.parts = Dictionary(width), parts

    def forward(self, x: Tensor) -> Tensor:
        if self.parts:
            return x + self.block.mlp(x + self.block.attn(x))
        return self.block({"x": x})["x"]


class Dictionary(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(width), TimmMlp(width)

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        x = given["x"] + self.attn(given["x"])
        return {"x": x + self.mlp(x)}
