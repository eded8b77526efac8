from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from lightning_tricks.fusion.model_stock import ModelStock, model_stock


@pytest.mark.parametrize("count", [2, 3, 5])
def test_it_is_the_papers_ratio(count):
    rng = np.random.default_rng(count)
    base, common, *own = rng.standard_normal((count + 2, 200))
    models = [base + common + each for each in own]
    pairs = itertools.combinations([model - base for model in models], 2)
    cosine = np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])
    t = count * cosine / (1 + (count - 1) * cosine)
    wanted = t * np.mean(models, axis=0) + (1 - t) * base
    fused = model_stock({"w": torch.tensor(base)}, [{"w": torch.tensor(model)} for model in models])
    np.testing.assert_allclose(fused["w"], wanted, atol=1e-12)


@pytest.mark.parametrize(("degrees", "share"), [(0, 1.0), (60, 2 / 3), (90, 0.0), (150, 0.0)])
def test_the_nearer_the_changes_the_nearer_the_mean(degrees, share):
    angle = math.radians(degrees)
    second = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    models = [{"w": torch.tensor([1.0, 0.0], dtype=torch.float64)}, {"w": second}]
    fused = model_stock({"w": torch.zeros(2, dtype=torch.float64)}, models)["w"]
    torch.testing.assert_close(fused, share * (models[0]["w"] + second) / 2, atol=1e-12, rtol=0)


def test_a_model_that_changed_nothing_agrees_with_none():
    fused = model_stock({"w": torch.zeros(2)}, [{"w": torch.tensor(v)} for v in ([0.0, 0.0], [1.0, 0.0])])
    assert fused["w"].tolist() == [0.0, 0.0]
    changes = ([0.0, 0.0], [3.0, 0.0], [3.0, 0.0])  # cosines of 0, 0 and 1: t is 3/5
    fused = model_stock({"w": torch.zeros(2)}, [{"w": torch.tensor(change)} for change in changes])
    torch.testing.assert_close(fused["w"], torch.tensor([1.2, 0.0]))


def test_there_must_be_two_beside_the_base():
    with pytest.raises(ValueError, match=r"models must be at least 3 for ModelStock\(base=None\), got 2"):
        ModelStock().fuse([{"w": torch.ones(2)}] * 2)
