"""A network of three stages, and callbacks that watch what learns."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.toys import Loader, Toy, trainer, weights

STAGES = ["head", "mid", "body"]


class Deep(Toy):
    """A body and a middle with BatchNorm, the middle's without parameters; a head."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.mid = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False), nn.Tanh())

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(self.head(self.mid(self.body(batch[0]))), batch[1])


class Graded(Deep):
    """Logs given values as its validation metric, one per validation; nothing in a sanity check."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = list(values)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log("grade", self.values.pop(0))


class Watch(Callback):
    """Notes for each batch which stages learn, and the weights before and after it."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []
        self.modes: list[list[bool]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        stages = [stage for stage in STAGES if hasattr(pl_module, stage)]
        learns = {
            stage: {p.requires_grad for p in getattr(pl_module, stage).parameters()} for stage in stages
        }
        assert all(len(flags) == 1 for flags in learns.values())
        self.open.append("".join(stage[0] for stage in stages if learns[stage] == {True}))
        self.before.append(weights(pl_module))
        norms = [module for module in pl_module.modules() if isinstance(module, nn.BatchNorm1d)]
        self.modes.append([norm.training for norm in norms])

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.after.append(weights(pl_module))

    def moved(self, batch: int) -> set[str]:
        """Return the parts of the network of which any value, a statistic included, changed in a batch."""
        pairs = zip(self.before[batch].items(), self.after[batch].values(), strict=True)
        return {name.split(".")[0][0] for (name, old), new in pairs if not torch.equal(old, new)}


def fit(module: LightningModule, *callbacks: Callback, ckpt_path: Any = None, **settings: Any) -> Trainer:
    """Train on the CPU, five batches an epoch, with validation."""
    runner = trainer(*callbacks, **settings)
    runner.fit(module, Loader(), Loader(2, seed=9), ckpt_path=ckpt_path)
    return runner
