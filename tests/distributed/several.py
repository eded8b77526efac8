"""Several backward passes per forward pass in two processes, run in each: BatchNorm is as in a plain run.

python -m tests.distributed.several FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

import lightning_tricks as lt
from tests.distributed.normed import Normed
from tests.distributed.worlds import WORLDS, Part
from tests.toys import assert_equal, trainer


def statistics(method: lt.GradientSurgery, folder: Path, accumulate: int) -> dict[str, Tensor]:
    """Return the buffers of this process after a run in which no weight moves."""
    module = Normed()
    module.lr = 0.0
    settings = {**WORLDS["DDP"].trainer_settings(folder), "accumulate_grad_batches": accumulate}
    trainer(method, **settings).fit(module, Part())
    return {name: value.clone() for name, value in module.named_buffers()}


if __name__ == "__main__":
    for accumulate in (1, 2):
        plain, ours = (
            statistics(lt.GradientSurgery(method=method), Path(sys.argv[1]), accumulate)
            for method in (lt.Sum(), lt.PCGrad())
        )
        assert_equal(ours, plain)
    dist.barrier()
