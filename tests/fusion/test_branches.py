"""Several runs go on from one checkpoint, in one folder, and none spoils the snapshots of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from lightning_tricks.core.collect import LastEpochs
from tests.fusion.runs import Epochs, always, fit, mean
from tests.lifecycle.test_snapshots import epochs, names, on_disk, restored, shelf, values
from tests.toys import StopAfter, StopError, assert_equal, weights


def take(target, epoch: int, value: float) -> None:
    target.take(lambda: {"w": torch.tensor(value)}, position=10 * epoch, epoch=epoch)


def stopped(base: Path):
    """Return the snapshots of a run of three epochs, and what its checkpoint holds."""
    ours = shelf(base)
    epochs(ours, 1, 3)
    return ours, ours.saved()


def test_branches_of_other_contents_overwrite_nothing(tmp_path):
    _, state = stopped(tmp_path)
    first, second = (restored(tmp_path, state, None) for _ in range(2))
    assert first.folder == second.folder
    take(first, 4, -4.0)
    take(second, 4, 4.0)
    assert values(first) == [3.0, -4.0]
    assert values(second) == [3.0, 4.0]


def test_a_branch_never_deletes_what_it_did_not_write(tmp_path):
    _, state = stopped(tmp_path)
    first = restored(tmp_path, state, None)
    first.remember()
    epochs(first, 4, 5)
    first.remember()
    second = restored(tmp_path, state, None)
    epochs(second, 4, 9)
    second.remember()
    epochs(second, 10, 12)
    assert values(first) == [4.0, 5.0]
    assert values(restored(tmp_path, state, None)) == [2.0, 3.0]
    assert values(second) == [11.0, 12.0]
    assert len(on_disk(second)) == 2 + 2 + 2 + 2  # of the checkpoint, the first, the second's checkpoint, now


def test_an_equal_snapshot_is_not_written_again(tmp_path):
    whole, _ = stopped(tmp_path)
    state = whole.saved()
    epochs(whole, 4, 4)
    path = whole.folder / names(whole)[-1]
    before = path.stat()
    again = restored(tmp_path, {**state, "kept": state["kept"][1:]}, None)
    epochs(again, 4, 4)
    assert again.kept == whole.kept
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def damage(path: Path) -> None:
    """Change one bit of the weights; the size stays."""
    data = bytearray(path.read_bytes())
    data[data.index(torch.tensor(3.0).numpy().tobytes())] ^= 1
    path.write_bytes(bytes(data))


def test_a_damaged_snapshot_of_full_size_is_named(tmp_path):
    ours, state = stopped(tmp_path)
    damage(ours.folder / names(ours)[1])
    for read in (lambda: values(ours), lambda: restored(tmp_path, state, None)):
        with pytest.raises(ValueError, match=rf"{names(ours)[1]} must hold the weights .* damaged"):
            read()


def test_a_damaged_snapshot_is_written_anew(tmp_path):
    ours, _ = stopped(tmp_path)
    damage(ours.folder / names(ours)[1])
    again = restored(tmp_path, {**ours.saved(), "kept": [], "counts": [2, 2, 0, None]}, None, epoch=2)
    take(again, 3, 3.0)
    assert names(again) == [names(ours)[1]]
    assert values(again) == [3.0]


def test_copies_in_another_folder_are_deleted_when_they_are_dropped(tmp_path):
    ours, state = stopped(tmp_path / "a")
    again = restored(tmp_path / "b", state, tmp_path / "a")
    epochs(again, 4, 5)
    assert on_disk(again) == names(again)
    assert values(ours) == [2.0, 3.0]


class Nudge(Callback):
    """Moves the weights at the first batch, so that a branch goes its own way."""

    def __init__(self, by: float) -> None:
        self.by = by

    def on_train_start(self, trainer, pl_module) -> None:
        with torch.no_grad():
            pl_module.head.bias += self.by


def test_a_run_may_be_resumed_again_from_any_checkpoint_that_it_named(tmp_path):
    def fusion():
        return always(collect=LastEpochs(2))

    start, branch = tmp_path / "start.ckpt", tmp_path / "branch.ckpt"
    with pytest.raises(StopError):
        fit(tmp_path, fusion(), StopAfter(2, start, "on_train_epoch_end"), max_epochs=6)
    first = Epochs()
    with pytest.raises(StopError):
        stop = StopAfter(2, branch, "on_train_epoch_end")
        fit(tmp_path, Nudge(1.0), first, fusion(), stop, ckpt_path=start, max_epochs=6)
    for _ in range(2):
        spy = Epochs()
        module, _ = fit(tmp_path, Nudge(-1.0), spy, fusion(), ckpt_path=start, max_epochs=6)
        assert_equal(weights(module), mean(spy.ends[-2:]))
    spy = Epochs()
    module, _ = fit(tmp_path, spy, fusion(), ckpt_path=branch, max_epochs=5)
    assert_equal(weights(module), mean([first.ends[-1], *spy.ends]))
