"""Losses against cases worked by hand, torch's own, and searches for the best critic."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from lightning_tricks import Hinge, LeastSquares, NoisyLabels, NonSaturating, Wasserstein

REAL, FAKE = torch.tensor([2.0, -1.0]), torch.tensor([-3.0, 0.5])
LOSSES = [NonSaturating(), Hinge(), LeastSquares(), Wasserstein()]


def test_losses_by_hand():
    # -log of a probability is that of a logistic function; the means are of two samples each.
    def nats(score, real):
        probability = 1 / (1 + math.exp(-score))
        return -math.log(probability if real else 1 - probability)

    worked = (nats(2, True) + nats(-1, True)) / 2 + (nats(-3, False) + nats(0.5, False)) / 2
    assert NonSaturating().critic(REAL, FAKE).item() == pytest.approx(worked)
    assert NonSaturating().generator(FAKE).item() == pytest.approx((nats(-3, True) + nats(0.5, True)) / 2)
    assert Hinge().critic(REAL, FAKE).item() == (0 + 2) / 2 + (0 + 1.5) / 2
    assert Hinge().generator(FAKE).item() == 1.25
    assert LeastSquares().critic(REAL, FAKE).item() == (1 + 4) / 4 + (9 + 0.25) / 4
    assert LeastSquares().generator(FAKE).item() == (16 + 0.25) / 4
    assert Wasserstein().critic(REAL, FAKE).item() == -1.25 - 0.5
    assert Wasserstein().generator(FAKE).item() == 1.25


def test_the_cross_entropy_is_that_of_probabilities():
    labels = torch.tensor([0.9, 0.7]), torch.tensor([0.1, 0.0])
    expected = F.binary_cross_entropy(REAL.sigmoid(), labels[0]) + F.binary_cross_entropy(
        FAKE.sigmoid(), labels[1]
    )
    torch.testing.assert_close(NonSaturating().critic(REAL, FAKE, labels), expected)


def test_a_label_above_one_is_finite_and_goes_on_pulling():
    score = torch.tensor([50.0], requires_grad=True)
    loss = NonSaturating().critic(score, torch.tensor([-50.0]), (torch.tensor([1.2]), 0.0))
    assert loss.item() == pytest.approx(50 - 1.2 * 50)
    (slope,) = torch.autograd.grad(loss, score)
    assert slope.item() == pytest.approx(1 - 1.2)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_labels_of_a_sample_are_those_of_all_its_scores(loss):
    """A critic of patches gives several scores a sample; equal ones make no difference."""
    labels = torch.tensor([1.1, 0.8]), torch.tensor([0.2, 0.0])
    patches = [scores[:, None, None].expand(2, 3, 4) for scores in (REAL, FAKE)]
    torch.testing.assert_close(loss.critic(*patches, labels), loss.critic(REAL, FAKE, labels))


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_widened(loss):
    for found in (loss.critic(REAL.half(), FAKE.half()), loss.generator(FAKE.half())):
        assert found.dtype == torch.float32
    assert loss.generator(FAKE.double()).dtype == torch.float64


def test_the_floor_of_the_usual_soft_labels_is_as_the_literature_has_it():
    assert NonSaturating().floor(NoisyLabels()) == pytest.approx(0.62, abs=0.005)
    assert NonSaturating().floor(None) == Hinge().floor(None) == LeastSquares().floor(None) == 0.0
    assert Wasserstein().floor(None) is None


@pytest.mark.parametrize("loss", [NonSaturating(), LeastSquares()])
@pytest.mark.parametrize(
    "labels", [None, NoisyLabels(), NoisyLabels((0.8, 1.0), fake=(0.0, 0.1), flipped=0.1)]
)
def test_floor_and_blind_loss_are_the_least_that_a_search_finds(loss, labels):
    drawn = (1.0, 0.0) if labels is None else labels.draw(200_000, torch.Generator().manual_seed(0))

    def value(scores):
        # The loss is a mean over samples that differ in labels only, of scores that do not.
        score = [torch.full((1 if labels is None else 200_000,), float(s)) for s in scores]
        return loss.critic(*score, drawn).item()

    best = minimize(value, [0.5, -0.5], method="Nelder-Mead", options={"maxiter": 60}).fun
    assert best == pytest.approx(loss.floor(labels), abs=0.01)
    best = minimize(lambda s: value([s[0], s[0]]), [0.3], method="Nelder-Mead", options={"maxiter": 25}).fun
    assert best == pytest.approx(loss.blind(labels), abs=0.01)


def test_labels_lie_in_their_ranges_and_some_are_exchanged():
    real, fake = NoisyLabels().draw(20_000, torch.Generator().manual_seed(1))
    assert real.min() >= 0.7 and real.max() <= 1.2 and real.max() > 1.19
    assert fake.min() >= 0.0 and fake.max() <= 0.3
    labels = NoisyLabels(flipped=0.2)
    for found, mean, variance in zip(
        labels.draw(200_000, torch.Generator().manual_seed(1)), labels.means, labels.variances, strict=True
    ):
        assert found.mean().item() == pytest.approx(mean, abs=0.003)
        assert found.var().item() == pytest.approx(variance, abs=0.003)
    real, fake = labels.draw(20_000, torch.Generator().manual_seed(1))
    assert (real < 0.5).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert (fake > 0.5).float().mean().item() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"real": (0.9, 1.3)}, r"means of real and fake labels must lie in \[0, 1\].* got 1.1 and 0.15"),
        ({"real": (0.1, 0.2), "fake": (0.3, 0.4)}, "that of fake below that of real"),
        ({"fake": (0.3, 0.0)}, r"fake must rise from its lower to its upper end, got \(0.3, 0.0\)"),
        ({"real": 0.9}, "real must be the two ends of a range, got 0.9"),
        ({"flipped": 0.5}, r"flipped must lie in \[0.0, 0.5\), got 0.5"),
    ],
)
def test_labels_of_no_use_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        NoisyLabels(**settings)
