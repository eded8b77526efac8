"""Coefficients without derivatives, beside scipy's search."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, rosen

import lightning_tricks as lt
from lightning_tricks.core.nelder_mead import nelder_mead
from lightning_tricks.fusion.nelder_mead_soup import NelderMeadSoup, nelder_mead_soup


@pytest.mark.parametrize(
    "function", [rosen, lambda x: float(np.abs(np.asarray(x) - 0.3) @ np.arange(1, len(x) + 1) ** 0.5)]
)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_it_asks_for_the_points_that_scipy_asks_for(function: Any, size: int) -> None:
    if size == 1 and function is rosen:
        function = math.cosh
    asked: dict[str, list[tuple[float, ...]]] = {"ours": [], "scipy": []}

    def noted(which: str, x: Any) -> float:
        asked[which].append(tuple(float(each) for each in x))
        return float(function(x[0] if function is math.cosh else x))

    simplex = np.vstack([np.zeros(size), np.eye(size)]) + 0.25
    options = {"initial_simplex": simplex, "maxfev": 120, "xatol": 1e-4, "fatol": np.inf}
    found = minimize(lambda x: noted("scipy", x), simplex[0], method="Nelder-Mead", options=options)
    rows = [tuple(row) for row in simplex.tolist()]
    best = nelder_mead(lambda x: noted("ours", x), rows, evaluations=120, tolerance=1e-4)
    common = min(map(len, asked.values()))
    assert common > 30 if size > 1 else common > 10
    np.testing.assert_allclose(asked["ours"][:common], asked["scipy"][:common], rtol=0, atol=1e-9)
    np.testing.assert_allclose(best, found.x, atol=1e-3)


def units(count: int) -> list[dict[str, torch.Tensor]]:
    return [{"w": row, "n": torch.tensor(index)} for index, row in enumerate(torch.eye(count).double())]


@pytest.mark.parametrize(
    ("sign", "target"), [("convex", [0.2, 0.5, 0.3]), ("affine", [1.5, -0.8, 0.3]), ("convex", [1.0, 0, 0])]
)
def test_it_finds_the_coefficients(sign: Any, target: list[float]) -> None:
    asked = []

    def evaluate(model: Any) -> float:
        asked.append(model)
        return -float((model["w"] - torch.tensor(target)).square().sum())

    fused = nelder_mead_soup(units(3), evaluate, sign=sign, evaluations=90)
    assert len(asked) <= 90 and fused["n"] == 2
    np.testing.assert_allclose(asked[0]["w"], [1 / 3] * 3)
    np.testing.assert_allclose(fused["w"], target, atol=0.01)


def test_a_metric_with_steps_or_without_numbers_is_no_worse_than_the_average() -> None:
    def accuracy(model: Any) -> float:
        return math.nan if model["w"][0] > 0.6 else math.floor(8 * model["w"][0]) / 8

    for count in (1, 2, 4):
        models = units(count)
        fused = nelder_mead_soup(models, accuracy, evaluations=20)
        average = accuracy(lt.fuse(models))
        assert count == 1 or accuracy(fused) >= average
    assert torch.equal(nelder_mead_soup(units(1), lambda model: math.nan)["w"], units(1)[0]["w"])


def test_policy() -> None:
    policy = NelderMeadSoup("acc", "max", sign="affine", evaluations=7)
    assert eval(repr(policy)) == pickle.loads(pickle.dumps(policy)) == policy
    assert policy.objective == ("acc", "max")
    asked = []
    fused = lt.fuse(units(2), policy, evaluate=lambda model: asked.append(1) or float(model["w"][1]))
    assert len(asked) == 7 and fused["w"][1] > 1
    with pytest.raises(ValueError, match="evaluate must be given for NelderMeadSoup"):
        lt.fuse(units(2), policy)
    with pytest.raises(ValueError, match="evaluations must be one for each of 3 models, got 2"):
        nelder_mead_soup(units(3), lambda model: 0.0, evaluations=2)
    with pytest.raises(ValueError, match="sign must be one of 'convex', 'affine'"):
        NelderMeadSoup(sign="free")  # type: ignore[arg-type]
