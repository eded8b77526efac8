from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_tricks.fusion.trimming import largest, share


def of_numpy(values: torch.Tensor, count: int) -> np.ndarray:
    """The mask by a stable sort: of equal magnitudes the first."""
    order = np.argsort(-np.abs(values.numpy()), kind="stable")
    mask = np.zeros(len(values), dtype=bool)
    mask[order[:count]] = True
    return mask


def draws(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    normal = torch.randn(3000, generator=torch.Generator().manual_seed(0)).to(dtype)
    return {
        "normal": normal,
        "many magnitudes": normal * torch.logspace(-30, 30, 3000, dtype=dtype),
        "with equal ones": (normal * 8).round(),
        "mostly zero": normal * (normal > 1.5),
        "all equal": torch.full((50,), -0.25, dtype=dtype),
        "near one another": 1 + torch.arange(400, dtype=dtype).flip(0) * torch.finfo(dtype).eps,
        "subnormal": torch.arange(-200, 200, dtype=dtype) * torch.finfo(dtype).smallest_normal / 1000,
        "extreme": torch.tensor([0.0, -0.0, torch.finfo(dtype).max, -torch.finfo(dtype).max], dtype=dtype),
        "one": torch.tensor([2.0], dtype=dtype),
        "whole numbers": torch.arange(-70_000, 70_000, 3).to(dtype),
        "many": normal.repeat(100).add(torch.arange(300_000).to(dtype) * 1e-6),
        "many equal ones": (normal.repeat(100) * 2).round(),
        "many zeros": (normal.repeat(100) > 2).to(dtype),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", list(draws(torch.float32)))
def test_exactly_those_that_a_sort_puts_first(kind: str, dtype: torch.dtype) -> None:
    values = draws(dtype)[kind]
    for count in {0, 1, len(values) // 3, share(0.9, len(values)), len(values) - 1, len(values)}:
        cut = largest(values, count)
        held = cut.holds(values)
        assert int(held.sum()) == count
        assert np.array_equal(held.numpy(), of_numpy(values, count))
        parts = [cut.holds(values[start : start + 7], start) for start in range(0, min(len(values), 350), 7)]
        assert torch.equal(torch.cat(parts), held[: len(torch.cat(parts))])


def test_of_none_there_are_none() -> None:
    assert largest(torch.zeros(0), 0).holds(torch.zeros(0)).tolist() == []


@pytest.mark.parametrize(
    ("part", "count", "wanted"),
    [(0.5, 0, 0), (0.5, 1, 1), (0.01, 50, 1), (0.29, 10, 2), (1.0, 7, 7), (0, 9, 0)],
)
def test_a_share_is_rounded_down_but_never_to_nothing(part, count, wanted) -> None:
    assert share(part, count) == wanted
