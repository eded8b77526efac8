"""Penalties against derivatives worked by hand, finite differences and samples one by one."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest
from torch import nn

from lightning_tricks import R1, R2, GradientPenalty
from lightning_tricks.objectives.critic_penalties import between, clip_weights_, slopes
from lightning_tricks.recipes.gan_pair import Critic


def linear(weight):
    """Return a critic whose slope is the norm of ``weight`` everywhere."""
    return lambda samples: (samples.flatten(1) * weight).sum(1)


REAL, FAKE = torch.zeros(4, 1, 1, 2), torch.ones(4, 1, 1, 2)
STEEP, FLAT = linear(torch.tensor([3.0, 4.0])), linear(torch.tensor([0.3, 0.4]))


@pytest.mark.parametrize(
    ("penalty", "judge", "expected"),
    [
        (GradientPenalty(), STEEP, 10 * 16.0),
        (GradientPenalty(), FLAT, 10 * 0.25),
        (GradientPenalty(2.0, target=3.0), STEEP, 2 * 4.0),
        (GradientPenalty(one_sided=True), STEEP, 160.0),
        (GradientPenalty(one_sided=True), FLAT, 0.0),
        (R1(), STEEP, 10 / 2 * 25.0),
        (R2(4.0), FLAT, 4 / 2 * 0.25),
        (R1(1.0, every=16), STEEP, 16 * 25.0 / 2),
    ],
)
def test_terms_by_hand(penalty, judge, expected):
    assert penalty.term(judge, REAL, FAKE).item() == pytest.approx(expected)


def test_where_the_slope_is_taken():
    """Of x^2 / 2 it is |x|: 0 at the real samples, sqrt 2 at the fake ones, and between them in between."""

    def judge(samples):
        return samples.flatten(1).square().sum(1) / 2

    assert R1(2.0).term(judge, REAL, FAKE).item() == 0.0
    assert R2(2.0).term(judge, REAL, FAKE).item() == pytest.approx(2.0)
    real, fake = torch.zeros(4000, 1), torch.ones(4000, 1)
    found = slopes(judge, between(real, fake, torch.Generator().manual_seed(0)))
    assert kstest(found.detach().numpy(), "uniform").pvalue > 0.01  # a draw of its own for each sample
    penalty = GradientPenalty(1.0).penalty(judge, real, fake, torch.Generator().manual_seed(0))
    torch.testing.assert_close(penalty, (1 - found).square().mean())


def test_all_entries_of_a_point_share_a_draw():
    points = between(torch.zeros(3, 2, 4), torch.ones(3, 2, 4), torch.Generator().manual_seed(0))
    assert (points.flatten(1).std(1) == 0).all() and points[:, 0, 0].unique().numel() == 3


def test_the_gradient_by_the_weights_is_that_of_finite_differences():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    real, fake = torch.randn(5, 3).double(), torch.randn(5, 3).double()

    def term(weight):
        return GradientPenalty(1.0).term(
            lambda x: torch.func.functional_call(critic, {"0.weight": weight}, (x,)),
            real,
            fake,
            torch.Generator().manual_seed(1),
        )

    assert torch.autograd.gradcheck(term, critic[0].weight.detach().requires_grad_())


def test_slopes_are_those_of_samples_one_by_one():
    torch.manual_seed(0)
    critic, images = Critic(width=4), torch.rand(3, 1, 8, 8)
    alone = [torch.autograd.functional.jacobian(critic, image[None]).norm() for image in images]
    torch.testing.assert_close(slopes(critic, images), torch.stack(alone))


def test_no_slope_has_a_gradient():
    scale = torch.zeros(2, requires_grad=True)
    (gradient,) = torch.autograd.grad(R1(1.0).term(linear(scale), REAL, FAKE), scale)
    assert torch.equal(gradient, torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_it(dtype):
    torch.manual_seed(0)
    critic, images = Critic(width=4), torch.rand(3, 1, 8, 8)
    with torch.autocast("cpu", dtype=dtype):
        found = slopes(critic, images)
    assert torch.equal(found, slopes(critic, images))


def test_lazy_terms_are_due_every_so_often():
    assert [R1(every=3).due(step) for step in range(5)] == [True, False, False, True, False]


def test_weights_are_clipped_in_place():
    layer = nn.Linear(10, 10)
    before = layer.weight.detach().clone()
    clip_weights_(layer.parameters(), limit=0.01)
    assert torch.equal(layer.weight, before.clamp(-0.01, 0.01)) and layer.weight.abs().max() <= 0.01


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GradientPenalty(0.0), r"weight must lie in \(0.0, "),
        (lambda: R1(every=0), "every must be at least 1, got 0"),
        (lambda: GradientPenalty(target=-1.0), r"target must lie in \(0.0, "),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
