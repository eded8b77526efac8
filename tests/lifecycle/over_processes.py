"""Runs in two processes, each with draws, a loader and metrics of its own, that are stopped and resumed.

    python -m tests.lifecycle.over_processes FOLDER

asserts in both that the resumed run equals the uninterrupted one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.distributed.worlds import ddp
from tests.lifecycle.resumed_runs import BATCHES, ENDS, Learner, Own, assert_exact, seed

RANK = int(os.environ.get("RANK", 0))


class Drawn(Own):
    """Draws its batches from a generator that differs between processes, and saves where that is."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(RANK)

    def __iter__(self) -> Iterator[Tensor]:
        for inputs in super().__iter__():
            yield inputs + torch.randn((), generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.generator.set_state(state["generator"])


class Apart(Learner):
    """Draws something else in each process."""

    def on_train_start(self) -> None:
        if not self.trainer.global_step:
            seed(RANK)

    def on_train_batch_start(self, *_: Any) -> None:
        self.log("in_sum", torch.rand(()), on_step=False, on_epoch=True, sync_dist=True, reduce_fx="sum")


def main(folder: Path) -> None:
    """Stop and resume within an epoch, at its last batch and at its end."""
    settings = {"devices": 2, "strategy": ddp, "use_distributed_sampler": False, "module": Apart}
    for stop in (BATCHES[7], BATCHES[4], ENDS[3]):
        assert_exact(Drawn, stop, folder / f"{stop[0]}{stop[1]}", **settings)
    states = [None, None]
    dist.all_gather_object(states, torch.get_rng_state().tolist())
    assert states[0] != states[1], "both processes drew the same"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
