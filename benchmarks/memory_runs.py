"""The runs in which memory is measured: a network of plain layers, whose activations are next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["LAYERS", "ROWS", "Network", "Run", "TwoLosses", "Variant", "by", "rows", "sgd", "stepped"]

LAYERS, ROWS = 16, 32
Optimizers = Callable[[nn.Module], torch.optim.Optimizer]


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer that keeps nothing."""
    return torch.optim.SGD(module.parameters(), lr=1e-4)


def rows(width: int) -> DataLoader[Any]:
    """Return batches of few rows, so that activations are next to nothing."""
    return DataLoader(
        TensorDataset(torch.randn(ROWS, width), torch.arange(ROWS) % width), batch_size=ROWS // 4
    )


class Network(LightningModule):
    """Layers of ``width`` times ``width`` weights, and nothing else."""

    def __init__(self, width: int, optimizers: Optimizers = sgd) -> None:
        """Draw the weights; they are stepped by ``optimizers(self)``."""
        super().__init__()
        layers = [nn.Linear(width, width, bias=False) for _ in range(LAYERS)]
        self.backbone, self.head = nn.Sequential(*layers[1:]), layers[0]
        self.optimizers_of = optimizers

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.backbone(inputs))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss."""
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return what was given."""
        return self.optimizers_of(self)


class TwoLosses(Network):
    """A second loss, which is of the same outputs."""

    def losses(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return both."""
        outputs = self(batch[0])
        return cross_entropy(outputs, batch[1]), cross_entropy(-outputs, batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return them as ours wants them."""
        first, second = self.losses(batch)
        return {"loss": first + second, "losses": {"first": first, "second": second}}


Run = tuple[LightningModule, list[Callback], dict[str, Any]]
"""A module, and the callbacks and settings of its Trainer."""


@dataclass(frozen=True)
class Variant:
    """One of those that do the same.

    Attributes:
        what: They do.
        who: As the table names it; in code quotes if it is ours.
        build: Makes a run of a network of the width that is given.
        peer: The distribution that it is from; ``None`` for ours and for what is written by hand.
    """

    what: str
    who: str
    build: Callable[[int], Run]
    peer: str | None = None


def by(callback: Callable[[], Callback], **settings: Any) -> Callable[[int], Run]:
    """Return runs with what ``callback`` makes."""
    return lambda width: (Network(width), [callback()], settings)


def stepped(optimizers: Optimizers, *callbacks: Callable[[], Callback]) -> Callable[[int], Run]:
    """Return runs with what ``optimizers`` and ``callbacks`` make."""
    return lambda width: (Network(width, optimizers), [make() for make in callbacks], {})
