"""Runs of LAWA that go on from a checkpoint, with its snapshots in files or within."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_tricks as lt
from tests.averaging.watching import Watch, live_of, parameters
from tests.toys import Loader, StopAfter, StopError, Toy, assert_equal, trainer, weights

VALIDATION = Loader(2, seed=9, fixed=True)
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # one callback less


def run(
    lawa: lt.LAWA, root: Path, *others: Callback, path: Path | None = None, **settings: Any
) -> tuple[lt.LAWA, Toy]:
    module = Toy()
    runner = trainer(lawa, *others, default_root_dir=root, **settings)
    runner.fit(module, Loader(), VALIDATION, ckpt_path=path)
    return lawa, module


def stopped(lawa: lt.LAWA, root: Path, *others: Callback, count: int = 9, **settings: Any) -> Path:
    """Return the checkpoint of a run that broke off."""
    path = root / "checkpoints" / "stopped.ckpt"
    with pytest.raises(StopError):
        run(lawa, root, *others, StopAfter(count, path), **settings)
    return path


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"k": 3, "every": 2}, "bf16-true"),
    ({"k": 2, "every": 3, "dtype": "float64", "buffers": "average"}, "32-true"),
    ({"k": 10, "every": 2, "store": "memory"}, "32-true"),
    ({"k": 2, "every": 1, "store": "memory", "evaluate": False, "label": "b"}, "bf16-true"),
]


@pytest.mark.parametrize("count", [1, 6, 9])  # before the first, between two, with the window full
@pytest.mark.parametrize(("settings", "precision"), SETTINGS, ids=str)
def test_it_goes_on_to_the_bit(settings: dict[str, Any], count: int, precision: str, tmp_path: Path) -> None:
    first, whole = run(lt.LAWA(**settings), tmp_path / "whole", precision=precision)
    path = stopped(lt.LAWA(**settings), tmp_path / "parts", count=count, precision=precision)
    second, module = run(lt.LAWA(**settings), tmp_path / "parts", path=path, precision=precision)
    assert_equal(weights(module), weights(whole))
    assert_equal(live_of(second, module), live_of(first, whole))
    assert_equal(first.average(), second.average())
    assert_equal(first.saved(), second.saved())
    torch.load(path, weights_only=True)


def test_again_from_one_checkpoint_and_from_a_moved_folder(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"k": 3, "every": 2}
    _, whole = run(lt.LAWA(**settings), tmp_path / "whole")
    path = stopped(lt.LAWA(**settings), tmp_path / "parts")
    for _ in range(2):
        assert_equal(weights(run(lt.LAWA(**settings), tmp_path / "parts", path=path)[1]), weights(whole))
    shutil.move(tmp_path / "parts", tmp_path / "moved")
    moved = tmp_path / "moved" / "checkpoints" / path.name
    assert_equal(weights(run(lt.LAWA(**settings), tmp_path / "other", path=moved)[1]), weights(whole))


class Saves(Callback):
    """Saves a checkpoint, and lets the run go on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 9:
            trainer.save_checkpoint(self.path)


def test_the_latest_checkpoint_finds_its_files_whatever_came_after_it(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "a.ckpt"
    _, whole = run(lt.LAWA(k=2, every=1), tmp_path, Saves(path))
    assert_equal(weights(run(lt.LAWA(k=2, every=1), tmp_path, path=path)[1]), weights(whole))


def test_shares_of_a_longer_run_are_counted_anew(tmp_path: Path) -> None:
    path = stopped(lt.LAWA(k=3, every="20%"), tmp_path)  # after the snapshots of 3, 6 and 9
    watch, lawa = Watch(), lt.LAWA(k=3, every="20%")
    _, module = run(lawa, tmp_path, watch, path=path, max_epochs=6)
    mean = sum(watch.steps[step - 9]["head.weight"] for step in (18, 24, 30)) / 3
    torch.testing.assert_close(module.head.weight.detach(), mean)


def test_a_file_that_is_missing_is_told_before_the_first_batch(tmp_path: Path) -> None:
    path = stopped(lt.LAWA(k=3, every=2), tmp_path)
    oldest = min((tmp_path / "checkpoints" / "lawa").iterdir())
    oldest.unlink()
    watch = Watch()
    with pytest.raises(FileNotFoundError, match=f"{oldest.name} must be there, because the checkpoint names"):
        run(lt.LAWA(k=3, every=2), tmp_path, watch, path=path)
    assert len(watch.steps) <= 1


@pytest.mark.parametrize(("then", "now"), [("disk", "memory"), ("memory", "disk")])
def test_another_store_is_refused(then: Any, now: Any, tmp_path: Path) -> None:
    path = stopped(lt.LAWA(k=3, every=2, store=then), tmp_path)
    with (
        pytest.warns(UserWarning, match="was resumed with changed settings"),
        pytest.raises(ValueError, match=f"store must stay '{then}' in a run that goes .*, got '{now}'"),
    ):
        run(lt.LAWA(k=3, every=2, store=now), tmp_path, path=path)


@pytest.mark.parametrize("store", ["disk", "memory"])
@pytest.mark.parametrize(("k", "count"), [(2, 2), (5, 5)])
def test_another_k_counts_from_now_on(store: Any, k: int, count: int, tmp_path: Path) -> None:
    path = stopped(lt.LAWA(k=3, every=2, store=store), tmp_path, count=8)
    watch, lawa = Watch(), lt.LAWA(k=k, every=2, store=store)
    with pytest.warns(UserWarning, match=f"changed settings: k 3 -> {k}"):
        _, module = run(lawa, tmp_path, watch, path=path)
    assert lawa.outcome() == {"snapshots": count}
    if k == 2:
        mean = (watch.steps[4]["head.weight"] + watch.steps[6]["head.weight"]) / 2  # those of 12 and 14
        torch.testing.assert_close(module.head.weight.detach(), mean)


def test_added_beside_the_average_of_another_it_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        trainer(lt.EMAWeights(decay=0.9), StopAfter(7, path)).fit(Toy(), Loader(), VALIDATION)
    watch, lawa = Watch(), lt.LAWA(k=3, every=4)
    _, module = run(lawa, tmp_path, watch, path=path)
    assert_equal(watch.starts[0], lt.live_state(path))
    assert lawa.outcome() == {"snapshots": 2}
    mean = {name: (watch.steps[1][name] + watch.steps[5][name]) / 2 for name in parameters(watch.steps[0])}
    for name, value in mean.items():
        torch.testing.assert_close(weights(module)[name], value)
    assert "LAWA: the checkpoint holds no average of it" in capsys.readouterr().out


def test_a_finished_run_still_ends_with_the_mean(tmp_path: Path) -> None:
    lawa, module = lt.LAWA(k=2, every=3), Toy()
    runner = trainer(lawa, default_root_dir=tmp_path)
    runner.fit(module, Loader(), VALIDATION)
    runner.save_checkpoint(tmp_path / "checkpoints" / "a.ckpt")
    again, resumed = run(lt.LAWA(k=2, every=3), tmp_path, path=tmp_path / "checkpoints" / "a.ckpt")
    assert_equal(weights(resumed), weights(module))
    assert_equal(live_of(again, resumed), live_of(lawa, module))


def test_each_checkpoint_that_is_kept_finds_its_snapshots(tmp_path: Path) -> None:
    keeps = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=3, save_top_k=-1)
    trainer(lt.LAWA(k=2, every=3), keeps, default_root_dir=tmp_path).fit(Toy(), Loader())
    paths = sorted((tmp_path / "checkpoints").glob("*.ckpt"))
    assert len(paths) > 3
    for path in paths[:2]:
        lawa = lt.LAWA(k=2, every=3)
        trainer(lawa, default_root_dir=tmp_path).fit(Toy(), Loader(), ckpt_path=path)
        assert lawa.outcome() == {"snapshots": 2}
