"""The pull towards anchors: against autograd, and its limit under SGD against runs on both sides of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_tricks.objectives.anchors import consolidate_, consolidation_penalty, sgd_limit


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_gradient_is_that_of_the_penalty(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 2, dtype=dtype, requires_grad=True)
    anchor, fisher = torch.randn(3, 2, dtype=dtype), torch.rand(3, 2, dtype=torch.float64)
    loss = 5 / 2 * sum((fisher * (weight - anchor).abs() ** 2).flatten())
    (expected,) = torch.autograd.grad(loss, weight)
    grad = torch.ones_like(weight)
    consolidate_([grad], [weight.detach()], [anchor], [fisher], strength=5)
    torch.testing.assert_close(grad, 1 + expected)
    penalty = 5 * consolidation_penalty([weight.detach()], [anchor], [fisher])
    torch.testing.assert_close(penalty, loss.detach().real.float())


def test_a_narrow_gradient_gets_what_a_wide_one_would() -> None:
    """1e-6 * 0.5 * 1e5 is 0.05; the Fisher information alone would be 0 in float16."""
    grad = torch.zeros(1, dtype=torch.float16)
    weight, anchor, fisher = torch.tensor([1.5], dtype=torch.float16), torch.ones(1), torch.tensor([1e-8])
    consolidate_([grad], [weight], [anchor], [fisher], strength=1e7)
    assert grad.item() == pytest.approx(0.05, rel=1e-3)


def test_nothing_is_no_penalty() -> None:
    assert consolidation_penalty([], [], []) == 0
    consolidate_([], [], [], [], strength=1.0)


def distance(share: float, momentum: float) -> float:
    """Return how far 300 steps of SGD end from the anchor, at ``share`` of the limit."""
    weight = nn.Parameter(torch.ones(1))
    anchors = [{weight: (torch.zeros(1), torch.tensor([part]))} for part in (0.5, 1.5)]  # two tasks, F = 2
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=momentum)
    limit = sgd_limit([optimizer], anchors)
    assert limit == pytest.approx(10 * (1 + momentum))  # 2 (1 + m) / (0.1 * 2)
    for _ in range(300):
        weight.grad = torch.zeros(1)
        for each in anchors:
            anchor, fisher = each[weight]
            consolidate_([weight.grad], [weight.detach()], [anchor], [fisher], strength=share * limit)
        optimizer.step()
    return weight.abs().item()


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_above_the_limit_sgd_diverges(momentum: float) -> None:
    assert distance(0.95, momentum) < 1e-3
    assert distance(1.05, momentum) > 1e3


def test_other_optimizers_have_no_limit() -> None:
    weight = nn.Parameter(torch.ones(1))
    anchors: list[dict[nn.Parameter, tuple[Tensor, Tensor]]] = [{weight: (torch.zeros(1), torch.ones(1))}]
    assert sgd_limit([torch.optim.Adam([weight])], anchors) == float("inf")
    assert sgd_limit([torch.optim.SGD([weight], lr=0.1)], []) == float("inf")
