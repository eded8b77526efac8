"""The strategies beside slow twins in the papers' notation, and cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_tricks import (
    DynamicWeightAverage,
    FixedWeights,
    GradNorm,
    MagnitudeBalance,
    RandomWeights,
    UncertaintyBalance,
)
from lightning_tricks.objectives.balancing import Balancing
from lightning_tricks.objectives.grad_norm import grad_norm_step, norms_of, task_gradients
from lightning_tricks.objectives.loss_balance import Moment
from lightning_tricks.objectives.uncertainty_balance import uncertainty_loss
from lightning_tricks.objectives.value_balances import random_weights
from tests.toys import assert_equal


def weights_over(strategy, losses, *, norms=None, epoch_length=4):
    """Return the weights at each step for ``losses``, shape (steps, losses), one batch per step."""
    run, found = Balancing(tuple("abc"[: losses.shape[1]])), []
    for step, each in enumerate(losses):
        run.open(strategy, stamp=step, epoch=step // epoch_length)
        run.see(strategy, each, None if norms is None else norms[step], batch=step)
        found.append(strategy.weigh(run.moment(None)))
    return torch.stack(found)


LOSSES = torch.rand(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double) + 0.1


def test_magnitude_is_one_over_adams_corrected_mean():
    found = weights_over(MagnitudeBalance(decay=0.9), LOSSES)
    torch.testing.assert_close(found[0], 1 / LOSSES[0])
    for loss in range(3):
        m = 0.0
        for t in range(1, 20):
            m = 0.9 * m + 0.1 * LOSSES[t - 1, loss].item()
            assert found[t, loss].item() == pytest.approx((1 - 0.9**t) / m, rel=1e-12)


def test_magnitude_of_a_loss_that_is_0_stays_finite():
    found = weights_over(MagnitudeBalance(decay=0.0), torch.tensor([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]))
    assert found.isfinite().all()
    assert found[2].tolist() == [pytest.approx(1e12), 0.5]


def test_dynamic_weights_are_those_of_the_paper():
    found = weights_over(DynamicWeightAverage(temperature=1.5), LOSSES)
    assert torch.equal(found[:8], torch.ones(8, 3).double())
    for step in range(8, 20):
        last, before = (
            [sum(LOSSES[step // 4 * 4 - 4 * back + i, k].item() for i in range(4)) / 4 for k in range(3)]
            for back in (1, 2)
        )
        powers = [math.exp(last[k] / before[k] / 1.5) for k in range(3)]
        expected = [3 * power / sum(powers) for power in powers]
        assert found[step].tolist() == pytest.approx(expected, rel=1e-12)


def test_dynamic_weights_of_losses_that_fall_hardly_differ():
    falling = torch.rand(200, 3, generator=torch.Generator().manual_seed(3))
    for last in falling:
        weights = DynamicWeightAverage().weigh(moment(last, torch.ones(3)))
        assert weights.mean().item() == pytest.approx(1.0)
        assert weights.max() / weights.min() <= math.exp(0.5) * (1 + 1e-6)
    assert torch.equal(DynamicWeightAverage().weigh(moment(torch.ones(3), torch.zeros(3))), torch.ones(3))


def moment(last, before):
    return Moment(("a", "b", "c"), 0, {"last": last, "before": before}, {}, None)


def test_random_weights_are_those_of_the_paper_times_their_number_and_follow_from_the_step():
    draws = torch.stack([random_weights(3, torch.Generator().manual_seed(s)) for s in range(4000)])
    normal = torch.randn(100_000, 3, generator=torch.Generator().manual_seed(5)).double()
    expected = 3 * normal.exp() / normal.exp().sum(1, keepdim=True)
    torch.testing.assert_close(draws.mean(0), torch.ones(3).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(draws.std(0), expected.std(0), rtol=0.05, atol=0)
    first, second = weights_over(RandomWeights(seed=1), LOSSES), weights_over(RandomWeights(seed=2), LOSSES)
    assert torch.equal(first, weights_over(RandomWeights(seed=1), LOSSES * 2))
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])


@pytest.mark.parametrize(("kind", "at_best"), [("regression", 3.0), ("classification", 6.0)])
def test_uncertainty_is_best_where_the_variance_is_the_loss(kind, at_best):
    strategy = UncertaintyBalance({"a": kind}, start=0.0)
    s, loss = nn.Parameter(torch.zeros(1)), torch.tensor([3.0])
    run = Balancing(("a",))
    run.see(strategy, loss, None, batch=0)
    optimizer = torch.optim.SGD([s], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        strategy.learning_term(run.moment(s), loss).backward()
        optimizer.step()
    assert s.exp().item() == pytest.approx(at_best, rel=1e-4)
    # At the best, the weighted loss is 1/2 whatever the loss.
    assert (strategy.weigh(run.moment(s)) * loss).item() == pytest.approx(0.5, rel=1e-4)


def test_uncertainty_is_the_likelihood_of_a_gaussian():
    s = torch.tensor([0.3, -1.0], dtype=torch.double)
    errors = torch.tensor([0.7, -0.2], dtype=torch.double)
    likelihood = torch.distributions.Normal(0.0, (s / 2).exp()).log_prob(errors).sum()
    found = uncertainty_loss(errors**2, s, torch.tensor([0.5, 0.5]).double())
    assert found.item() == pytest.approx(-likelihood.item() - math.log(2 * math.pi), rel=1e-12)


def test_uncertainty_starts_at_the_logarithm_of_the_first_losses():
    kinds = {"a": "regression", "b": "classification"}
    first = torch.tensor([1e4, 0.5])
    run = Balancing(("a", "b"))
    strategy = UncertaintyBalance(kinds)
    run.see(strategy, first, None, batch=0)
    assert (strategy.weigh(run.moment(torch.zeros(2))) * first).tolist() == pytest.approx([0.5, 1.0])
    run = Balancing(("a", "b"))
    fixed = UncertaintyBalance(kinds, start=math.log(4.0))
    run.see(fixed, first, None, batch=0)
    assert fixed.weigh(run.moment(torch.zeros(2))).tolist() == pytest.approx([0.125, 0.25])


def grad_norm_twin(norms, losses, alpha, lr):
    """Algorithm 1 with the descent on the logarithm of w, with autograd doing the derivative."""
    count = len(norms[0])
    w = [1 / n for n in norms[0].tolist()]
    w = [count * each / sum(w) for each in w]
    yield w
    for step in range(len(norms) - 1):
        log_w = torch.tensor([math.log(each) for each in w], dtype=torch.double, requires_grad=True)
        g = log_w.exp() * norms[step]
        mean = g.mean().item()
        progress = [losses[step, i].item() / losses[0, i].item() for i in range(count)]
        r = [each / (sum(progress) / count) for each in progress]
        gaps = [g[i] - mean * r[i] ** alpha for i in range(count)]
        # Without those that rounding alone keeps from 0, as all of them at first.
        objective = sum((gap.abs() for gap in gaps if abs(gap.item()) > 1e-5 * mean), 0 * g.sum())
        (slope,) = torch.autograd.grad(objective, log_w)
        w = [math.exp(x) for x in (log_w - lr * slope / mean).tolist()]
        w = [count * each / sum(w) for each in w]
        yield w


def test_grad_norm_equals_its_twin():
    norms = torch.rand(20, 3, generator=torch.Generator().manual_seed(1)).double() + 0.2
    found = weights_over(GradNorm("x", alpha=0.7, lr=0.1), LOSSES, norms=norms)
    expected = torch.tensor(list(grad_norm_twin(norms, LOSSES, 0.7, 0.1)), dtype=torch.double)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert not torch.equal(found[1], found[19])


def test_grad_norm_keeps_its_weights_where_a_norm_is_none():
    weights = torch.tensor([0.5, 1.5])
    for norms in (torch.tensor([1.0, torch.inf]), torch.tensor([torch.nan, 1.0]), torch.zeros(2)):
        assert torch.equal(grad_norm_step(weights, norms, torch.ones(2), alpha=1.0, lr=0.1), weights)


def test_task_gradients_are_those_of_a_backward_pass_for_each():
    trunk, heads = nn.Linear(3, 4), (nn.Linear(4, 1), nn.Linear(4, 1))
    shared = [*trunk.parameters()]
    hidden = trunk(torch.randn(5, 3))
    losses = [head(hidden).square().mean() for head in heads] + [heads[0].weight.sum(), torch.tensor(1.0)]
    found = task_gradients(losses, shared)
    norms = []
    for index, loss in enumerate(losses[:2]):
        trunk.zero_grad()
        loss.backward(retain_graph=True)
        assert_equal([p.grad for p in shared], found[2 * index : 2 * index + 2])
        norms.append(torch.cat([p.grad.flatten() for p in shared]).norm())
    assert not any(each.any() for each in found[4:])
    torch.testing.assert_close(norms_of(found, 4), torch.stack([*norms, torch.zeros(()), torch.zeros(())]))


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda: FixedWeights([1.0]), "weights must be weights by the names of losses"),
        (lambda: FixedWeights({"a": -1.0}), r"weights\['a'\] must lie in \[0.0, inf\), got -1.0"),
        (lambda: MagnitudeBalance(decay=1.0), r"decay must lie in \[0.0, 1.0\), got 1.0"),
        (lambda: DynamicWeightAverage(temperature=0), "temperature must lie in"),
        (lambda: RandomWeights(seed=-1), "seed must be at least 0"),
        (lambda: UncertaintyBalance({}), "kinds must be the kind of each loss"),
        (lambda: UncertaintyBalance({"a": "regresion"}), "did you mean 'regression'"),
        (lambda: UncertaintyBalance({"a": "regression"}, start=1e3), "start must lie in"),
        (lambda: GradNorm("trunk", alpha=-1), "alpha must lie in"),
        (lambda: GradNorm("trunk", lr=0), "lr must lie in"),
        (lambda: GradNorm(3), "params must hold name patterns"),
    ],
)
def test_bad_settings_are_named(build, error):
    with pytest.raises((TypeError, ValueError), match=error):
        build()
