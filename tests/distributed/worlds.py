"""The ways to train in several processes, and the module and the data with which they must agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins import DoublePrecision, FSDPPrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecision, fully_shard

from tests.toys import Loader, Toy, TwoOptimizers, scaler_plugin


class Shared(Toy):
    """The toy in double precision, without what differs between one process and two: BatchNorm, dropout."""

    kind = torch.float64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh())
        self.to(self.kind)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return super().loss((batch[0].to(self.head.weight.dtype), batch[1]))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)


class Single(Shared):
    """The same in single precision, for precisions that begin there."""

    kind = torch.float32


class Manual(TwoOptimizers, Shared):
    """The same with two optimizers, stepped by itself."""


class Sharded(Shared):
    """Body and head each sharded over all processes by FSDP2."""

    def configure_model(self) -> None:
        if self.device_mesh is not None and not isinstance(self.head, FSDPModule):
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.body, mesh=mesh)
            fully_shard(self.head, mesh=mesh)


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

    def trainer_settings(self, root: Path) -> dict[str, Any]:
        """Return all that a Trainer of two processes is given, which writes below ``root``."""
        return {"devices": 2, "strategy": self.strategy(), "default_root_dir": root, **self.settings()}


def ddp() -> DDPStrategy:
    """Return plain DDP over gloo, which looks for no unused parameters."""
    return DDPStrategy(process_group_backend="gloo")


class Double(FSDPPrecision):
    """Leaves a module in double precision as it is, which FSDP1 would turn into single."""

    def __init__(self) -> None:
        super().__init__("32-true")
        self._desired_input_dtype = torch.float64


class OnCPU(FSDPStrategy):
    """FSDP1 on CPUs, which Lightning does not offer: it names no device for them."""

    def __init__(self) -> None:
        double = MixedPrecision(torch.float64, torch.float64, torch.float64)
        super().__init__(
            process_group_backend="gloo",
            state_dict_type="sharded",  # torch crashes when it gathers a whole state dict on CPUs
            mixed_precision=double,
            auto_wrap_policy={nn.Sequential},
        )

    def _setup_model(self, model: nn.Module) -> nn.Module:
        whole = {"mixed_precision": self.mixed_precision_config, "sharding_strategy": self.sharding_strategy}
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **whole, **self.kwargs)


def fsdp2(*, distributed: bool) -> Callable[[], ModelParallelStrategy]:
    """Return what builds FSDP2's strategy, with checkpoints of one file or ``distributed`` over several."""
    return lambda: ModelParallelStrategy(
        data_parallel_size=2,
        tensor_parallel_size=1,
        save_distributed_checkpoint=distributed,
        process_group_backend="gloo",
    )


def double() -> dict[str, Any]:
    """Return what keeps Lightning's FSDP2 from turning a module into single precision."""
    return {"plugins": [DoublePrecision()]}


WORLDS: dict[str, World] = {
    "DDP": World(ddp),
    "DDP, accumulation": World(ddp, settings=lambda: {"accumulate_grad_batches": 2}),
    "DDP, manual": World(ddp, Manual),
    "DDP, bf16-mixed": World(ddp, Single, lambda: {"precision": "bf16-mixed"}, same_numbers=False),
    "DDP, 16-mixed": World(ddp, Single, lambda: {"plugins": [scaler_plugin()]}, same_numbers=False),
    "FSDP1": World(OnCPU, settings=lambda: {"plugins": [Double()]}, sharded=True),
    "FSDP1, accumulation": World(
        OnCPU,
        settings=lambda: {"plugins": [Double()], "accumulate_grad_batches": 2},
        sharded=True,
    ),
    "FSDP2": World(fsdp2(distributed=False), Sharded, double, sharded=True),
    "FSDP2, distributed checkpoints": World(fsdp2(distributed=True), Sharded, double, sharded=True),
    "FSDP2, accumulation": World(
        fsdp2(distributed=False),
        Sharded,
        lambda: {"accumulate_grad_batches": 2, **double()},
        sharded=True,
    ),
    "FSDP2, bf16-true": World(
        fsdp2(distributed=False),
        Sharded,
        lambda: {"precision": "bf16-true"},
        sharded=True,
        same_numbers=False,
    ),
}
