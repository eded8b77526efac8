"""Weights of which each process holds parts: their layout, their average, their checkpoints."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

import lightning_tricks as lt
from tests.distributed.crossing import STOP, callbacks
from tests.distributed.launch import launch
from tests.distributed.worlds import Part, Shared
from tests.toys import StopAfter, StopError, trainer


@pytest.mark.parametrize("world", ["FSDP1", "FSDP2"])
def test_a_part_and_the_whole_are_one_anothers(world: str, tmp_path: Path) -> None:
    launch("tests.distributed.layouts", world, str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("world", ["FSDP1", "FSDP2", "FSDP2, distributed checkpoints"])
def test_an_average_over_parts_is_that_over_wholes(world: str, tmp_path: Path) -> None:
    launch("tests.distributed.averages", world, str(tmp_path))


def alone(folder: Path, *others: Callback, ckpt_path: Path | None = None, lr_factor: float = 1.0) -> Path:
    """Train in one process and return the path of the last checkpoint."""
    runner = trainer(*callbacks(lr_factor), *others, default_root_dir=folder)
    runner.fit(Shared(), Part(), Part(2, seed=9, fixed=True), ckpt_path=ckpt_path)
    runner.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def test_checkpoints_cross_between_one_process_and_shards(tmp_path: Path) -> None:
    whole = alone(tmp_path / "whole")
    with pytest.raises(StopError):
        alone(tmp_path / "one", StopAfter(STOP, tmp_path / "one.ckpt"))
    alone(tmp_path / "split", lr_factor=0.5).rename(tmp_path / "split.ckpt")
    launch("tests.distributed.crossing", str(tmp_path))
    one_from_two = alone(tmp_path / "one_from_two", ckpt_path=tmp_path / "two.ckpt")
    for crossed in (one_from_two, tmp_path / "two_from_one.ckpt"):
        for read in (lt.live_state, lt.average_state):
            expected, found = read(whole), read(crossed)
            assert expected.keys() == found.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10)
