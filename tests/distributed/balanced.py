"""Strategies for several losses, in two processes: the same weights in both.

python -m tests.distributed.balanced "DDP" FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import lightning_tricks as lt
from tests.contract.adapting import without_own_decay
from tests.contract.cases import Case
from tests.contract.mixing import balanced
from tests.distributed.cells import Watch, check, fit, run_or_refusal
from tests.distributed.worlds import WORLDS

KINDS = {"fit": "classification", "size": "regression"}
CASES = {
    type(strategy).__name__: Case(
        neutral=lambda: balanced(lt.FixedWeights()),
        active=lambda strategy=strategy: balanced(strategy),
        exempt={"neutral": "as the cells show"},
        adapt=without_own_decay,
    )
    for strategy in (
        lt.UncertaintyBalance(KINDS),
        lt.DynamicWeightAverage(),
        lt.RandomWeights(),
        lt.GradNorm(("body", "body.*")),
    )
}


def main(name: str, folder: Path) -> None:
    """Check all in the world of this name, and write their final weights, or why not, to ``folder``."""
    world = WORLDS[name]
    plain = fit(world, folder / "plain", Watch(world), adapt=without_own_decay)[2]
    for key, case in CASES.items():
        run = run_or_refusal(case, world, folder / key)
        found = run if isinstance(run, str) else check(case, world, plain, folder / key, run)
        if dist.get_rank() == 0:
            torch.save(found, folder / f"{key}.pt")
    dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
