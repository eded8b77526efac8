"""Strategies for several losses, in two processes: the same weights in both.

python -m tests.distributed.balanced "DDP" FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule, fully_shard

import lightning_tricks as lt
from lightning_tricks import BalancedLosses
from tests.contract.adapting import without_own_decay
from tests.contract.cases import Case
from tests.contract.mixing import Mixes, balanced, two_tasks
from tests.distributed.cells import check, plain_run, run_or_refusal
from tests.distributed.worlds import WORLDS


def learned_in_shards(self: Any) -> None:
    """Shard all there is over all processes by FSDP2, what is learned for the losses too."""
    BalancedLosses.configure_model(self)
    if isinstance(self.trainer.strategy, ModelParallelStrategy) and not isinstance(self, FSDPModule):
        fully_shard(self, mesh=self.device_mesh["data_parallel"])


LEARNING = lt.UncertaintyBalance({"fit": "classification", "size": "regression"})
SHARDED = {**two_tasks(LEARNING), "configure_model": learned_in_shards}
STRATEGIES = (LEARNING, lt.DynamicWeightAverage(), lt.RandomWeights(), lt.GradNorm(("body", "body.*")))
RUNS: dict[str, Callable[[], Callback]] = {
    **{type(each).__name__: lambda each=each: balanced(each) for each in STRATEGIES},
    "learned in shards": lambda: Mixes(lambda _: SHARDED, BalancedLosses),
}
CASES = {
    name: Case(run, run, exempt={"neutral": "as the cells show"}, adapt=without_own_decay)
    for name, run in RUNS.items()
}


def chosen(world: str) -> dict[str, Case]:
    """Return the cases that differ in the world of this name."""
    return {key: case for key, case in CASES.items() if key != "learned in shards" or "FSDP2" in world}


def main(name: str, folder: Path) -> None:
    """Check all in the world of this name, and write their final weights, or why not, to ``folder``."""
    world = WORLDS[name]
    plain = plain_run(world, folder / "plain", without_own_decay)
    for key, case in chosen(name).items():
        run = run_or_refusal(case, world, folder / key)
        found = run if isinstance(run, str) else check(case, world, plain, folder / key, run)
        if dist.get_rank() == 0:
            torch.save(found, folder / f"{key}.pt")
    dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
