"""The ways to train in several processes, and the module and the data with which they must agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from tests.toys import Loader, Toy


class Shared(Toy):
    """The toy in double precision, without what differs between one process and two: BatchNorm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh())
        self.double()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)


class Part(Loader):
    """This process's share of each batch; the whole batch where there is one process."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rank, count = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for inputs, labels in super().__iter__():
            yield inputs[rank::count].double(), labels[rank::count]


@dataclass(frozen=True)
class World:
    """A way to train in two processes.

    Attributes:
        strategy: Builds the strategy.
        module: Builds the module.
        settings: Builds what else the Trainer is given.
        sharded: Whether each process holds a part of the weights only.
        same_numbers: Whether the run must end at the weights of one process with the same global batches.
    """

    strategy: Callable[[], Any]
    module: Callable[[], Toy] = Shared
    settings: Callable[[], Mapping[str, Any]] = field(default=dict)
    sharded: bool = False
    same_numbers: bool = True


def ddp() -> DDPStrategy:
    """Return plain DDP over gloo, which looks for no unused parameters."""
    return DDPStrategy(process_group_backend="gloo")


WORLDS: dict[str, World] = {
    "DDP": World(ddp),
    "DDP, accumulation": World(ddp, settings=lambda: {"accumulate_grad_batches": 2}),
}
