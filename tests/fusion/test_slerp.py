from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial import geometric_slerp

from lightning_tricks.fusion.slerp import Slerp, slerp


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_of_unit_vectors_it_is_scipys(t):
    first, second = np.random.default_rng(0).standard_normal((2, 40))
    first, second = first / np.linalg.norm(first), second / np.linalg.norm(second)
    ours = slerp({"w": torch.tensor(first)}, {"w": torch.tensor(second)}, t=t)["w"]
    np.testing.assert_allclose(ours, geometric_slerp(first, second, t), atol=1e-13)


def test_quarter_of_a_circle_by_hand():
    fused = slerp({"w": torch.tensor([[2.0], [0.0]])}, {"w": torch.tensor([[0.0], [4.0]])}, t=1 / 3)
    torch.testing.assert_close(fused["w"], torch.tensor([[2 * math.sqrt(0.75)], [4 * 0.5]]))


def test_t_is_the_share_of_the_second_model():
    near = slerp({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}, t=0.9)["w"]
    assert near[1] > near[0]


def test_it_does_not_jump_where_the_arc_becomes_a_line():
    first = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for cosine in (0.99949, 0.99951):
        second = torch.tensor([cosine, math.sqrt(1 - cosine**2)], dtype=torch.float64)
        norm = float(slerp({"w": first}, {"w": second}, t=0.5)["w"].norm())
        assert norm == pytest.approx(1.0, abs=1.3e-4)


@pytest.mark.parametrize("second", [[-1.0, -2.0], [-3.0, -6.0], [-1.001, -2.0]])
def test_opposite_tensors_are_refused_by_name(second):
    models = [{"net.w": torch.tensor(value)} for value in ([1.0, 2.0], second)]
    with pytest.raises(
        ValueError, match=r"net\.w must not point opposite ways .* Slerp\(t=0.5\), got a cosine of -"
    ):
        slerp(*models, t=0.5)


def test_what_has_no_arc_is_interpolated_linearly():
    first = {"one": torch.tensor([-1.0]), "scalar": torch.tensor(2.0), "zero": torch.zeros(2)}
    second = {"one": torch.tensor([3.0]), "scalar": torch.tensor(-2.0), "zero": torch.tensor([4.0, 8.0])}
    fused = slerp(first, second, t=0.25)
    assert fused["one"].tolist() == [0.0] and fused["scalar"] == 1.0 and fused["zero"].tolist() == [1.0, 2.0]


def test_large_halves_neither_overflow_nor_lose_their_direction():
    first, second = torch.full((1000,), 300.0).half(), torch.full((1000,), 300.0).half()
    second[:500] = -300.0
    torch.testing.assert_close(
        slerp({"w": first}, {"w": second}, t=0.5)["w"].float()[[0, 999]],
        torch.tensor([0.0, 600 * math.sqrt(0.5)]),
        atol=0.2,
        rtol=0,
    )


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
def test_t_must_be_a_share(t):
    with pytest.raises(ValueError, match="t must"):
        Slerp(t)


def test_there_must_be_two():
    with pytest.raises(ValueError, match=r"models must be 2 for Slerp\(t=0.5\), got 3"):
        Slerp(0.5).fuse([{"w": torch.ones(2)}] * 3)
