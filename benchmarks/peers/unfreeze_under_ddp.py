"""A backbone that opens after an epoch, in two processes with different data.

Judged by the weights of both after three epochs, which must be equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.cases import Case, StoppedError, Verdict, answer, judged, of_traceback
from benchmarks.peers.openings import lightnings, ours, scheduled
from benchmarks.peers.small import Net
from tests.toys import trainer

QUESTION = "Under DDP, do the processes agree on a backbone that was opened?"


class Apart(Callback):
    """Writes down how far the weights of two processes are from one another."""

    def __init__(self, path: Path) -> None:
        """Take the file."""
        self.path = path

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        farthest = 0.0
        for parameter in pl_module.parameters():
            both = [torch.empty_like(parameter) for _ in range(2)]
            dist.all_gather(both, parameter.detach())
            farthest = max(farthest, float((both[0] - both[1]).abs().max()))
        if trainer.is_global_zero:
            self.path.write_text(str(farthest))


def data(seed: int) -> DataLoader[Any]:
    """Return batches that Lightning shares out among the processes."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = torch.randn(64, 4, generator=generator), torch.randint(3, (64,), generator=generator)
    return DataLoader(TensorDataset(inputs, labels), batch_size=8)


def asked(callbacks: Callable[[], list[Callback]]) -> Verdict:
    """Open a backbone in two processes."""
    return agreed(Net(), callbacks())


def agreed(module: Net, callbacks: list[Callback]) -> Verdict:
    """Compare the weights of two processes."""
    path = Path("apart.txt").absolute()
    run = trainer(Apart(path), *callbacks, devices=2, strategy="ddp_fork")
    try:
        run.fit(module, data(0), data(1))
    except ProcessRaisedException as error:
        raise StoppedError(of_traceback(str(error))) from error
    apart = float(path.read_text())
    return judged(apart == 0.0, f"the processes are {apart:.1e} apart" if apart else "equal to the bit")


CASES = [
    Case("`ProgressiveUnfreeze`", lambda: asked(ours)),
    Case("Lightning `BackboneFinetuning`", lambda: asked(lightnings), "lightning"),
    Case("finetuning-scheduler", lambda: asked(scheduled), "finetuning-scheduler"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
