"""How large checkpoints are: one set of weights more than without an average, wherever they are saved."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from lightning_tricks.averaging.ema import EMAWeights
from tests.toys import Loader, Toy, trainer


class Saves(Callback):
    """Saves at the end of a batch, within a validation, and after it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / "training.ckpt")

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / "validation.ckpt")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / "validated.ckpt")


def tensor_bytes(folder: Path) -> dict[str, int]:
    found = {}
    for path in sorted(folder.glob("*.ckpt")):
        with zipfile.ZipFile(path) as parts:
            found[path.stem] = sum(part.file_size for part in parts.infolist() if "/data/" in part.filename)
    return found


@pytest.mark.parametrize("params", ["*", "head"])
def test_a_checkpoint_grows_by_exactly_one_set_of_weights(params: str, tmp_path: Path) -> None:
    module, sizes = Toy(), []
    for name, callbacks in {"plain": [], "averaged": [EMAWeights(params=params)]}.items():
        folder = tmp_path / name
        runner = trainer(*callbacks, Saves(folder), max_epochs=1)
        runner.fit(Toy(), Loader(), Loader(2, seed=9))
        runner.save_checkpoint(folder / "finished.ckpt")
        sizes.append(tensor_bytes(folder))
    averaged = sum(weight.nbytes for weight in (module if params == "*" else module.head).parameters())
    expected = dict.fromkeys(("training", "validation", "validated"), averaged)
    # By then anybody may have given the average statistics of its own.
    expected["finished"] = averaged + sum(buffer.nbytes for buffer in module.buffers())
    assert {where: sizes[1][where] - sizes[0][where] for where in sizes[0]} == expected
