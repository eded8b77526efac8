from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_tricks.fusion.breadcrumbs import Breadcrumbs, breadcrumbs
from lightning_tricks.fusion.task_arithmetic import task_arithmetic


@pytest.mark.parametrize(("density", "gamma"), [(0.9, 0.01), (0.5, 0.25), (0.1, 0.0), (0.02, 0.95)])
def test_it_keeps_what_lies_between_the_ranks(density, gamma):
    change = torch.randn(1000, generator=torch.Generator().manual_seed(0)).mul(20).round()
    fused = breadcrumbs({"w": torch.zeros(1000)}, [{"w": change}], density=density, gamma=gamma)["w"]
    order = np.argsort(-np.abs(change.numpy()), kind="stable")
    first = int(gamma * 1000)
    wanted = np.zeros(1000, dtype=np.float32)
    chosen = order[first : first + int(density * 1000)]
    wanted[chosen] = change.numpy()[chosen]
    assert np.array_equal(fused.numpy(), wanted)


def test_of_small_tensors_something_stays():
    """Where mergekit 0.1.4 left out the whole change: gamma of fewer than 100 entries is none of them."""
    models = [{"bias": torch.arange(1.0, 11.0), "one": torch.tensor([5.0]), "scalar": torch.tensor(5.0)}]
    base = {name: torch.zeros_like(value) for name, value in models[0].items()}
    fused = breadcrumbs(base, models)
    assert fused["bias"].tolist() == [0.0, *range(2, 11)]
    assert fused["one"].tolist() == [5.0] and fused["scalar"] == 5.0


def test_all_of_everything_is_task_arithmetic():
    generator = torch.Generator().manual_seed(0)
    base, *models = ({"w": torch.randn(20, generator=generator)} for _ in range(4))
    ours = breadcrumbs(base, models, density=1.0, gamma=0.3, scale=0.7, weights=[1.0, -2.0, 0.5])
    assert torch.equal(ours["w"], task_arithmetic(base, models, scale=0.7, weights=[1.0, -2.0, 0.5])["w"])


@pytest.mark.parametrize("settings", [{"density": 0.0}, {"density": 1.5}, {"gamma": 1.0}, {"gamma": -0.1}])
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must lie in"):
        Breadcrumbs(**settings)
