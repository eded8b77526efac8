"""A checkpoint's average as a file of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_tricks import EMAWeights, average_state, export_average
from lightning_tricks.lifecycle.safetensors_files import save_safetensors
from tests.toys import Loader, Toy, assert_equal, scaler_plugin, trainer, weights


class Saved(Toy):
    """A module with hyperparameters, tied weights and an entry of its own."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__(lr)
        self.save_hyperparameters()
        self.tied = nn.Linear(8, 3)
        self.tied.weight = self.head.weight
        self.note = ""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["note"] = "mine"

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.note = checkpoint["note"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor], dict[str, Tensor]]:
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    apart = EMAWeights(decay=0.99, label="slow", evaluate=False)
    runner = trainer(EMAWeights(decay=0.9), apart, plugins=[scaler_plugin()], max_epochs=1)
    runner.fit(module := Saved(lr=0.01), Loader())
    runner.save_checkpoint(path)
    return path, weights(module), dict(apart.average() or {})


@pytest.mark.parametrize("label", [None, "slow"])
def test_the_file_holds_the_average_alone_and_loads_without_the_technique(
    run: Any, label: str | None, tmp_path: Path
) -> None:
    path, evaluated, slow = run
    written = export_average(path, tmp_path / "new" / "average.ckpt", label=label)
    assert written == tmp_path / "new" / "average.ckpt"
    module = Saved.load_from_checkpoint(written, weights_only=True)
    assert_equal(weights(module), evaluated if label is None else {**evaluated, **slow})
    assert (module.lr, module.note) == (0.01, "mine")
    left = torch.load(written, weights_only=True).keys() - torch.load(path, weights_only=True).keys()
    assert not left
    gone = {
        "callbacks",
        "loops",
        "lr_schedulers",
        "optimizer_states",
        "current_model_state",
        "MixedPrecision",
    }
    assert torch.load(path, weights_only=True).keys() - torch.load(written, weights_only=True).keys() == gone
    assert written.stat().st_size < path.stat().st_size / 3
    trainer().test(module, Loader(), ckpt_path=written, verbose=False, weights_only=True)


def test_it_replaces_what_was_there_and_leaves_it_after_an_error(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "average.ckpt"
    output.write_text("before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export_average(run[0], output, overwrite=True)
    assert output.read_text() == "before"
    assert list(tmp_path.iterdir()) == [output]
    monkeypatch.undo()
    export_average(run[0], output, overwrite=True)
    assert "state_dict" in torch.load(output, weights_only=True)


def test_nothing_is_destroyed_unasked(run: Any, tmp_path: Path) -> None:
    path = run[0]
    size = path.stat().st_size
    (tmp_path / "there.ckpt").write_text("before")
    (tmp_path / "again.ckpt").symlink_to(path)
    for output, words in {
        path: "output must not be the checkpoint that it is read from",
        tmp_path / "again.ckpt": "output must not be the checkpoint that it is read from",
        tmp_path / "there.ckpt": "output must be a new file, got .*overwrite=True",
        tmp_path / "average.pt": "the suffix of output must be one of",
        tmp_path: "output",
    }.items():
        with pytest.raises((ValueError, OSError), match=words):
            export_average(path, output, overwrite=output == path)
    assert path.stat().st_size == size
    assert (tmp_path / "there.ckpt").read_text() == "before"


def test_safetensors_hold_the_same_tied_ones_too(run: Any, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    written = export_average(run[0], tmp_path / "average.safetensors")
    assert_equal(dict(safetensors.load_file(written)), dict(average_state(run[0])))
    Saved().load_state_dict(safetensors.load_file(written))
    assert list(tmp_path.iterdir()) == [written]


def test_a_file_of_tensors_holds_any_kind_of_them(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    whole = torch.arange(6.0).view(2, 3)
    state = {"a": whole, "b": whole, "c": whole.T, "d": torch.tensor(3), "e": torch.zeros(0, 2).bfloat16()}
    save_safetensors(state, path := tmp_path / "all.safetensors")
    assert_equal(dict(safetensors.load_file(path)), state)


def test_a_file_of_tensors_refuses_what_is_none(tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    path.write_text("before")
    with pytest.raises(ValueError, match="note must be a tensor for safetensors, got 'mine'"):
        save_safetensors({"a": torch.zeros(1), "note": "mine"}, path)  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"a must have a type that safetensors knows, got torch\.complex128"):
        save_safetensors({"a": torch.zeros(1, dtype=torch.complex128)}, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_without_average_is_named(tmp_path: Path) -> None:
    runner = trainer(max_epochs=1)
    runner.fit(Toy(), Loader())
    runner.save_checkpoint(path := tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="path must be a checkpoint with averaged weights"):
        export_average(path, tmp_path / "average.ckpt")
    with pytest.raises(FileNotFoundError):
        export_average(tmp_path / "none.ckpt", tmp_path / "average.ckpt")
