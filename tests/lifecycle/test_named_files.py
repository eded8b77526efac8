"""Snapshots stay as long as a checkpoint names them that is still there, and no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_tricks as lt
from lightning_tricks.lifecycle import files
from tests.toys import Loader, Toy, trainer

EPOCHS = 9


class Falls(Callback):
    """Logs a metric that falls and rises by turns."""

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        epoch = trainer.current_epoch
        trainer.callback_metrics["metric"] = trainer.callback_metrics["val_loss"] * 0 + (epoch * 5) % 7


class SavesBySelf(Callback):
    """Saves one checkpoint where no other callback knows of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 2:
            trainer.save_checkpoint(self.path)


def run(folder: Path, *others: Callback, **saving: Any) -> tuple[set[str], dict[str, set[str]]]:
    """Return the snapshots that lie there after a run, and those that each checkpoint names."""
    saver = ModelCheckpoint(folder / "checkpoints", "{epoch}", every_n_epochs=1, **saving)
    lawa = lt.LAWA(k=2, every="1 epoch")
    trainer(lawa, Falls(), *others, saver, default_root_dir=folder, max_epochs=EPOCHS).fit(
        Toy(), Loader(), Loader()
    )
    named = {}
    for path in (folder / "checkpoints").glob("*.ckpt"):
        [state] = (each for key, each in files.load(path)["callbacks"].items() if key == "LAWA")
        named[path.name] = set(find(state))
    return {path.name for path in (folder / "checkpoints").rglob("*.pt")}, named


def find(state: Any) -> list[str]:
    """Return the names of snapshot files anywhere in a state."""
    if isinstance(state, dict):
        return [name for each in state.values() for name in find(each)]
    if isinstance(state, list | tuple):
        return [name for each in state for name in find(each)]
    return [state] if isinstance(state, str) and state.endswith(".pt") else []


@pytest.mark.parametrize(
    ("saving", "checkpoints"),
    [
        ({"save_last": True}, 2),
        ({"save_last": "link"}, 2),
        ({"save_top_k": 2, "monitor": "metric"}, 2),
        ({"save_top_k": 2, "monitor": "metric", "save_last": True}, 3),
        ({"save_top_k": -1}, EPOCHS),
    ],
)
def test_what_remains_is_what_the_checkpoints_that_remain_name(
    saving: dict[str, Any], checkpoints: int, tmp_path: Path
) -> None:
    there, named = run(tmp_path, **saving)
    assert len(named) == checkpoints
    wanted = set().union(*named.values())
    assert wanted <= there
    # Beyond these are the last two, and at most those of a checkpoint that the last one took away.
    assert len(there - wanted) <= 3


def test_a_checkpoint_that_no_callback_knows_keeps_its_snapshots(tmp_path: Path) -> None:
    own = tmp_path / "checkpoints" / "own.ckpt"
    there, named = run(tmp_path, SavesBySelf(own), save_last=True)
    assert len(named["own.ckpt"]) == 2
    assert set().union(*named.values()) <= there
    assert len(there) < EPOCHS
