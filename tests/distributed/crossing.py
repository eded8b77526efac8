"""A checkpoint of one process goes on in two over shards, and the other way round.

    python -m tests.distributed.crossing FOLDER

stops a run over shards at ``two.ckpt`` and resumes one from ``one.ckpt``, which one process has written. One
whose groups are not in the module's order, ``split.ckpt``, is refused.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist
from lightning.pytorch import Callback

import lightning_tricks as lt
from tests.distributed.cells import fit
from tests.distributed.worlds import WORLDS
from tests.toys import StopAfter, StopError

STOP = 9


def callbacks(lr_factor: float = 1.0) -> list[Callback]:
    """Return techniques that hold weights, rates and counts."""
    return [
        lt.EMAWeights(decay=0.9, save="live"),
        lt.GradientClip(max_norm=0.1),
        lt.WarmupCosine(warmup="20%"),
        lt.ProgressiveUnfreeze(stages=["head", "body.1", "body.0"], at="4 steps", lr_factor=lr_factor),
    ]


if __name__ == "__main__":
    world, folder = WORLDS["FSDP2"], Path(sys.argv[1])
    try:
        fit(world, folder, *callbacks(), StopAfter(STOP, folder / "two.ckpt"))
    except StopError:
        dist.barrier()
    _, runner, _ = fit(world, folder, *callbacks(), ckpt_path=folder / "one.ckpt")
    runner.save_checkpoint(folder / "two_from_one.ckpt")
    try:
        fit(world, folder, *callbacks(0.5), ckpt_path=folder / "split.ckpt")
    except ValueError as error:
        assert "in the order of the module" in str(error), error
    else:
        raise AssertionError("optimizer states of other parameters were loaded")
