"""What an average over parts must do, run in each process.

    python -m tests.distributed.averages "FSDP2" FOLDER

Every set of weights is compared with that of a run that keeps the same average by hand, whole.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

import lightning_tricks as lt
from lightning_tricks.averaging.trajectory import Trajectory
from tests.distributed.cells import fit, weights_of, whole_weights
from tests.distributed.worlds import WORLDS, Part, World
from tests.toys import StopAfter, StopError, assert_equal, trainer

DECAY = 0.9


class ByHand(Callback):
    """Averages whole weights, and notes what the module holds in validation."""

    def __init__(self, decay: float = DECAY, gamma: float | None = None) -> None:
        self.decay, self.gamma, self.steps = decay, gamma, 0
        self.average: dict[str, Tensor] = {}
        self.live: dict[str, Tensor] = {}
        self.seen: list[dict[str, Tensor]] = []
        self.expected: list[dict[str, Tensor]] = []
        self.distances: list[tuple[float, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.average = whole_weights(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        self.live = whole_weights(trainer)
        self.steps += 1
        decay = self.decay if self.gamma is None else (1 - 1 / self.steps) ** (self.gamma + 1)
        for name, value in self.live.items():
            self.average[name].lerp_(value, 1 - decay)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = trainer.callback_metrics.get("ema_weights/distance")
        if logged is not None:
            average, live = (flat(each) for each in (self.average, self.live))
            self.distances.append((float(logged), float((average - live).norm() / live.norm())))

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        self.seen.append(whole_weights(trainer))
        self.expected.append({name: value.clone() for name, value in self.average.items()})


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in state.values()])


def near(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value.cpu(), second[name].cpu(), rtol=0, atol=1e-12)


def side() -> lt.EMAWeights:
    return lt.EMAWeights(decay=0.5, decay_warmup=False, label="side", evaluate=False)


def goes_on(world: World, folder: Path, save: str, expected: dict[str, Tensor], files: Trajectory) -> None:
    """Check that averages that are kept apart go on from a checkpoint to the bit."""

    def averages() -> list[Callback]:
        return [lt.PostHocEMA(), lt.EMAWeights(decay=DECAY, save=save), side()]

    stopped = folder / "stopped.ckpt"
    try:
        fit(world, folder, *averages(), StopAfter(8, stopped))
    except StopError:
        dist.barrier()
    _, runner, _ = fit(world, folder, *averages(), ckpt_path=stopped)
    runner.save_checkpoint(folder / "end.ckpt")
    assert_equal(expected, lt.average_state(folder / "end.ckpt", label="side"))
    # Names hold the checksums of what is in the files.
    found = Trajectory.read(folder / "checkpoints")
    assert [moment.name for moment in found.moments] == [moment.name for moment in files.moments]


def check(name: str, save: str, folder: Path) -> None:
    """Check a run and its checkpoints, whole and weights-only, and their way back."""
    world, hand, other_hand = WORLDS[name], ByHand(), ByHand(0.5)
    apart, power = side(), ByHand(gamma=6.94)
    ema = lt.EMAWeights(decay=DECAY, decay_warmup=False, save=save)
    _, runner, after = fit(world, folder / save, ema, hand, apart, other_hand, lt.PostHocEMA(), power)
    near(after, hand.average)
    dist.barrier()
    files = Trajectory.read(folder / save / "checkpoints")
    near(dict(files.moments[-1].averages[1]), power.average)
    assert len(hand.distances) > 1
    for logged, expected in hand.distances:
        assert abs(logged - expected) < 1e-6 * expected, (logged, expected)
    for seen, expected in zip(hand.seen, hand.expected, strict=True):
        near(seen, expected)
    with ema.live_weights():
        near(whole_weights(runner), hand.live)
    near(whole_weights(runner), hand.average)
    for weights_only in (False, True):
        path = folder / save / f"{weights_only}.ckpt"
        runner.save_checkpoint(path, weights_only=weights_only)
        near(weights_of(lt.live_state(path)), hand.live)
        near(weights_of(lt.average_state(path)), hand.average)
        near(weights_of(lt.fuse([path, path], which="live")), hand.live)
        near(weights_of(lt.fuse([path, path], which="average")), hand.average)
        if not weights_only:
            near(weights_of(lt.average_state(path, label="side")), other_hand.average)
            slow = lt.average_state(path, label="side")
            goes_on(world, folder / save / "again", save, slow, files)
        # Another Trainer evaluates the average, whichever set stands first.
        seen = ByHand()
        settings = {
            "devices": 2,
            "strategy": world.strategy(),
            "default_root_dir": folder,
            **world.settings(),
        }
        other = trainer(lt.EMAWeights(save=save), side(), seen, **settings)
        other.validate(world.module(), Part(2, seed=9, fixed=True), ckpt_path=path, verbose=False)
        near(seen.seen[0], hand.average)
    assert_equal(after, whole_weights(runner))


if __name__ == "__main__":
    for which in ("average", "live"):
        check(sys.argv[1], which, Path(sys.argv[2]))
    dist.barrier()
