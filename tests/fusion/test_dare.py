from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_tricks.fusion.dare import Dare, DareTies, dare
from lightning_tricks.fusion.task_arithmetic import task_arithmetic
from lightning_tricks.fusion.ties import ties

COUNT = 200_003


def ones(name: str = "w", count: int = COUNT) -> dict[str, Tensor]:
    return {name: torch.ones(count)}


def zeros(name: str = "w", count: int = COUNT) -> dict[str, Tensor]:
    return {name: torch.zeros(count)}


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.9, 1.0])
def test_so_many_stay_and_are_divided_by_the_share(density):
    fused = dare(zeros(), [ones()], density=density)["w"]
    kept = fused != 0
    deviation = math.sqrt(density * (1 - density) / COUNT)
    assert float(kept.float().mean()) == pytest.approx(density, abs=5 * deviation + 1e-12)
    # The probability is one of 65536 steps; that it is divided by is the same.
    probability = round(density * 65536) / 65536
    assert torch.equal(fused[kept].unique(), torch.tensor([1 / probability]))


def test_what_is_drawn_is_independent_from_entry_to_entry_and_model_to_model():
    first, second = (dare(zeros(), models, density=0.5)["w"] for models in ([ones()], [zeros(), ones()]))
    masks = [(fused > 0).double() * 2 - 1 for fused in (first, second)]
    limit = 5 / math.sqrt(COUNT)
    for shift in (1, 2, 3, 4, 8, 32_000):
        assert abs(float((masks[0] * masks[0].roll(shift)).mean())) < limit
    assert abs(float((masks[0] * masks[1]).mean())) < limit


def test_in_expectation_it_is_task_arithmetic():
    generator = torch.Generator().manual_seed(0)
    base, *models = ({"w": torch.randn(50, generator=generator, dtype=torch.float64)} for _ in range(3))
    settings = {"scale": 0.6, "weights": [0.5, 1.5]}
    draws = [dare(base, models, density=0.3, seed=seed, **settings)["w"] for seed in range(3000)]
    mean, deviation = torch.stack(draws).mean(0), torch.stack(draws).std(0) / math.sqrt(3000)
    wanted = task_arithmetic(base, models, **settings)["w"]
    assert ((mean - wanted).abs() < 5 * deviation).all()


def test_with_ties_it_is_ties_of_what_is_left():
    generator = torch.Generator().manual_seed(0)
    base, *models = (torch.randn(5000, generator=generator, dtype=torch.float64) for _ in range(4))
    left = [base.clone() for _ in models]
    for place, model in enumerate(models):
        alone = [{"w": model if place == other else base} for other in range(3)]
        left[place] = dare({"w": base}, alone, density=0.5, seed=7)["w"]
    wanted = ties({"w": base}, [{"w": each} for each in left], density=1.0, weights=[1.0, 2.0, 0.5])
    method = DareTies(0.5, seed=7, weights=(1.0, 2.0, 0.5))
    fused = method.fuse([{"w": base}, *({"w": model} for model in models)])
    torch.testing.assert_close(fused["w"], wanted["w"], rtol=1e-12, atol=1e-12)


def test_what_is_drawn_follows_from_seed_name_and_place_alone():
    both = dare({**zeros("a", 99), **zeros("b", 99)}, [{**ones("a", 99), **ones("b", 99)}], seed=1)
    turned = dare({**zeros("b", 99), **zeros("a", 99)}, [{**ones("b", 99), **ones("a", 99)}], seed=1)
    assert torch.equal(both["a"], turned["a"]) and torch.equal(both["b"], turned["b"])
    assert not torch.equal(both["a"], both["b"])
    compiled = dare(zeros("_orig_mod.a", 99), [ones("_orig_mod.a", 99)], seed=1)
    assert torch.equal(compiled["_orig_mod.a"], both["a"])
    assert not torch.equal(dare(zeros("a", 99), [ones("a", 99)], seed=2)["a"], both["a"])


def test_the_same_draws_in_every_version():
    fused = dare(zeros("w", 12), [ones("w", 12)], density=0.5)["w"]
    assert (fused > 0).int().tolist() == [0, 1, 0, 1, 0, 1, 1, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (Dare, {"density": 0.0}, r"density must lie in \(0.0, 1.0\], got 0.0"),
        (Dare, {"seed": -1}, "seed must be at least 0, got -1"),
        (DareTies, {"weights": (1.0, -1.0)}, "weights must not be below 0"),
    ],
)
def test_wrong_settings_are_refused(method, settings, message):
    with pytest.raises(ValueError, match=message):
        method(**settings)
