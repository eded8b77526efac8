"""Parts of every kind that modules are made of, and a module that is put together from some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import parametrizations

from tests.toys import optimizers_for, parted, seed

__all__ = ["NAMES", "PARTS", "Patchwork", "everything"]

# All parts map (batch, 4) to (batch, 4).
NAMES = [
    "part",
    "weight",
    "a b",
    "ü",
    "*",
    "[x]",
    "q?",
    "_orig_mod",
    "module",
    "0",
    "a-b",
    "state_dict_",
    "é\n",
]


class Holds(nn.Module):
    """Adds something of each of its parameters to its input, whatever their shapes and types."""

    def __init__(self, **parameters: Tensor) -> None:
        super().__init__()
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        for parameter in self.parameters():
            real = parameter.abs() if parameter.is_complex() else parameter
            x = x + (real.square().sum() * 0.01).to(x)
        return x


class Buffered(nn.Linear):
    """A layer with buffers that it does not use; if it has one to count its batches in, it does."""

    def __init__(self, *, persistent: bool, **buffers: Tensor) -> None:
        super().__init__(4, 4)
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and hasattr(self, "seen"):
            self.seen += 1
        return super().forward(x)


class Cast(nn.Linear):
    """A layer in a type of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x)


class Twice(nn.Module):
    """One layer under two names, and its weight under a third."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(4, 4)
        self.tied = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) @ self.tied


class Lists(nn.Module):
    """Parameters in containers, with names of all sorts."""

    def __init__(self) -> None:
        super().__init__()
        self.several = nn.ParameterList([torch.randn(4), torch.randn(())])
        self.named = nn.ParameterDict({"a b": torch.randn(4), "*": torch.randn(4), "ü": torch.randn(4)})

    def forward(self, x: Tensor) -> Tensor:
        return sum([*self.several, *self.named.values()], x)


class Strided(nn.Module):
    """A weight whose entries do not lie in order, and one that is a part of a larger tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.turned = nn.Parameter(torch.randn(4, 4).t())
        self.part = nn.Parameter(torch.randn(8)[::2])

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.turned, self.part)


class Extra(nn.Linear):
    """A layer whose state dict holds more than tensors."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return super().forward(x)

    def get_extra_state(self) -> dict[str, Any]:
        return {"calls": self.calls, "tensor": torch.ones(2)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


class Inner(LightningModule):
    """A LightningModule within another, with an optimizer of its own that nobody asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Unused(nn.Linear):
    """A layer that is never called."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Recurrent(nn.GRU):
    """A layer that keeps its weights in lists besides."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class Outside(nn.Linear):
    """A layer that is in no optimizer."""


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


PARTS: Mapping[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 4),
    "frozen": lambda: frozen(nn.Linear(4, 4)),
    "no parameters": nn.Tanh,
    "tied": Twice,
    "lazy": lambda: nn.LazyLinear(4),
    "0-d": lambda: Holds(gain=torch.tensor(0.5)),
    "empty": lambda: Holds(nothing=torch.empty(0, 3), some=torch.ones(2)),
    "complex": lambda: Holds(
        z=torch.randn(3, dtype=torch.complex64), wide=torch.randn((), dtype=torch.complex128)
    ),
    "half": lambda: Cast(4, 4, dtype=torch.bfloat16),
    "double": lambda: Cast(4, 4, dtype=torch.float64),
    "unused": lambda: Unused(4, 4),
    "not finite": lambda: Buffered(
        persistent=True, mask=torch.tensor([0.0, -torch.inf]), gaps=torch.tensor([torch.nan, 1.0])
    ),
    "odd buffers": lambda: Buffered(
        persistent=True,
        seen=torch.zeros(()),
        counts=torch.arange(3),
        flags=torch.tensor([True, False]),
        waves=torch.ones(2, dtype=torch.complex64),
        none=torch.empty(0),
        tiny=torch.tensor(3, dtype=torch.uint8),
    ),
    "passing buffers": lambda: Buffered(persistent=False, mask=torch.tensor([torch.nan, torch.inf])),
    "lists": Lists,
    "strided": Strided,
    "extra state": Extra,
    "lightning": Inner,
    "batchnorm": lambda: nn.BatchNorm1d(4, momentum=None),
    "no statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
    "dropout": lambda: nn.Dropout(0.2),
    "recurrent": lambda: Recurrent(4, 4),
    "outside": lambda: Outside(4, 4),
}


class Patchwork(LightningModule):
    """Adds up its parts; what it cannot learn from, it only looks at."""

    def __init__(self, parts: Mapping[str, str], *, head: bool = True, foreign: bool = False) -> None:
        """Put it together; the same each time.

        Args:
            parts: The kind of each part by its name.
            head: Whether it ends in a layer that learns.
            foreign: Whether the optimizer holds a parameter that the module does not.
        """
        super().__init__()
        seed(1)
        self.parts = nn.Module()
        for name, kind in parts.items():
            self.parts.add_module(name, PARTS[kind]())
        self.head = nn.Linear(4, 3) if head else nn.Tanh()
        self.outputs = 3 if head else 4
        self.criterion = nn.CrossEntropyLoss()
        self.foreign = [nn.Parameter(torch.ones(2))] if foreign else []

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = torch.tanh(sum((part(batch[0]) for part in self.parts.children()), batch[0]))
        return self.criterion(self.head(x), batch[1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        seed(batch_idx)
        loss = self.loss(batch) + sum(each.square().sum() for each in self.foreign)
        return parted(self, loss) if loss.requires_grad else None

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        outside = {p for part in self.modules() if isinstance(part, Outside) for p in part.parameters()}
        chosen = [p for p in [*self.parameters(), *self.foreign] if p not in outside]
        return optimizers_for(self, torch.optim.AdamW(chosen, lr=0.05)) if chosen else None


def everything(module: nn.Module) -> dict[str, Any]:
    """Return copies of all that ``module`` holds, as bytes: NaN is then equal to itself."""
    held = {**module.state_dict(), **dict(module.named_buffers(remove_duplicate=False))}
    return {name: bits(value) for name, value in held.items()}


def bits(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    flat = value.detach().clone().contiguous().reshape(-1)
    return [str(value.dtype), tuple(value.shape), flat.view(torch.uint8)]
