"""A damaged checkpoint is refused with a clear error before the first batch, or does no harm."""

from __future__ import annotations

import pickle
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lightning_tricks as lt
from lightning_tricks.lifecycle.seal import sealed, unsealed
from lightning_tricks.lifecycle.technique import Technique
from tests.fuzz.damage import MISSING, Damage, Marker, contents, damaged, damages
from tests.fuzz.effort import examples
from tests.fuzz.verdicts import Batches, refusal
from tests.toys import Loader, StopAfter, StopError, Toy, trainer, weights


def five() -> list[Technique]:
    """Return the five, with settings under which each saves all that it can."""
    return [
        lt.GradientClip(max_norm="warmup(3) >> linear(to=0.5)"),
        lt.WarmupCosine(warmup="20%", final=0.1),
        lt.EMAWeights(decay=0.9, every=2, dtype="float64", buffers="average"),
        lt.ProgressiveUnfreeze(stages=["head", "body"], at=lt.Plateau("val_loss", patience=1)),
        lt.WeightFusion(collect=lt.BestK(2), source="average", monitor="val_loss", mode="min", keep="always"),
    ]


def run(folder: Path, *more: Any, ckpt_path: Path | None = None) -> Toy:
    module = Toy()
    runner = trainer(*five(), *more, default_root_dir=folder, max_epochs=3)
    runner.fit(module, Loader(3), Loader(1, seed=9, fixed=True), ckpt_path=ckpt_path)
    return module


class Stopped(NamedTuple):
    """A run that was stopped: its folder, what its checkpoint holds, and the weights that it leads to."""

    folder: Path
    checkpoint: dict[str, Any]
    result: dict[str, Tensor]


@pytest.fixture(scope="module")
def stopped() -> Iterator[Stopped]:
    with TemporaryDirectory() as root:
        folder = Path(root) / "run"
        with pytest.raises(StopError):
            run(folder, StopAfter(8, folder / "a.ckpt"))
        checkpoint = torch.load(folder / "a.ckpt", weights_only=True)
        whole = Path(shutil.copytree(folder, Path(root) / "whole"))
        yield Stopped(folder, checkpoint, weights(run(whole, ckpt_path=whole / "a.ckpt")))


OWN = ["Conductor", "EMAWeights", "GradientClip", "ProgressiveUnfreeze", "WarmupCosine", "WeightFusion"]
PLACES = [*(("callbacks", name) for name in OWN), ("current_model_state",)]


def resume(stopped: Stopped, change: Callable[[Path], None]) -> tuple[Exception | None, bool]:
    """Resume from a copy of the folder after ``change``, and assert that this destroys no file of it.

    Returns:
        The error, and whether it came before the first batch; without an error, whether the result is right.
    """
    with TemporaryDirectory() as root:
        folder = Path(root) / "run"
        shutil.copytree(stopped.folder, folder)
        change(folder)
        before, seen = contents(folder), Batches()
        try:
            module = run(folder, seen, ckpt_path=folder / "a.ckpt")
        except Exception as error:
            # A run that has trained may have collected a snapshot more.
            held = {name: kept for name, kept in contents(folder).items() if name in before or not seen.count}
            assert held == before
            return error, seen.count == 0
        assert before.items() <= contents(folder).items()
        return None, same(weights(module), stopped.result)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


@given(data=st.data())
@examples(120)
def test_damaged_state_is_refused_by_name_or_does_no_harm(stopped: Stopped, data: st.DataObject) -> None:
    every = [wrong for place in PLACES for wrong in damages(stopped.checkpoint, place)]
    wrong = data.draw(st.lists(st.sampled_from(every), min_size=1, max_size=2))
    checkpoint = damaged(stopped.checkpoint, *wrong)
    error, well = resume(stopped, lambda folder: torch.save(checkpoint, folder / "a.ckpt"))
    if error is None:
        # Without its whole entry a technique joins the run anew.
        assert well or any(len(each.place) == 2 and each.value == MISSING for each in wrong)
        return
    assert well, f"refused too late: {error}"
    assert not (why := refusal(error, "checkpoint")), why
    names = [name for place, _ in wrong for name in place[:2]]
    assert any(name in str(error) for name in names if name != "callbacks"), error
    assert any(word in str(error) for word in ("it is damaged", "must hold the weights of the module")), error


@pytest.mark.parametrize("which", ["a.ckpt", "snapshot"])
@given(data=st.data())
@examples(40)
def test_a_damaged_file_is_refused_before_the_first_batch_or_does_no_harm(
    stopped: Stopped, which: str, data: st.DataObject
) -> None:
    # What Lightning itself saves is not ours to check: of it, only that nothing of ours breaks on it.
    path = data.draw(st.sampled_from(sorted(stopped.folder.rglob("*.pt" if which == "snapshot" else which))))
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    flip = data.draw(st.sampled_from([None, *(1 << bit for bit in range(8))]))
    wrong = content[:at] + (b"" if flip is None else bytes([content[at] ^ flip]) + content[at + 1 :])
    error, well = resume(
        stopped, lambda folder: void(folder.joinpath(path.relative_to(stopped.folder)).write_bytes(wrong))
    )
    if which == "snapshot":
        assert well, error
        assert error is None or not refusal(error, path.name), error
    elif "must be finite in every model" in str(error):
        assert not well  # weights that a damaged optimizer of Lightning's has spoilt, as any run could
    elif error is not None and "lightning_tricks" in traceback.extract_tb(error.__traceback__)[-1].filename:
        assert well, f"refused too late: {error}"
        assert not (why := refusal(error, "checkpoint")), why


@pytest.mark.parametrize("groups", [{}, None], ids=["none", "no dictionary"])
def test_optimizers_without_groups_are_refused_by_name(stopped: Stopped, groups: object) -> None:
    checkpoint = {**stopped.checkpoint, "optimizer_states": [groups]}
    error, early = resume(stopped, lambda folder: torch.save(checkpoint, folder / "a.ckpt"))
    assert early
    assert "optimizer_states of a checkpoint must hold the groups" in str(error)


def void(_: object) -> None:
    """Drop a value."""


@pytest.mark.parametrize("change", ["missing", "folder", "empty", "another", "no weights"])
def test_a_snapshot_that_is_not_what_was_written_is_refused_by_name(stopped: Stopped, change: str) -> None:
    path, other = sorted(stopped.folder.rglob("*.pt"))

    def swap(folder: Path) -> None:
        target = folder / path.relative_to(stopped.folder)
        target.unlink()
        if change == "folder":
            target.mkdir()
        elif change == "empty":
            target.touch()
        elif change == "another":
            shutil.copy(other, target)
        elif change == "no weights":
            torch.save([1, 2], target)

    error, early = resume(stopped, swap)
    assert early
    assert error is not None
    assert not (why := refusal(error, path.name)), why


@pytest.mark.parametrize("place", [*PLACES, *((*place, "state") for place in PLACES[1:-1])], ids=str)
def test_a_hostile_checkpoint_runs_no_code(stopped: Stopped, place: tuple[str, ...], tmp_path: Path) -> None:
    hostile = damaged(stopped.checkpoint, Damage(place, Marker(tmp_path / "marker")))
    error, early = resume(stopped, lambda folder: torch.save(hostile, folder / "a.ckpt"))
    assert early
    assert isinstance(error, pickle.UnpicklingError)
    torch.save(hostile, tmp_path / "a.ckpt")
    for read in (lt.live_state, lt.average_state):
        with pytest.raises(pickle.UnpicklingError):
            read(tmp_path / "a.ckpt")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_hostile_snapshot_runs_no_code(
    stopped: Stopped, save: Callable[[Any, Path], Any], tmp_path: Path
) -> None:
    def swap(folder: Path) -> None:
        path = min(folder.rglob("*.pt"))
        save({"head.weight": Marker(tmp_path / "marker")}, path)
        entry = unsealed(stopped.checkpoint, "WeightFusion")
        size = Damage(("state", "shelf", "kept", 0, "size"), path.stat().st_size)  # or that alone would tell
        forged = Damage(("callbacks", "WeightFusion"), sealed(damaged(entry, size)))
        torch.save(damaged(stopped.checkpoint, forged), folder / "a.ckpt")

    error, early = resume(stopped, swap)
    assert early
    assert not (why := refusal(error, ".pt must be a whole file of tensors and plain values")), why
    assert not (tmp_path / "marker").exists()
