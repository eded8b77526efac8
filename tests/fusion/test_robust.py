from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from lightning_tricks.fusion.robust import TrimmedMean, median, trimmed_mean


def draws(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 6, 5)).astype(np.float32)


def models(values: np.ndarray) -> list[dict[str, torch.Tensor]]:
    return [{"w": torch.tensor(value)} for value in values]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_median_is_numpys(count, dtype):
    values = draws(count).astype(dtype) / 3
    wanted = np.median(values.astype(np.float64), axis=0).astype(dtype)
    assert np.array_equal(median(models(values))["w"].numpy(), wanted)


@pytest.mark.parametrize(("count", "trim"), [(10, 0.1), (12, 0.25), (5, 0.2), (7, 0.49), (4, 0.0)])
def test_trimmed_mean_is_scipys(count, trim):
    values = draws(count)
    wanted = scipy.stats.trim_mean(values.astype(np.float64), trim, axis=0).astype(np.float32)
    np.testing.assert_allclose(trimmed_mean(models(values), trim=trim)["w"], wanted, rtol=1e-7)


def test_of_few_models_one_is_left_out_at_either_end():
    values = [{"w": torch.tensor(value)} for value in (1.0, 1e30, 3.0, 2.0, -1e30)]
    assert trimmed_mean(values, trim=0.1)["w"] == 2.0


def test_a_model_that_is_far_off_moves_nothing():
    values = draws(5)
    before = median(models(values))["w"]
    extreme = values.argmax(axis=0)
    np.put_along_axis(values, extreme[None], 1e30, axis=0)
    assert torch.equal(median(models(values))["w"], before)


@pytest.mark.parametrize("trim", [0.5, -0.1, math.nan, 1.0])
def test_trim_must_leave_something(trim):
    with pytest.raises(ValueError, match="trim must"):
        TrimmedMean(trim)


def test_two_have_no_middle():
    with pytest.raises(ValueError, match=r"models must be at least 3 for TrimmedMean\(trim=0.1\), got 2"):
        trimmed_mean([{"w": torch.ones(1)}] * 2)
