from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_tricks.fusion.ties import Ties, ties


def twin(base: np.ndarray, models: list[np.ndarray], density: float, weights: list[float], scale: float):
    """Algorithm 1 of the paper, entry by entry."""
    tau = [model - base for model in models]
    for t in tau:
        order = np.argsort(-np.abs(t), kind="stable")
        t[order[max(1, int(density * len(t))) :]] = 0.0
    merged = base.copy()
    for p in range(len(base)):
        gamma = np.sign(math.fsum(w * t[p] for w, t in zip(weights, tau, strict=True)))
        agreeing = [(w, t[p]) for w, t in zip(weights, tau, strict=True) if np.sign(t[p]) == gamma != 0]
        if agreeing:
            total = math.fsum(w * value for w, value in agreeing)
            merged[p] += scale * total / math.fsum(w for w, _ in agreeing)
    return merged


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 0.0]])
def test_it_is_the_papers_algorithm(density, weights):
    rng = np.random.default_rng(0)
    base, *models = rng.standard_normal((5, 400)).astype(np.float32)
    models[1][::3] = base[::3]
    wanted = twin(base.astype(float), [m.astype(float) for m in models], density, weights or [1] * 4, 0.7)
    fused = ties(
        {"w": torch.tensor(base)},
        [{"w": torch.tensor(model)} for model in models],
        density=density,
        weights=weights,
        scale=0.7,
    )
    np.testing.assert_allclose(fused["w"], wanted.astype(np.float32), rtol=1e-6, atol=1e-7)


def test_by_hand():
    base = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])}
    models = [
        {"w": torch.tensor([5.0, -2.0, 1.5, 1.0, 1.0])},  # changes 4, -3, 0.5, 0, 0
        {"w": torch.tensor([-1.0, -1.0, 3.5, 1.1, 1.0])},  # -2, -2, 2.5, 0.1, 0
    ]
    assert ties(base, models, density=0.6)["w"].tolist() == [5.0, -1.5, 2.5, 1.0, 1.0]
    assert ties(base, models, density=0.6, weights=[0.0, 1.0])["w"].tolist() == [-1.0, -1.0, 3.5, 1.0, 1.0]


def test_changes_that_cancel_exactly_leave_the_base():
    fused = ties({"w": torch.tensor([7.0])}, [{"w": torch.tensor([v])} for v in (9.0, 5.0)], density=1.0)
    assert fused["w"].item() == 7.0


def test_a_tensor_of_many_pieces_keeps_exactly_its_share():
    model = torch.randn(70_001, generator=torch.Generator().manual_seed(0)).mul(4).round()
    fused = ties({"w": torch.full_like(model, 100.0)}, [{"w": model + 100.0}], density=0.3)["w"]
    order = np.argsort(-np.abs(model.numpy()), kind="stable")[: int(0.3 * 70_001)]
    kept = np.zeros(70_001, bool)
    kept[order] = True
    assert np.array_equal(fused.numpy(), np.where(kept, model.numpy() + 100, 100))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"density": 0.0}, ValueError, r"density must lie in \(0.0, 1.0\], got 0.0"),
        ({"weights": (1.0, -1.0)}, ValueError, r"weights must not be below 0, nor all 0, got \(1.0, -1.0\)"),
        ({"weights": (0.0, 0.0)}, ValueError, "weights must not be below 0, nor all 0"),
        ({"weights": 1.0}, TypeError, "weights must be a list of numbers, got 1.0"),
        ({"scale": math.inf}, ValueError, "scale must lie in"),
        ({"base": 3}, TypeError, "base must be text, got 3"),
    ],
)
def test_wrong_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Ties(**settings)


def test_there_must_be_a_model_beside_the_base():
    with pytest.raises(ValueError, match=r"models must be at least 2 for Ties.*, got 1"):
        Ties().fuse([{"w": torch.ones(2)}])
    with pytest.raises(ValueError, match=r"models must be 3 for Ties.*, got 2"):
        Ties(weights=(1.0, 1.0)).fuse([{"w": torch.ones(2)}] * 2)
