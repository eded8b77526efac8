from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

from lightning_tricks.fusion.average import average
from lightning_tricks.fusion.pruned import Pruned, pruned, sparsity


def models(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"w": torch.randn(40, 25, generator=generator)} for _ in range(count)]


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_it_is_the_mean_over_what_torchs_pruning_keeps(density):
    some = models(3)
    values = torch.stack([model["w"] for model in some])
    kept = torch.stack(
        [
            prune.L1Unstructured(round((1 - density) * 1000)).compute_mask(v, torch.ones_like(v))
            for v in values
        ]
    ).bool()
    wanted = np.ma.masked_array(values.double().numpy(), mask=~kept.numpy()).mean(0).filled(0.0)
    fused = pruned(some, density=density)
    np.testing.assert_allclose(fused["w"], wanted, rtol=1e-7)
    assert sparsity(fused) == pytest.approx(float((~kept.any(0)).float().mean()))


def test_the_union_is_denser_and_pruned_again_to_its_largest():
    some = models(2)
    union, again = pruned(some, density=0.5), pruned(some, density=0.5, target=0.5)
    assert sparsity(union) == pytest.approx(0.25, abs=0.05)
    assert sparsity(again) == 0.5
    left = again["w"] != 0
    assert torch.equal(again["w"][left], union["w"][left])
    assert union["w"][left].abs().min() >= union["w"][~left].abs().max()


def test_a_target_above_the_density_changes_nothing():
    some = models(2)
    assert torch.equal(pruned(some, density=0.1, target=0.9)["w"], pruned(some, density=0.1)["w"])


def test_what_was_zero_counts_as_pruned():
    some = [{"w": torch.tensor([[0.0, 4.0]])}, {"w": torch.tensor([[2.0, 0.0]])}]
    assert pruned(some, density=1.0)["w"].tolist() == [[2.0, 4.0]]


def test_biases_and_statistics_are_averaged():
    some = [{"running_var": torch.rand(9) + 0.1, "scale": torch.tensor(float(i))} for i in range(3)]
    fused, mean = pruned(some, density=0.1), average(some)
    assert all(torch.equal(fused[name], mean[name]) for name in mean)
    assert sparsity(fused) == 0.0


@pytest.mark.parametrize("settings", [{"density": 0.0}, {"density": 1.1}, {"target": 0.0}])
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must lie in"):
        Pruned(**settings)
