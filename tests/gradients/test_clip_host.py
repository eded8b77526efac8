from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import clip_grad_norm_

from lightning_tricks.core.gradients import gradients_of
from lightning_tricks.core.norms import total_norm
from lightning_tricks.gradients.norms import clip_
from tests.toys import assert_equal

SCALES = st.floats(-7, 7).map(lambda power: 10.0**power)


def gradient(scale: float, dtype: torch.dtype) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(9, dtype=dtype))
    parameter.grad = scale * torch.randn(9, generator=torch.Generator().manual_seed(0)).to(dtype)
    return parameter


@given(scale=SCALES, limit=SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_clipping_with_a_norm_that_the_host_knows_is_torchs_to_the_bit(
    dtype: torch.dtype, scale: float, limit: float
) -> None:
    ours, theirs = gradient(scale, dtype), gradient(scale, dtype)
    norm = clip_grad_norm_([theirs], limit)
    found = gradients_of(torch.optim.SGD([ours]))
    value = total_norm(found, 2.0).item()
    clipped = clip_(found, norm, max_norm=limit, max_value=None, norm_type=2.0, value=value)
    assert_equal(ours.grad, theirs.grad)
    assert bool(clipped) is bool(norm > limit)


def test_after_a_clip_by_value_the_norm_that_was_known_is_no_longer_that() -> None:
    ours, theirs = gradient(9.0, torch.float32), gradient(9.0, torch.float32)
    nn.utils.clip_grad_value_([theirs], 0.5)
    clip_grad_norm_([theirs], 1.0)
    found = gradients_of(torch.optim.SGD([ours]))
    norm = total_norm(found, 2.0)
    clip_(found, norm, max_norm=1.0, max_value=0.5, norm_type=2.0, value=norm.item())
    assert_equal(ours.grad, theirs.grad)
