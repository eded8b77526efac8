"""Thresholds that follow the norms, in two processes: the same in both, and as in one.

python -m tests.distributed.adapted "DDP" FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from lightning_tricks import GradientClip, Percentile, ZScore
from tests.contract.cases import Case
from tests.distributed.cells import check, plain_run
from tests.distributed.worlds import WORLDS

CASES = {
    name: Case(neutral=lambda: GradientClip(max_norm=1e9), active=active)
    for name, active in {
        "Percentile": lambda: GradientClip(max_norm=Percentile(30)),
        "ZScore": lambda: GradientClip(max_norm=ZScore(z_max=0.5, alpha=0.5, warmup_steps=2)),
    }.items()
}


def main(name: str, folder: Path) -> None:
    """Check both in the world of this name, and write their final weights to ``folder``."""
    world = WORLDS[name]
    plain = plain_run(world, folder / "plain")
    for key, case in CASES.items():
        weights = check(case, world, plain, folder / key)
        if dist.get_rank() == 0:
            torch.save(weights, folder / f"{key}.pt")
    dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
