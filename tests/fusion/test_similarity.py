from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch
from scipy.spatial import distance

from lightning_tricks.fusion.similarity import SimilarityWeighted, similarity_weighted


def scipys(values: np.ndarray, measure: str, to: str) -> np.ndarray:
    if to == "mean":
        return distance.cdist(values, values.mean(0, keepdims=True), measure)[:, 0]
    pairs = distance.cdist(values, values, measure)
    return pairs[0] if to == "first" else pairs.sum(1) / (len(values) - 1)


@pytest.mark.parametrize("measure", ["cosine", "euclidean"])
@pytest.mark.parametrize("to", ["mean", "others", "first"])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 30.0])
def test_weights_are_a_softmax_of_scipys_distances(measure, to, temperature):
    values = np.random.default_rng(0).standard_normal((4, 30)) * [[1], [2], [1], [0.1]] + 1
    distances = scipys(values, measure, to)
    weights = scipy.special.softmax(-distances / (temperature * distances.mean()))
    models = [{"w": torch.tensor(value).reshape(5, 6)} for value in values]
    fused = similarity_weighted(models, measure=measure, to=to, temperature=temperature)["w"]
    np.testing.assert_allclose(fused.reshape(-1), weights @ values, atol=1e-10)


def test_small_differences_of_large_numbers_are_seen():
    near = torch.tensor([1e6, 1e6 + 0.125], dtype=torch.float32)
    models = [{"w": near}, {"w": near.flip(0)}, {"w": near + 4}]
    fused = similarity_weighted(models, measure="euclidean", to="others", temperature=0.05)["w"]
    torch.testing.assert_close(fused, torch.full((2,), 1e6 + 0.0625), rtol=0, atol=0.07)


@pytest.mark.parametrize("measure", ["cosine", "euclidean"])
def test_a_model_unlike_all_others_counts_least(measure):
    values = [[1.0, 1.0], [1.0, 1.1], [1.1, 1.0], [-3.0, 3.0]]
    mean = np.mean(values, axis=0)
    for to in ("mean", "others", "first"):
        fused = similarity_weighted([{"w": torch.tensor(v)} for v in values], measure=measure, to=to)["w"]
        assert fused[0] > mean[0]


@pytest.mark.parametrize("measure", ["cosine", "euclidean"])
def test_zero_and_equal_tensors_have_weights_too(measure):
    zeros = [{"w": torch.zeros(2)}, {"w": torch.zeros(2)}, {"w": torch.tensor([3.0, 0.0])}]
    assert torch.isfinite(similarity_weighted(zeros, measure=measure)["w"]).all()
    method = SimilarityWeighted(measure)
    assert method.combine("w", [torch.ones(2)] * 3).tolist() == [1.0, 1.0]


def test_two_models_say_nothing_of_one_another():
    two = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}]
    for to in ("mean", "others"):
        with pytest.raises(ValueError, match="models must be at least 3 for SimilarityWeighted.*, got 2"):
            similarity_weighted(two, to=to)
    fused = similarity_weighted(two, to="first")["w"]
    assert fused[0] == pytest.approx(1 / (1 + np.exp(-2.0)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measure": "cosin"}, "measure must be one of .* did you mean 'cosine'"),
        ({"to": "last"}, "to must be one of 'mean', 'others', 'first', got 'last'"),
        ({"temperature": 0.0}, "temperature must lie in"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SimilarityWeighted(**settings)
