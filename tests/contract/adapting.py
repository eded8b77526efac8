"""Toy modules with what a technique needs to have anything to do."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from tests.toys import Toy


def as_it_is(module: Toy) -> Toy:
    """Return ``module``."""
    return module


def without_own_decay(module: Toy) -> Toy:
    """Return ``module`` with an AdamW that leaves decay to others."""
    module.options |= {"weight_decay": 0.0}
    return module


def with_layer_norm(module: Toy) -> Toy:
    """Return ``module`` with a LayerNorm whose names in a state dict are those of an RMSNorm."""
    norm = nn.LayerNorm(8, bias=False, dtype=module.head.weight.dtype)
    getattr(module.body, "_orig_mod", module.body)[1] = norm
    return module


class Fading(nn.Module):
    """Drops the same share of every entry: dropout without chance, so that processes agree."""

    drop_prob: float

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 - self.drop_prob) if self.training else x


def with_dropout(module: Toy) -> Toy:
    """Return ``module``, with something that drops if it had nothing."""
    if not any(isinstance(layer, nn.Dropout) for layer in module.modules()):
        module.body.append(Fading(0.2))  # type: ignore[operator, union-attr]  # as Shared has it
    return module


class Wide(nn.BatchNorm1d):
    """Computes in its own type, whatever it is given: FSDP1 gives it single precision."""

    def forward(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None
        return super().forward(input.to(self.running_mean.dtype))


class Aside(nn.Module):
    """A BatchNorm that looks at what passes, and has no part in it, so that processes agree."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.norm = Wide(8, affine=False, dtype=like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        self.norm(x.detach().float())
        return x


def with_batchnorm(module: Toy) -> Toy:
    """Return ``module``, with a BatchNorm if it had none."""
    if not any(isinstance(layer, nn.BatchNorm1d) for layer in module.modules()):
        module.body.append(Aside(module.head.weight))  # type: ignore[operator, union-attr]  # as Shared has it
    return module


class ResidualLinear(nn.Module):
    """Adds to its input what two layers make of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.second = nn.Linear(width, width)
        self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.second(self.first(x))


def with_residual_block(module: Toy) -> Toy:
    """Return ``module`` with a residual block at the end of its body."""
    module.body.append(ResidualLinear(8).to(module.head.weight.dtype))
    return module


def with_cross_entropy(module: Toy) -> Toy:
    """Return ``module`` with its loss as an object."""
    module.criterion = nn.CrossEntropyLoss()
    return module


class Signals:
    """Comes before a toy module, whose inputs arrive as signals with one channel, shape (8, 1, 4)."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0][:, None], batch[1]

    def __reduce__(self) -> tuple[Any, ...]:
        """Name the class below, which pickle does not find."""
        return _remade, (type(self).__mro__[2],), self.__getstate__()  # type: ignore[misc]


@cache
def _of_signals(kind: type[Toy]) -> type[Toy]:
    return type(kind.__name__, (Signals, kind), {})


def _remade(kind: type[Toy]) -> Toy:
    new = _of_signals(kind)
    return new.__new__(new)


def with_signals(module: Toy) -> Toy:
    """Return ``module`` for inputs that are signals of any length."""
    module.body.insert(0, nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Flatten()))  # type: ignore[operator, union-attr]  # as Shared has it
    module.__class__ = _of_signals(type(module))
    return module
