"""The sums, against exact ones, and the two stores, over thousands of snapshots."""

from __future__ import annotations

import math
from collections import deque

import pytest
import torch
from torch import Tensor

from lightning_tricks.averaging.windows import ExactSum, two_sum

K, UPDATES = 10, 2000


def snapshots(dtype: torch.dtype, decades: float) -> list[Tensor]:
    """Entries whose size swings over so many decades and back, with any sign; some are 0 for long."""
    generator = torch.Generator().manual_seed(0)
    swing = torch.sin(torch.arange(UPDATES)[:, None] / torch.linspace(3, 300, 16)) * decades / 2
    values = torch.randn(UPDATES, 16, generator=generator, dtype=torch.float64) * 10.0**swing
    values[500:1500, 0] = 0.0
    return list(values.to(dtype))


def slow_means(values: list[Tensor]) -> list[list[float]]:
    """The means of the last ``K`` at each of the values, each summed anew, exactly, and rounded once."""
    window: deque[list[float]] = deque(maxlen=K)
    means = []
    for value in values:
        window.append(value.tolist())
        means.append([math.fsum(entries) / len(window) for entries in zip(*window, strict=True)])
    return means


@pytest.mark.parametrize(
    ("dtype", "decades"),
    [(torch.float32, 18), (torch.float32, 0), (torch.bfloat16, 18), (torch.float64, 10)],
)
def test_the_mean_of_the_last_is_exact_after_thousands_of_others(dtype: torch.dtype, decades: float) -> None:
    values = snapshots(dtype, decades)
    total = ExactSum(values[0])
    for index, (value, expected) in enumerate(zip(values, slow_means(values), strict=True)):
        total.add(value)
        if index >= K:
            total.take_off(values[index - K])
        assert (total.high / min(K, index + 1)).tolist() == expected


@pytest.mark.parametrize("naive", [torch.float32, torch.float64])
def test_a_plain_sum_of_one_number_drifts(naive: torch.dtype) -> None:
    values = snapshots(torch.float32, 18)
    total = torch.zeros(16, dtype=naive)
    wrong = 0
    for index, (value, expected) in enumerate(zip(values, slow_means(values), strict=True)):
        total += value
        if index >= K:
            total -= values[index - K]
        mean = (total / min(K, index + 1)).float()
        wrong += int((mean != torch.tensor(expected, dtype=torch.float64).float()).sum())
    assert wrong > 1000


def test_what_a_rounded_sum_has_lost_is_known() -> None:
    first, second = [1e16, 1.0, -3.0], [1.0, 2.0**-60, 3.0]
    total, error = two_sum(*(torch.tensor(each, dtype=torch.float64) for each in (first, second)))
    assert total.tolist() == [1e16, 1.0, 0.0]
    assert error.tolist() == [1.0, 2.0**-60, 0.0]


def test_complex_numbers_are_summed_too() -> None:
    first, second = (torch.tensor([each]) for each in (1e8 + 1e-8j, 1e-9 + 1e8j))
    total = ExactSum(first)
    for value in (first, second):
        total.add(value)
    total.take_off(first)
    assert torch.equal(total.high.to(second.dtype), second)
