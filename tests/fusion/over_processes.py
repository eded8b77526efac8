"""What fusion must do in two processes, run in each: the same as in one, whoever holds which part.

python -m tests.fusion.over_processes "FSDP2" FOLDER
"""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_tricks.averaging.ema import EMAWeights
from lightning_tricks.core.collect import BestK, EverySteps, LastEpochs
from lightning_tricks.core.tensors import local
from lightning_tricks.fusion.average import Average
from lightning_tricks.fusion.fisher import FisherWeighted
from lightning_tricks.fusion.fusion import WeightFusion
from lightning_tricks.fusion.greedy_soup import GreedySoup
from lightning_tricks.fusion.learned_soup import LearnedSoup
from lightning_tricks.fusion.reg_mean import RegMean
from lightning_tricks.fusion.task_arithmetic import TaskArithmetic
from lightning_tricks.lifecycle.strategies import reshard
from tests.distributed.cells import fit, state_of, whole_weights
from tests.distributed.worlds import WORLDS, Part, Shared, World
from tests.fusion.runs import always, mean
from tests.toys import assert_equal, trainer


class Wholes(Callback):
    """Notes the whole weights at the start, after each step and at the end of each epoch."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Tensor]] = []
        self.steps: list[dict[str, Tensor]] = []
        self.ends: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.starts.append(whole_weights(trainer))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.steps.append(whole_weights(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ends.append(whole_weights(trainer))


@dataclass(frozen=True)
class Blocks(Average):
    """Says of itself that it needs whole tensors."""

    @property
    def entrywise(self) -> bool:
        return False


def epochs(world: World, count: int) -> World:
    """Return ``world`` with runs of so many epochs."""
    return replace(world, settings=lambda: {**world.settings(), "max_epochs": count})


def average(world: World, folder: Path) -> None:
    """The mean of what was there, one file for each, and the same entries in all processes."""
    spy = Wholes()

    def named() -> LightningModule:
        module = world.module()
        module.save_hyperparameters({"width": 5})
        return module

    fusion = always(collect=LastEpochs(2), monitor="val_loss", mode="min")
    _, runner, final = fit(replace(world, module=named), folder, spy, fusion)
    torch.testing.assert_close(final, mean(spy.ends[-2:]), rtol=0, atol=1e-12)
    kept = fusion._shelf.kept
    assert kept == runner.strategy.broadcast(kept)
    assert fusion.outcome() == runner.strategy.broadcast(fusion.outcome())
    files = sorted((folder / "checkpoints" / "snapshots").iterdir())
    assert [file.name for file in files] == [snapshot.name for snapshot in kept]
    for file, wanted in zip(files, spy.ends[-2:], strict=True):
        assert_equal(torch.load(file, weights_only=True), wanted)
    content = torch.load(folder / "checkpoints" / "fused.ckpt", weights_only=True)
    assert_equal(dict(content["state_dict"]), final)
    assert content["hyper_parameters"] == {"width": 5} and "optimizer_states" not in content
    path = folder / "weights.ckpt"
    runner.save_checkpoint(path, weights_only=True)
    if path.is_file():
        assert_equal(dict(torch.load(path, weights_only=True)["state_dict"]), final)


def all_at_once(base: Path) -> WeightFusion:
    """Return a fusion over the file of a base, with previews, a curve and both kinds of statistics."""
    method = TaskArithmetic(scale=0.3, base=str(base))
    measures = {"monitor": "val_loss", "mode": "min", "curve": 3, "every": "1 epoch"}
    return always(method=method, collect=LastEpochs(2), update_batchnorm="better", **measures)


def over_a_base(world: World, folder: Path) -> None:
    """The base goes before the snapshots, and previews change nothing."""
    spy, plain, path = Wholes(), Wholes(), folder.parent / "base.ckpt"
    start = {name: 2 * value for name, value in Shared().state_dict().items()}
    if dist.get_rank() == 0:
        torch.save({"state_dict": start}, path)
    dist.barrier()
    fit(world, folder / "plain", plain)
    fusion = all_at_once(path)
    _, _, final = fit(world, folder, spy, fusion)
    assert_equal(spy.steps, plain.steps)
    torch.testing.assert_close(final, fusion.method.fuse([start, *spy.ends[-2:]]), rtol=0, atol=1e-12)
    content = torch.load(folder / "checkpoints" / "fused.ckpt", weights_only=True)
    assert content["fusion"]["models"][0] == {"name": str(path), "size": path.stat().st_size}


def greedy(world: World, folder: Path) -> None:
    """A soup asks each candidate's metric, and decides in all processes alike."""
    fusion = WeightFusion(method=GreedySoup(), collect=EverySteps(3, k=4), monitor="val_loss", mode="min")
    _, _, final = fit(world, folder, fusion)
    if dist.get_rank() == 0:
        torch.save(final, folder / "greedy.pt")


def looking(world: World, folder: Path) -> None:
    """Methods that look at data see those of all processes; shards are refused before the first batch."""
    for method in (RegMean(), FisherWeighted(), LearnedSoup(per="layer")):
        fusion = always(method=method, collect=EverySteps(3, k=2))
        if world.sharded:
            spy = Wholes()
            with pytest.raises(ValueError, match="method must be entrywise where weights are sharded|whole"):
                fit(world, folder / "refused", spy, fusion)
            assert spy.steps == []
            continue
        final = fit(world, folder / type(method).__name__, fusion)[2]
        if dist.get_rank() == 0:
            torch.save(final, folder.parent / f"{type(method).__name__}.pt")


def not_kept(world: World, folder: Path) -> None:
    """Weights that are worse leave what was there, to the bit."""
    spy = Wholes()
    fusion = WeightFusion(collect=BestK(3), monitor="val_loss", mode="min")
    _, _, final = fit(world, folder, spy, fusion)
    result = fusion.outcome()
    assert not result["kept"] and result["metric_fused"] > result["metric_before"]
    assert_equal(final, spy.ends[-1])
    assert not (folder / "checkpoints" / "fused.ckpt").exists()


def averaged(world: World, folder: Path) -> None:
    """An average over parts is collected as one over wholes."""

    class Means(Wholes):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            super().on_train_epoch_end(trainer, pl_module)
            saved.append(folder / f"{len(saved)}.ckpt")
            trainer.save_checkpoint(saved[-1])

    saved: list[Path] = []
    ema = EMAWeights(decay=0.5, save="live")
    _, _, final = fit(world, folder, ema, always(collect=LastEpochs(2), source="average"), Means())
    rest = [path / "meta.pt" if path.is_dir() else path for path in saved[-2:]]
    means = [dict(torch.load(path, weights_only=True)["average_model_state"]) for path in rest]
    torch.testing.assert_close(final, mean(means), rtol=0, atol=1e-12)


def resumed(world: World, folder: Path) -> None:
    """A checkpoint saved after fit goes on from the weights before fusion, whole in its state."""
    for others in ([], [EMAWeights]):
        plain, spy = Wholes(), Wholes()
        fit(epochs(world, 4), folder / "plain", plain)
        where = folder / f"{len(others)}"
        fusion = always(collect=LastEpochs(2))
        _, runner, final = fit(epochs(world, 2), where, *[kind() for kind in others], fusion)
        state = state_of(runner, where / "after.ckpt")
        if state and not others:
            assert_equal(dict(state.get("state_dict", state.get("model"))), final)
            former = state["callbacks"]["WeightFusion"]["state"]["former"]
            assert_equal(former, plain.ends[1])
        again = [*[kind() for kind in others], always(collect=LastEpochs(2)), spy]
        fit(epochs(world, 4), where, *again, ckpt_path=where / "after.ckpt")
        half = len(plain.steps) // 2
        assert_equal(spy.steps, plain.steps[half:])


def second_fit(world: World, folder: Path) -> None:
    """A second fit takes back what was there, or leaves what somebody has put there since."""
    plain, spy, own = Wholes(), Wholes(), Wholes()
    two_fits(world, folder, plain)
    two_fits(world, folder, spy, always(collect=LastEpochs(2)))
    assert_equal(spy.steps, plain.steps)
    fused = two_fits(world, folder, own, always(collect=LastEpochs(2)), between=change_one_entry)
    fused["head.bias"][-1] = 7.0
    assert_equal(own.starts[-1], fused)


def two_fits(
    world: World, folder: Path, *callbacks: Callback, between: Callable[[Trainer], None] | None = None
) -> dict[str, Tensor]:
    """Train two epochs, validate, train two more; return the weights after the first two."""
    module = world.module()
    runner = trainer(*callbacks, **world.trainer_settings(folder), max_epochs=2)
    runner.fit(module, Part(), Part(2, seed=9, fixed=True))
    runner.validate(module, Part(2, seed=9, fixed=True), verbose=False)
    first = whole_weights(runner)
    if between is not None:
        between(runner)
    runner.fit_loop.max_epochs = 4
    runner.fit(module, Part(), Part(2, seed=9, fixed=True))
    return first


def change_one_entry(runner: Trainer) -> None:
    """Change the last bias, which one process has where weights are sharded."""
    bias = runner.lightning_module.head.bias.data
    if dist.get_rank() == 1 or bias is local(bias):
        local(bias)[-1] = 7.0


def spoilt(world: World, folder: Path) -> None:
    """What is not finite in the part of one process is refused by all, and none waits for another."""

    class Spoil(Wholes):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            reshard(trainer)
            if trainer.current_epoch == 2 and (dist.get_rank() == 1 or not world.sharded):
                for parameter in pl_module.head.parameters():
                    local(parameter.data).fill_(math.nan)
            super().on_train_epoch_end(trainer, pl_module)

    spy = Spoil()
    fusion = always(collect=LastEpochs(2), method=GreedySoup(), monitor="val_loss", mode="min")
    with pytest.raises(ValueError, match="every model must be finite|must be finite in every model"):
        fit(world, folder, spy, fusion)
    spoilt = [bool(weights["head.weight"].isnan().any()) for weights in spy.ends]
    assert spoilt == [False, False, True]


def full_disk(world: World, folder: Path) -> None:
    """An error of the process that writes ends all."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space left"):
            fit(world, folder, always(collect=LastEpochs(2)))


def refused(world: World, folder: Path) -> None:
    """A method that needs whole tensors is refused where processes hold parts, before the first batch."""
    spy = Wholes()
    if world.sharded:
        with pytest.raises(ValueError, match=r"method must be entrywise .*, got Blocks\(weights=None\)"):
            fit(world, folder, spy, always(method=Blocks()))
        assert spy.steps == []
    else:
        fit(world, folder, always(method=Blocks()))


def main(name: str, folder: Path) -> None:
    """Run all checks in the world of this name."""
    world = WORLDS[name]
    checks = (
        average,
        over_a_base,
        greedy,
        looking,
        not_kept,
        averaged,
        resumed,
        second_fit,
        spoilt,
        full_disk,
        refused,
    )
    for check in checks:
        if check is second_fit and name == "FSDP1":
            continue  # Lightning cannot: it loses its wrapper of the whole module
        check(world, folder / check.__name__)
        dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
