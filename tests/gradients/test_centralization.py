"""Gradient centralization: by hand, by what it leaves alone, and in runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_tricks import ConflictError, GradientCentralization, GradientClip
from lightning_tricks.gradients.centralization import centralize_
from tests.contract.test_together import reads_per_step
from tests.toys import Loader, Toy, trainer, weights


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (2, 3, 2, 2), (1, 1), (4, 1)])
def test_rows_have_no_mean_any_more_and_keep_their_differences(shape: tuple[int, ...]) -> None:
    grad = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = grad.numpy().copy()
    centralize_([grad])
    for row, left in zip(rows, grad.numpy(), strict=True):
        np.testing.assert_allclose(left, row - np.average(row), atol=1e-15)


def test_vectors_scalars_and_nothing_are_left_alone() -> None:
    kept = [torch.tensor([1.0, 3.0]), torch.tensor(2.0), torch.empty(0, 3), torch.empty(2, 0)]
    copies = [each.clone() for each in kept]
    centralize_(kept)
    assert all(torch.equal(*pair) for pair in zip(kept, copies, strict=True))
    centralize_([])


def sums(module: nn.Module) -> torch.Tensor:
    """Return the sum of each row of each matrix."""
    return torch.cat([p.detach().sum(dim=1) for p in module.parameters() if p.ndim == 2])


@pytest.mark.parametrize("options", [{"optimizer": "SGD", "momentum": 0.9}, {"optimizer": "SGD"}])
def test_a_run_leaves_the_sums_of_rows_alone(options: dict[str, Any]) -> None:
    ours, plain, start = Toy(**options), Toy(**options), Toy(**options)
    trainer(GradientCentralization()).fit(ours, Loader())
    trainer().fit(plain, Loader())
    torch.testing.assert_close(sums(ours), sums(start), rtol=0, atol=1e-5)
    assert (sums(plain) - sums(start)).abs().max() > 1e-2
    assert (weights(ours)["head.weight"] - weights(start)["head.weight"]).abs().max() > 1e-2


def test_only_what_params_matches() -> None:
    ours, start = Toy(optimizer="SGD"), Toy(optimizer="SGD")
    trainer(GradientCentralization(params="head")).fit(ours, Loader())
    torch.testing.assert_close(sums(ours.head), sums(start.head), rtol=0, atol=1e-5)
    assert (sums(ours.body) - sums(start.body)).abs().max() > 1e-3


def test_weights_without_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"params must match a weight of more than one axis, got '\*\.bias'"):
        trainer(GradientCentralization(params="*.bias")).fit(Toy(), Loader())


def test_its_place_is_before_clipping() -> None:
    with pytest.raises(ConflictError, match="in the order GradientCentralization, GradientClip; got"):
        trainer(GradientClip(), GradientCentralization()).fit(Toy(), Loader())
    with pytest.raises(ConflictError, match="'gradient_mean' must have one owner"):
        trainer(*(GradientCentralization(label=label) for label in "ab")).fit(Toy(), Loader())


@pytest.mark.parametrize("fused", [False, True])
def test_nothing_is_read_back_to_the_host(fused: bool) -> None:
    assert reads_per_step(GradientCentralization(), fused=fused) == reads_per_step(fused=fused)
