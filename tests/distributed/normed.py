"""BatchNorm statistics in two processes, run in each: those of all data, the same in both.

python -m tests.distributed.normed "DDP" FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard

from lightning_tricks.core.collect import LastEpochs
from lightning_tricks.core.fingerprint import fingerprint
from lightning_tricks.core.tensors import local
from lightning_tricks.fusion.fusion import WeightFusion
from lightning_tricks.lifecycle.batchnorm import reestimate_batchnorm
from lightning_tricks.lifecycle.checkpoints import read
from lightning_tricks.lifecycle.evaluation import validate_again
from lightning_tricks.lifecycle.strategies import reshard
from lightning_tricks.network.precise_batchnorm import PreciseBatchNorm
from tests.contract.cases import CASES
from tests.distributed.cells import assert_same_on_all, check, plain_run, weights_of, whole_weights
from tests.distributed.worlds import WORLDS, OnCPU, Part, Shared, World
from tests.toys import Loader, StopAfter, StopError, assert_equal, trainer


class Normed(Shared):
    """Two BatchNorms, of which the second sees what the first has made of each process's batches."""

    def __init__(self, *, manual: bool = False, spare: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.BatchNorm1d(8)
        )
        self.spare = nn.Linear(1, 1)
        self.spare.requires_grad_(spare)
        self.automatic_optimization = not manual
        self.double()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if not self.automatic_optimization:
            self.optimizers().zero_grad()
            loss.backward()
            self.optimizers().step()
        return loss


class NormedShards(Normed):
    """The same, body and head each sharded over all processes by FSDP2."""

    def configure_model(self) -> None:
        if self.device_mesh is not None and not isinstance(self.head, FSDPModule):
            for part in (self.body, self.head):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])


class PlainOnCPU(OnCPU):
    """FSDP1 without mixed precision, in which it would turn the inputs of BatchNorm into single."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)


def world_of(name: str) -> World:
    """Return a world in which the module has BatchNorm, which sees other batches than in one process."""
    changes: dict[str, dict[str, Any]] = {
        "FSDP1": {"strategy": PlainOnCPU},
        "FSDP2": {"module": NormedShards},
    }
    return replace(WORLDS[name], **{"module": Normed, "same_numbers": False, **changes.get(name, {})})


class Uneven(Part):
    """Seven samples a batch, of which the processes get four and three; the same in each epoch."""

    def __init__(self) -> None:
        super().__init__(fixed=True)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, labels in super().__iter__():
            yield inputs[: 4 - dist.get_rank()], labels[: 4 - dist.get_rank()]


def everything(process: int) -> list[Tensor]:
    """Return the batches of a process."""
    return [inputs[process::2].double()[: 4 - process] for inputs, _ in Loader(fixed=True)]


def assert_statistics(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
    """Assert that ``buffers`` are those that ``weights`` give over all batches."""
    module = Normed()
    module.load_state_dict(weights)
    first, norm, act, second, _ = module.body.train()
    halves = [batch for process in (0, 1) for batch in everything(process)]
    with torch.no_grad():
        seen = {1: [first(torch.cat(halves))], 4: [second(act(norm(first(half)))) for half in halves]}
    for index, entries in seen.items():
        data = torch.cat(entries)
        assert data.shape == (35, 8)
        expected = {"running_mean": data.mean(0), "running_var": data.var(0, correction=0)}
        for name, value in expected.items():
            torch.testing.assert_close(buffers[f"body.{index}.{name}"], value, rtol=0, atol=1e-10)
        assert buffers[f"body.{index}.num_batches_tracked"] == 5


def buffers_of(module: LightningModule) -> dict[str, Tensor]:
    found = {name: value.clone() for name, value in module.named_buffers()}
    return {name.replace("_fsdp_wrapped_module.", ""): value for name, value in found.items()}


class AtEnd(Callback):
    """Estimates at the end, after an evaluation, which leaves whole weights in places."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        before, gradients = whole_weights(trainer), gradients_of(trainer)
        validate_again(trainer, pl_module)
        assert reestimate_batchnorm(trainer, pl_module) == 2
        buffers = buffers_of(pl_module)
        assert_same_on_all(buffers)
        assert_statistics(before, buffers)
        assert_equal(gradients_of(trainer), gradients)
        assert_equal(without(whole_weights(trainer), buffers), without(before, buffers))


def gradients_of(runner: Trainer) -> list[Tensor]:
    """Return what this process holds of each gradient."""
    reshard(runner)
    return [local(p.grad).clone() for p in runner.lightning_module.parameters() if p.grad is not None]


def without(weights: dict[str, Tensor], names: Any) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name not in names}


def run(world: World, folder: Path, *callbacks: Callback) -> tuple[Trainer, dict[str, Tensor]]:
    """Train on uneven batches; return the Trainer and the whole weights."""
    runner = trainer(*callbacks, **world.trainer_settings(folder))
    runner.fit(world.module(), Uneven(), Part(2, seed=9, fixed=True))
    return runner, whole_weights(runner)


def estimated(world: World, folder: Path) -> None:
    """Statistics are those of all data, the same everywhere, and nothing else changes."""
    run(world, folder, AtEnd())


def unused(world: World, folder: Path) -> None:
    """A parameter that takes no part, for which DDP looks before each backward pass, does no harm."""

    def strategy() -> DDPStrategy:
        return DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)

    run(replace(world, strategy=strategy, module=partial(world.module, spare=True)), folder, AtEnd())


def by_hand(world: World, folder: Path) -> None:
    """A training step that calls backward itself leaves the parts of gradients as they were."""
    run(replace(world, module=partial(world.module, manual=True)), folder, AtEnd())


class Own(Callback):
    """Notes what this process holds at the end, before anything is fused."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weights, self.buffers = whole_weights(trainer), buffers_of(pl_module)


def fused(world: World, folder: Path) -> None:
    """Fused weights get theirs; where they are not kept, each process has its own again."""
    settings: dict[str, Any] = {"collect": LastEpochs(2), "monitor": "val_loss", "update_batchnorm": True}
    fusion = WeightFusion(**settings, mode="min", keep="always")
    runner, final = run(world, folder / "always", fusion)
    assert_same_on_all(buffers_of(runner.lightning_module))
    assert_statistics(final, final)
    written = torch.load(folder / "always" / "checkpoints" / "fused.ckpt", weights_only=True)
    assert_equal(dict(written["state_dict"]), final)
    metrics = fusion.outcome()
    worse = "min" if metrics["metric_fused"] > metrics["metric_before"] else "max"
    own = Own()
    fusion = WeightFusion(**settings, mode=worse)
    runner, final = run(world, folder / "worse", own, fusion)
    assert fusion.outcome()["kept"] is False
    assert_equal(final, own.weights)
    assert_equal(buffers_of(runner.lightning_module), own.buffers)
    each = [torch.empty(8, dtype=torch.float64) for _ in range(2)]
    dist.all_gather(each, own.buffers["body.1.running_mean"])
    assert torch.equal(*each) is not world.sharded  # DDP gives all those of the first when it validates


def outside(world: World, folder: Path) -> None:
    """An evaluation outside of fit estimates them for weights whose statistics are not precise, once."""
    for hook, count, estimates in (("on_train_batch_end", 8, 1), ("on_validation_end", 2, 0)):
        saved = folder / f"{hook}.ckpt"
        try:
            run(world, folder, PreciseBatchNorm(), StopAfter(count, saved, hook))
        except StopError:
            dist.barrier()
        checkpoint = read(saved)
        same = checkpoint["callbacks"]["PreciseBatchNorm"]["state"]["precise"] == fingerprint(
            weights_of(checkpoint["state_dict"])
        )
        assert same == (estimates == 0), "the number of parts is not that of whole weights"
        module, technique = world.module(), PreciseBatchNorm()
        module.train_dataloader = lambda: Uneven()
        runner = trainer(technique, **world.trainer_settings(folder))
        # Lightning's FSDP1 cannot wrap a module a second time.
        for path in (saved,) if world.strategy is PlainOnCPU else (saved, None):
            runner.validate(module, Part(2, seed=9, fixed=True), ckpt_path=path, verbose=False)
            assert technique.outcome() == {"estimates": estimates}
            assert_same_on_all(buffers_of(module))
            assert_statistics(whole_weights(runner), buffers_of(module))


def cells(world: World, folder: Path) -> None:
    """The laws of the matrix hold too."""
    check(CASES["WeightFusion"], world, plain_run(world, folder / "plain"), folder)


def main(name: str, folder: Path) -> None:
    """Run all checks in the world of this name."""
    checks: list[Callable[[World, Path], None]] = [estimated, fused, outside]
    # Lightning's DDP and FSDP1 offer no such backward, and buffers differ between shards without fusion.
    checks += {"DDP": [unused, cells], "FSDP2": [by_hand]}.get(name, [])
    for each in checks:
        each(world_of(name), folder / each.__name__)
        dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
