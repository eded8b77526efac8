from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import torch

from lightning_tricks.core.collect import BestK, EverySteps, LastEpochs
from lightning_tricks.lifecycle.snapshots import Shelf


def alone(work):
    """Call ``work``, as the only process does."""
    return work()


def shelf(base: Path, policy=LastEpochs(2), first=alone) -> Shelf:  # noqa: B008
    return Shelf(policy, base, first, folder="snapshots")


def epochs(target: Shelf, first: int, last: int) -> None:
    """Go through some epochs of ten steps; the weights are the number of the epoch."""
    for epoch in range(first, last + 1):
        target.take(lambda epoch=epoch: {"w": torch.tensor(float(epoch))}, position=10 * epoch, epoch=epoch)


def names(target: Shelf) -> list[str]:
    return [snapshot.name for snapshot in target.kept]


def number(name: str) -> int:
    return int(name.split("-")[0])


def on_disk(target: Shelf) -> list[str]:
    return sorted(path.name for path in target.folder.iterdir())


def values(target: Shelf) -> list[float]:
    return [float(target.load(snapshot)["w"]) for snapshot in target.kept]


def test_the_last_are_kept_and_the_others_deleted_at_once(tmp_path):
    ours = shelf(tmp_path)
    epochs(ours, 1, 5)
    assert values(ours) == [4.0, 5.0]
    assert on_disk(ours) == names(ours)
    assert [number(name) for name in names(ours)] == [4, 5]
    assert all(s.size == (ours.folder / s.name).stat().st_size for s in ours.kept)


def test_one_moment_gives_one_snapshot(tmp_path):
    ours = shelf(tmp_path, EverySteps(10, k=9))
    for position in (5, 10, 10, 11, 19, 20):
        ours.take(lambda position=position: {"w": torch.tensor(float(position))}, position=position, epoch=0)
    assert values(ours) == [10.0, 20.0]


def test_the_best_are_kept_and_others_not_even_asked_for(tmp_path):
    ours = shelf(tmp_path, BestK(2))
    asked = []
    for epoch, score in enumerate([0.5, math.nan, 0.4, 0.3, 0.9, math.nan]):
        ours.measured(score)
        ours.take(
            lambda epoch=epoch: asked.append(epoch) or {"w": torch.tensor(float(epoch))}, position=0, epoch=0
        )
    assert asked == [0, 2, 4]
    assert [(number(s.name), s.score) for s in ours.kept] == [(1, 0.5), (3, 0.9)]
    assert values(ours) == [0.0, 4.0]
    assert on_disk(ours) == names(ours)


def test_what_the_latest_checkpoint_names_is_deleted_only_after_the_next(tmp_path):
    ours = shelf(tmp_path)
    epochs(ours, 1, 3)
    ours.remember()  # names 2 and 3
    epochs(ours, 4, 5)
    assert [number(name) for name in on_disk(ours)] == [2, 3, 4, 5]
    ours.remember()  # names 4 and 5
    ours.take(dict, position=51, epoch=5)
    assert on_disk(ours) == names(ours)
    assert values(ours) == [4.0, 5.0]


def test_a_new_run_leaves_the_snapshots_of_another_alone(tmp_path):
    first = shelf(tmp_path)
    epochs(first, 1, 2)
    second = shelf(tmp_path)
    epochs(second, 1, 1)
    assert first.folder.name == "snapshots" and second.folder.name == "snapshots-v1"
    assert values(first) == [1.0, 2.0]


def test_nothing_is_due_for_what_was_before_the_start(tmp_path):
    ours = shelf(tmp_path)
    ours.skip(position=70, epoch=7)
    ours.take(dict, position=75, epoch=7)
    assert ours.kept == []
    epochs(ours, 8, 8)
    assert values(ours) == [8.0]


def restored(base: Path, state, beside: Path | None, policy=LastEpochs(2), epoch: int = 3) -> Shelf:  # noqa: B008
    again = shelf(base, policy)
    again.restore(pickle.loads(pickle.dumps(state)), beside, position=10 * epoch, epoch=epoch)
    return again


def test_a_resumed_run_goes_on(tmp_path):
    whole = shelf(tmp_path / "whole")
    epochs(whole, 1, 5)
    stopped = shelf(tmp_path / "parts")
    epochs(stopped, 1, 3)
    state = stopped.saved()
    stopped.remember()
    epochs(stopped, 4, 4)  # after the checkpoint, before it broke off
    again = restored(tmp_path / "parts", state, None)
    assert again.folder == stopped.folder
    assert values(again) == [2.0, 3.0]
    epochs(again, 4, 5)
    assert again.saved() == whole.saved()
    assert values(again) == [4.0, 5.0]
    # What it was resumed from may be needed again; what it found there is the other run's.
    assert [number(name) for name in on_disk(again)] == [2, 3, 4, 5]


def test_its_state_is_plain(tmp_path):
    ours = shelf(tmp_path, BestK(2))
    ours.measured(0.5)
    epochs(ours, 1, 1)
    torch.save(ours.saved(), tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True) == ours.saved()


def test_snapshots_beside_the_checkpoint_are_copied_to_where_the_resumed_run_writes(tmp_path):
    first = shelf(tmp_path / "version_0")
    epochs(first, 1, 3)
    again = restored(tmp_path / "version_1", first.saved(), tmp_path / "version_0")
    assert again.folder == tmp_path / "version_1" / "snapshots"
    assert values(again) == [2.0, 3.0]
    epochs(again, 4, 5)
    assert values(again) == [4.0, 5.0]
    assert values(first) == [2.0, 3.0]  # the first run may be resumed again
    assert again.saved()["folder"] == "snapshots"


def test_a_copy_across_file_systems(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("cross-device link")

    monkeypatch.setattr("os.link", refuse)
    first = shelf(tmp_path / "version_0")
    epochs(first, 1, 2)
    again = restored(tmp_path / "version_1", first.saved(), tmp_path / "version_0", epoch=2)
    assert values(again) == [1.0, 2.0]


def test_snapshots_of_a_third_run_are_not_taken_for_its_own(tmp_path):
    first, third = shelf(tmp_path / "a"), shelf(tmp_path / "b")
    epochs(first, 1, 2)
    for epoch in (1, 2):
        third.take(lambda: {"w": torch.tensor(-1.0)}, position=0, epoch=epoch)
    again = restored(tmp_path / "b", first.saved(), tmp_path / "a", epoch=2)
    assert values(again) == [1.0, 2.0]
    assert again.folder.name == "snapshots-v1"
    assert values(third) == [-1.0, -1.0]


def test_a_missing_snapshot_is_named(tmp_path):
    ours = shelf(tmp_path)
    epochs(ours, 1, 2)
    for name in reversed(names(ours)):
        (ours.folder / name).unlink()
        with pytest.raises(
            FileNotFoundError, match=rf"{name} must be there, because the checkpoint names it"
        ):
            restored(tmp_path, ours.saved(), None)


def test_a_truncated_snapshot_is_named(tmp_path):
    ours = shelf(tmp_path)
    epochs(ours, 1, 2)
    path = ours.folder / names(ours)[1]
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-7])
    message = rf"{path.name} must have {size} bytes, as when it was written, got {size - 7}"
    with pytest.raises(ValueError, match=message):
        restored(tmp_path, ours.saved(), None)
    with pytest.raises(ValueError, match=message):
        values(ours)


def test_another_policy_keeps_the_snapshots_but_counts_anew(tmp_path):
    ours = shelf(tmp_path)
    epochs(ours, 1, 3)
    again = restored(tmp_path, ours.saved(), None, EverySteps(5, k=3))
    again.take(dict, position=31, epoch=3)  # six times five steps, of which three epochs know nothing
    assert values(again) == [2.0, 3.0]
    again.take(lambda: {"w": torch.tensor(35.0)}, position=35, epoch=3)
    assert values(again) == [2.0, 3.0, 35.0]
    assert len(set(names(again))) == 3


def test_fewer_are_kept_by_a_smaller_policy(tmp_path):
    ours = shelf(tmp_path, LastEpochs(4))
    epochs(ours, 1, 4)
    again = restored(tmp_path, ours.saved(), None, LastEpochs(2), epoch=4)
    epochs(again, 5, 5)
    assert values(again) == [4.0, 5.0]


def test_other_processes_know_the_same_but_touch_no_file(tmp_path):
    answers = []

    def first(work):
        answers.append(work())
        return answers[-1]

    def other(work):
        return answers.pop(0)

    ours = shelf(tmp_path / "a", first=first)
    epochs(ours, 1, 3)
    theirs = shelf(tmp_path / "b", first=other)
    asked = []
    for epoch in (1, 2, 3):
        theirs.take(lambda epoch=epoch: asked.append(epoch) or {}, position=10 * epoch, epoch=epoch)
    assert asked == [1, 2, 3]  # for the part that they hold
    assert theirs.saved() == ours.saved() and theirs.folder == ours.folder
    for each in (ours, theirs):
        each.restore(ours.saved(), tmp_path / "c", position=30, epoch=3)
    assert theirs.kept == ours.kept and theirs.folder == ours.folder
    assert answers == [] and not (tmp_path / "b").exists()


def test_an_error_while_writing_changes_nothing(tmp_path, monkeypatch):
    ours = shelf(tmp_path)
    epochs(ours, 1, 2)
    before = ours.saved()["kept"]

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        epochs(ours, 3, 3)
    assert ours.saved()["kept"] == before
    assert on_disk(ours) == names(ours)
