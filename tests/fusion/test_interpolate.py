from __future__ import annotations

import pickle

import pytest
import torch

from lightning_tricks.fusion.interpolate import Interpolate, interpolate


def test_alpha_is_the_first_models_share():
    first, second = {"w": torch.tensor([4.0, 8.0])}, {"w": torch.tensor([0.0, 16.0])}
    assert interpolate(first, second, alpha=0.25)["w"].tolist() == [1.0, 14.0]


def test_is_torchs_lerp_the_other_way_round():
    first, second = {"w": torch.randn(100)}, {"w": torch.randn(100)}
    for alpha in (0.1, 0.5, 0.9):
        wanted = torch.lerp(second["w"].double(), first["w"].double(), alpha)
        torch.testing.assert_close(interpolate(first, second, alpha=alpha)["w"].double(), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_its_ends_are_the_models_to_the_bit(dtype):
    first, second = {"w": torch.randn(100).to(dtype)}, {"w": torch.randn(100).to(dtype)}
    assert torch.equal(interpolate(first, second, alpha=1.0)["w"], first["w"])
    assert torch.equal(interpolate(first, second, alpha=0.0)["w"], second["w"])


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_outside_is_refused(alpha):
    for build in (lambda: Interpolate(alpha), lambda: interpolate({}, {}, alpha=alpha)):
        with pytest.raises(ValueError, match=rf"alpha must lie in \[0.0, 1.0\], got {alpha}"):
            build()


def test_policy():
    first, second = {"w": torch.tensor([4.0])}, {"w": torch.tensor([0.0])}
    assert Interpolate(0.75).fuse([first, second])["w"].item() == 3.0
    assert Interpolate(0.75).count == 2
    assert eval(repr(Interpolate(0.5))) == pickle.loads(pickle.dumps(Interpolate(0.5))) == Interpolate(0.5)
    for models in ([first], [first, second, first]):
        with pytest.raises(ValueError, match=f"models must be 2 for .*, got {len(models)}"):
            Interpolate(0.5).fuse(models)
