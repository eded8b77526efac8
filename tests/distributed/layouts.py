"""What a layout must do, run in each process: a part and the whole tensor are one another's.

python -m tests.distributed.layouts "FSDP1" FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy

from lightning_tricks.core.select import clean_name
from lightning_tricks.core.tensors import local
from lightning_tricks.lifecycle.layouts import layouts_of
from lightning_tricks.lifecycle.strategies import flat_shapes
from tests.distributed.cells import fit, whole_weights
from tests.distributed.worlds import WORLDS


class Checks(Callback):
    """Checks the layouts at the start, and after a validation, when weights may still be whole."""

    checked = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layouts = layouts_of(trainer, pl_module)
        parts = {name: local(value.detach()) for name, value in trainer.lightning_module.named_parameters()}
        expected = whole_weights(trainer)
        parts = {name.replace("_fsdp_wrapped_module.", ""): value for name, value in parts.items()}
        assert layouts.keys() == expected.keys() == parts.keys()
        assert sum(part.numel() for part in parts.values()) < sum(w.numel() for w in expected.values())
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        told = {clean_name(names[parameter]): shape for parameter, shape in flat_shapes(trainer).items()}
        flat = isinstance(trainer.strategy, FSDPStrategy)
        assert told == ({name: weight.shape for name, weight in expected.items()} if flat else {})
        for name, layout in layouts.items():
            assert torch.equal(layout.whole(parts[name]), expected[name])
            assert torch.equal(layout.whole(parts[name].float()), expected[name].float())  # of another type
            part = layout.part(expected[name])
            assert torch.equal(part, parts[name])
            assert part.numel() == 0 or part.data_ptr() != parts[name].data_ptr()
        self.checked += 1


if __name__ == "__main__":
    checks = Checks()
    fit(WORLDS[sys.argv[1]], Path(sys.argv[2]), checks)
    assert checks.checked == 4
    dist.barrier()
