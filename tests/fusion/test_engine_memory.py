"""The memory that fusing takes, and takes again."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_tricks import Average, Dare, Slerp, Ties, fuse
from lightning_tricks.fusion.engine import run
from lightning_tricks.fusion.methods import TensorwiseMethod
from lightning_tricks.fusion.plan import Matching, planned
from lightning_tricks.fusion.slicing import Effort
from lightning_tricks.lifecycle.opening import Reading
from lightning_tricks.lifecycle.safetensors_files import open_safetensors
from lightning_tricks.lifecycle.stored import Memory


@pytest.mark.parametrize(
    ("method", "count", "each"),
    [(Slerp(0.5), 2, 2 * 4 + 8), (Dare(0.5), 3, 3 * 4 + 8), (Ties(0.5), 3, 3 * 4 + 3 * 8)],
    ids=repr,
)
def test_a_method_that_works_in_pieces_needs_little_beside_the_tensors(
    method: TensorwiseMethod, count: int, each: int
) -> None:
    models = [{"w": torch.randn(5000)} for _ in range(count)]
    with pytest.raises(ValueError, match=f"at least {5000 * each} bytes for w"):
        fuse(models, method, max_memory=5000 * each - 1)
    fuse(models, method, max_memory=5000 * each)


def test_what_is_read_into_memory_stays_until_that_is_used_again(tmp_path: Path) -> None:
    content = {"a": torch.arange(6.0), "b": torch.arange(6.0, 10.0), "none": torch.empty(0, 3)}
    save_file(content, tmp_path / "some.safetensors")
    with ExitStack() as stack:
        stored, memory = open_safetensors(tmp_path / "some.safetensors", stack), Memory()
        own, first = stored["a"].read(), stored["a"].read(1, 5, memory)
        assert torch.equal(first, content["a"][1:5])
        second = stored["b"].read(memory=memory)
        assert second.data_ptr() == first.data_ptr() and torch.equal(second, content["b"])
        assert torch.equal(own, content["a"])
        assert stored["none"].read(memory=memory).shape == (0,)


@pytest.mark.parametrize(("max_memory", "again"), [(None, True), (2 * 4000 * (2 * 4 + 5 * 8) - 1, False)])
def test_memory_is_used_again_only_where_all_threads_may_take_so_much(
    max_memory: int | None, again: bool, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    for path in paths:
        save_file({name: torch.randn(4000) for name in "abc"}, path)
    kept: list[torch.Tensor] = []  # so that no other tensor gets its memory by chance

    class Watched(Average):
        def combine(self, name: str, tensors: list[torch.Tensor]) -> torch.Tensor:
            kept.append(tensors[0])
            return super().combine(name, tensors)

        @property
        def entrywise(self) -> bool:
            return False

    with ExitStack() as stack:
        models = [Reading().open(path, stack, label="") for path in paths]
        run(
            planned(models, Matching()),
            Watched(),
            lambda names, start, flat: None,
            labels=["0", "1"],
            effort=Effort(max_memory, 2 if max_memory else 1),
            progress=lambda count: None,
        )
    assert (len({tensor.data_ptr() for tensor in kept}) == 1) == again
    assert again or len({tensor.data_ptr() for tensor in kept}) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_an_average_over_several_pieces_is_that_of_double_precision(dtype: torch.dtype) -> None:
    models = [{"w": torch.randn(70_001, 2, dtype=dtype)} for _ in range(3)]
    wide = torch.complex128 if dtype.is_complex else torch.float64
    a, b, c = (model["w"].to(wide) for model in models)
    assert torch.equal(fuse(models)["w"], ((a + b + c) / 3).to(dtype))
    weighted = fuse(models, Average((0.5, 0.25, 0.25)))["w"]
    assert torch.equal(weighted, (a / 2 + b / 4 + c / 4).to(dtype))
