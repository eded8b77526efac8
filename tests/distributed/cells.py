"""One cell of the matrix: a technique in a way to train in several processes, run and checked there.

    python -m tests.distributed.cells "DDP" FOLDER GradientClip EMAWeights

runs these cases in turn and writes ``results.json`` and each case's final weights to FOLDER.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from lightning_tricks.core.select import clean_name
from tests.contract.adapting import as_it_is
from tests.contract.cases import CASES, Case
from tests.distributed.worlds import WORLDS, Part, World
from tests.toys import SaveAfter, Toy, assert_equal, trainer

BATCHES = 3  # of each epoch, of which there are three, each with a validation
MIDDLE = 5  # batches: within the second epoch, and not within an accumulation


class Watch(Callback):
    """Counts batches, and asserts that all processes held the same weights after each, once an epoch."""

    def __init__(self, world: World) -> None:
        self.world, self.batches = world, 0
        self.held: dict[str, Tensor] = {}

    def on_train_batch_start(self, *_: Any) -> None:
        self.batches += 1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self.world.sharded:
            for name, p in pl_module.named_parameters():
                self.held[f"{name} after batch {self.batches}"] = p.detach().clone()

    def on_train_epoch_end(self, *_: Any) -> None:
        if self.held:
            assert_same_on_all(self.held)
            self.held.clear()


def assert_same_on_all(tensors: dict[str, Tensor]) -> None:
    """Assert that every process holds the same values, to the bit."""
    parts = [value.reshape(-1).view(torch.uint8) for value in tensors.values()]
    lengths, own = [len(part) for part in parts], torch.cat(parts)
    first = own.clone()
    dist.broadcast(first, 0)
    for name, here, there in zip(tensors, own.split(lengths), first.split(lengths), strict=True):
        assert torch.equal(here, there), f"{name} differs between processes"


def whole_weights(runner: Trainer) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, whole, by their names in one process."""
    model = runner.strategy.model
    wrapped = model if isinstance(model, FullyShardedDataParallel) else runner.lightning_module
    with FullyShardedDataParallel.summon_full_params(wrapped, writeback=False):
        return weights_of(wrapped.state_dict())


def weights_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of what a state dict holds, whole, by clean names."""
    return {clean_name(name): whole(value).detach().clone() for name, value in state.items()}


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor of which each process may hold a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fit(
    world: World,
    root: Path,
    *callbacks: Callback,
    adapt: Callable[[Toy], Toy] = as_it_is,
    ckpt_path: Path | None = None,
    batches: int = 5,
) -> tuple[Toy, Trainer, dict[str, Tensor]]:
    """Train three epochs with validation; return the module, its Trainer and the whole weights."""
    module = adapt(world.module())
    runner = trainer(*callbacks, **world.trainer_settings(root))
    runner.fit(module, Part(batches), Part(2, seed=9, fixed=True), ckpt_path=ckpt_path)
    return module, runner, whole_weights(runner)


def state_of(runner: Trainer, path: Path) -> dict[str, Any]:
    """Return what a checkpoint of ``runner`` holds, weights and optimizers whole, in the first process."""
    runner.save_checkpoint(path)
    if not runner.is_global_zero:  # it would read the same files
        return {}
    if path.is_dir():
        checkpoint = torch.load(path / "meta.pt", weights_only=True)
        dcp_to_torch_save(path, path / "whole.pt")
        checkpoint |= torch.load(path / "whole.pt", weights_only=True)
    else:
        checkpoint = torch.load(path, weights_only=True)
    wanted = ("state_dict", "model", "callbacks")
    return {k: v for k, v in checkpoint.items() if k in wanted or k.startswith("optimizer")}


Run = tuple[Toy, Trainer, dict[str, Tensor]]


class Leave(SaveAfter):
    """Leaves in a folder of its own all that a run that was broken off at a batch would have left."""

    def __init__(self, count: int, path: Path, folder: Path) -> None:
        super().__init__(count, path)
        self.folder = folder

    def _reached(self, trainer: Trainer) -> None:
        super()._reached(trainer)
        if trainer.is_global_zero:
            shutil.copytree(self.path.parent, self.folder)
        trainer.strategy.barrier()


def plain_run(world: World, folder: Path, adapt: Callable[[Toy], Toy] = as_it_is) -> dict[str, Tensor]:
    """Return the final weights of a run without a technique, for :func:`check`."""
    return fit(world, folder, Watch(world), adapt=adapt, batches=BATCHES)[2]


def active_run(case: Case, world: World, folder: Path, watch: Watch) -> Run:
    """Return a run with the active setting in ``folder / "whole"``, of which ``folder / "parts"`` is left."""
    leave = Leave(MIDDLE, folder / "whole" / "middle.ckpt", folder / "parts")
    return fit(world, folder / "whole", case.active(), watch, leave, adapt=case.adapt, batches=BATCHES)


def check(
    case: Case,
    world: World,
    plain: dict[str, Tensor],
    folder: Path,
    active: Run | None = None,
) -> dict[str, Tensor]:
    """Assert what must hold in a cell; return the final weights of the active setting.

    Args:
        case: The technique.
        world: The way to train.
        plain: The final weights of the :func:`plain_run`.
        folder: Where to write.
        active: The :func:`active_run`, if there was one.
    """
    if "neutral" not in case.exempt:
        watch, same = Watch(world), {"adapt": case.adapt, "batches": BATCHES}
        assert_equal(plain, fit(world, folder / "neutral", case.neutral(), watch, **same)[2])
    if active is None:
        active = active_run(case, world, folder, Watch(world))
    _, whole_runner, final = active
    changed = plain.keys() != final.keys() or any(not torch.equal(plain[k], final[k]) for k in plain)
    assert changed or "active" in case.exempt, "the active setting did nothing"
    resumed = {"adapt": case.adapt, "ckpt_path": folder / "parts" / "middle.ckpt", "batches": BATCHES}
    _, runner, parts = fit(world, folder / "parts", case.active(), Watch(world), **resumed)
    assert_equal(final, parts)
    assert_equal(state_of(whole_runner, folder / "a.ckpt"), state_of(runner, folder / "b.ckpt"))
    return final


def run_or_refusal(case: Case, world: World, folder: Path) -> Run | str:
    """Return a run with the active setting, or why it is refused before the first batch."""
    watch = Watch(world)
    try:
        return active_run(case, world, folder, watch)
    except ValueError as error:
        if watch.batches:
            raise
        return str(error)


def main(name: str, folder: Path, cases: list[str]) -> None:
    """Run ``cases`` in the world of this name."""
    world, results = WORLDS[name], {}
    plain: dict[object, dict[str, Tensor]] = {}  # most cases train the same module
    for key in cases:
        case = CASES[key]
        try:
            active = run_or_refusal(case, world, folder / key)
            if not isinstance(active, str):
                if case.adapt not in plain:
                    plain[case.adapt] = plain_run(world, folder / "plain", case.adapt)
                weights = check(case, world, plain[case.adapt], folder / key, active)
        except Exception as error:
            error.add_note(f"in the case of {key}")
            raise
        if dist.get_rank() == 0:
            results[key] = {"refused": active if isinstance(active, str) else None}
            if not isinstance(active, str):
                torch.save(weights, folder / f"{key}.pt")
            (folder / "results.json").write_text(json.dumps(results))
    dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
