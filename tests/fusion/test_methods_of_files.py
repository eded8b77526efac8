"""Every method that fuses tensor by tensor does in files what it does in memory, in slices and threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lightning_tricks as lt
from tests.fusion.test_laws import EVERY, Law, models


@EVERY
def test_files_are_fused_as_in_memory_to_the_bit(law: Law, tmp_path: Path) -> None:
    some = models(law.count)
    generator = torch.Generator().manual_seed(5)
    for model in some:
        model["blocks.0.long"] = torch.randn(70_000, generator=generator)
    paths = [tmp_path / f"{index}.ckpt" for index in range(law.count)]
    for path, model in zip(paths, some, strict=True):
        torch.save({"state_dict": model}, path)
    wanted = law.method.fuse(some)
    for threads in (1, 2):
        for max_memory in (None, 9_000_000):
            fused = lt.fuse(paths, law.method, threads=threads, max_memory=max_memory)
            assert list(fused) == list(wanted)
            assert all(torch.equal(fused[name], wanted[name]) for name in wanted)


def test_a_base_in_a_file_comes_before_the_others(tmp_path: Path) -> None:
    base, *others = models(3)
    torch.save(base, tmp_path / "base.pt")
    method = lt.TaskArithmetic(base=str(tmp_path / "base.pt"), weights=(0.5, 0.25))
    fused = lt.fuse(others, method)
    wanted = method.fuse([base, *others])
    assert all(torch.equal(fused[name], wanted[name]) for name in wanted)


def test_names_without_a_method_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="recipe must match every tensor"):
        lt.fuse(models(2), lt.Layerwise({"blocks": lt.Average()}), tmp_path / "out.ckpt")
    assert not list(tmp_path.iterdir())
