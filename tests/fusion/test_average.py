from __future__ import annotations

import dataclasses
import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_tricks.fusion.average import Average, average

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def models(count: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[dict[str, Tensor]]:
    return [
        {"w": (torch.randn(50, 4) * scale).to(dtype), "s": torch.randn(()).to(dtype)} for _ in range(count)
    ]


def test_hand_worked_mean():
    fused = average([{"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([3.0, 6.0])}])
    assert fused["w"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("weights", [None, [0.5, 0.2, 0.3], [1.5, -0.25, -0.25]])
def test_is_numpys_average(weights):
    three = models(3)
    wanted = np.average([model["w"].double().numpy() for model in three], axis=0, weights=weights)
    torch.testing.assert_close(
        average(three, weights=weights)["w"].double().numpy(), wanted, rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_model_fused_with_itself_comes_back_to_the_bit(dtype, count):
    (model,) = models(1, dtype, scale=1e3)
    fused = average([{name: value.clone() for name, value in model.items()} for _ in range(count)])
    for name, value in model.items():
        assert fused[name].dtype == dtype
        assert torch.equal(fused[name], value)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_models_does_not_matter(values):
    wanted = np.mean(np.array(values, dtype=np.longdouble))
    scale = max(map(abs, values))
    for order in itertools.islice(itertools.permutations(values), 24):
        result = float(average([{"w": torch.tensor(value)} for value in order])["w"])
        # Half a unit in the last place, or where numbers cancel one another what double precision leaves.
        assert result == pytest.approx(float(wanted), rel=6.1e-8, abs=max(1e-15 * scale, 1e-45))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_it_is_the_exact_mean_rounded_once_in_any_order(count):
    """Entries of several magnitudes often have a mean half-way between two numbers."""
    some = [{"w": torch.randn(3000) * 2.0 ** torch.randint(-3, 3, (3000,))} for _ in range(count)]
    exact = np.mean([model["w"].numpy().astype(np.longdouble) for model in some], axis=0, dtype=np.longdouble)
    for order in itertools.islice(itertools.permutations(some), 12):
        assert np.array_equal(average(order)["w"].numpy(), exact.astype(np.float32))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_all_weight_on_one_model_gives_it_to_the_bit(dtype, chosen):
    three = models(3, dtype)
    weights = [float(index == chosen) for index in range(3)]
    fused = average(three, weights=weights)
    assert all(torch.equal(fused[name], three[chosen][name]) for name in fused)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_are_rounded_once(dtype):
    five = models(5, dtype)
    exact = torch.stack([model["w"].double() for model in five]).mean(0)
    assert torch.equal(average(five)["w"], exact.to(dtype))


def test_the_sum_of_large_halves_does_not_overflow():
    three = [{"w": torch.tensor([60000.0]).half()} for _ in range(2)]
    three.append({"w": torch.tensor([59968.0]).half()})
    assert average(three)["w"].item() == pytest.approx(59989.3, rel=1e-3)


def test_complex_tensors_are_averaged():
    two = [{"w": torch.tensor([1 + 2j])}, {"w": torch.tensor([3 - 2j])}]
    assert average(two)["w"].tolist() == [2 + 0j]


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([0.5, 0.4], ValueError, r"weights must be one for each model and make 1 together, got \[0.5, 0.4\]"),
        ([], ValueError, "weights must be one for each model and make 1"),
        ([0.5, float("nan")], ValueError, "every entry of weights must be a number, got nan"),
        ([0.5, "0.5"], TypeError, "every entry of weights must be a number, got '0.5'"),
        ([1.0], ValueError, "models must be 1 for Average.*, got 2"),
        ([0.5, 0.25, 0.25], ValueError, "models must be 3 for Average.*, got 2"),
    ],
)
def test_wrong_weights_are_refused(weights, error, message):
    with pytest.raises(error, match=message):
        average(models(2), weights=weights)


def test_weights_may_miss_1_by_rounding_only():
    average(models(3), weights=[1 / 3, 1 / 3, 0.333333])
    with pytest.raises(ValueError, match="weights must be one for each model and make 1"):
        Average((0.5, 0.50001))


def test_no_model_is_an_error():
    for weights in (None, [1.0]):
        with pytest.raises(ValueError, match="model"):
            average([], weights=weights)


def test_policy():
    two = models(2)
    assert torch.equal(Average((0.25, 0.75)).fuse(two)["w"], average(two, weights=[0.25, 0.75])["w"])
    assert Average().count is None and Average([0.5, 0.5]).count == 2
    for policy in (Average(), Average([0.25, 0.75])):
        assert eval(repr(policy)) == pickle.loads(pickle.dumps(policy)) == policy
    with pytest.raises(dataclasses.FrozenInstanceError):
        Average().weights = (1.0,)
