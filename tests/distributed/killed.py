"""A run with averages of which one process is killed, and which goes on in new processes.

    python -m tests.distributed.killed "DDP" FOLDER

trains once to its end and once until process 1 is killed within a validation, which sees the average; a
second start goes on from the latest checkpoint, and ends as the first run did, to the bit.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_tricks as lt
from tests.distributed.cells import fit, state_of
from tests.distributed.worlds import WORLDS
from tests.toys import assert_equal


class Killed(Callback):
    """Kills process 1 in the middle of the second validation, as a machine that is lost would."""

    def __init__(self) -> None:
        self.validations = 0

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.validations += not trainer.sanity_checking
        if self.validations == 3 and trainer.global_rank == 1:
            print("killed by its test", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


def averages() -> list[Callback]:
    """Return one average that is evaluated, and one beside it."""
    return [lt.EMAWeights(decay=0.9), lt.EMAWeights(decay=0.5, label="side", evaluate=False)]


def main(name: str, folder: Path) -> None:
    """Train to the end and be killed, or go on and compare."""
    world, whole, saved = WORLDS[name], folder / "whole.pt", folder / "parts"
    keep = ModelCheckpoint(saved, every_n_train_steps=3, save_top_k=-1)
    if not whole.exists():
        _, runner, weights = fit(world, folder / "whole", *averages())
        state = state_of(runner, folder / "whole.ckpt")
        if dist.get_rank() == 0:
            torch.save({"state": state, "weights": weights}, whole)
        fit(world, folder, *averages(), keep, Killed())
    latest = max(saved.iterdir(), key=lambda path: int(path.stem.rpartition("=")[2]))
    _, runner, weights = fit(world, folder, *averages(), ckpt_path=latest)
    expected = torch.load(whole, weights_only=True)
    assert_equal(expected["weights"], weights)
    assert_equal(state_of(runner, folder / "end.ckpt"), expected["state"] if dist.get_rank() == 0 else {})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    dist.barrier()
