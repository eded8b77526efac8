"""A frozen part with BatchNorm in two processes, run in each: unchanged to the bit, the rest as ever.

python -m tests.distributed.frozen "DDP" FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import lightning_tricks as lt
from lightning_tricks.lifecycle.technique import Technique
from tests.contract.cases import Case
from tests.distributed.cells import check, plain_run, weights_of
from tests.distributed.normed import world_of
from tests.distributed.worlds import World
from tests.toys import assert_equal


def freeze() -> Technique:
    """Return what keeps the body, which holds two BatchNorms."""
    return lt.Freeze(params="body", dropout="off")


def unfreeze() -> Technique:
    """Return what opens the body's later half within the first epoch, the other with the last."""
    return lt.ProgressiveUnfreeze(
        stages=["head", "body[3:]", "body[:3]"], at=[4, "2 epochs"], warmup=3, dropout="off"
    )


def main(world: World, folder: Path) -> None:
    start = weights_of(world.module().state_dict())
    plain = plain_run(world, folder / "plain")
    case = Case(neutral=freeze, active=freeze, exempt={"neutral": "it freezes"})
    final = check(case, world, plain, folder / "frozen")
    kept = {name: value for name, value in final.items() if name.startswith("body.")}
    assert len(kept) == 4 + 2 * 5
    assert_equal(kept, {name: start[name] for name in kept})
    assert not torch.equal(final["head.weight"], start["head.weight"])
    if not world.sharded:  # else the moving statistics of all processes but one are in no checkpoint
        case = Case(neutral=unfreeze, active=unfreeze, exempt={"neutral": "it freezes"})
        check(case, world, plain, folder / "opened")


if __name__ == "__main__":
    main(world_of(sys.argv[1]), Path(sys.argv[2]))
    dist.barrier()
