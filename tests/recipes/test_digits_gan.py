"""The GAN of digits: its data, what its scores measure, and that it learns to draw."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_tricks import EMAWeights
from lightning_tricks.recipes.digits import QUIET
from lightning_tricks.recipes.digits_gan import (
    DigitReader,
    DigitsGAN,
    DigitsInRange,
    digit_scores,
    frechet_distance,
    trained_reader,
)


def test_pixels_lie_in_the_range_of_tanh_and_are_the_digits():
    from sklearn.datasets import load_digits

    data = DigitsInRange(training=1000)
    data.setup("fit")
    images = torch.cat([data.train_set.tensors[0], data.val_set.tensors[0]])
    expected = torch.from_numpy(load_digits().images).float() / 8 - 1
    assert images.min() == -1.0 and images.max() == 1.0
    # In another order.
    torch.testing.assert_close(images.flatten().sort().values, expected.flatten().sort().values)


def test_the_distance_is_that_of_scipy():
    torch.manual_seed(0)
    first, second = torch.randn(50, 4), 2 * torch.randn(60, 4) @ torch.randn(4, 4) + 1
    covariances = [torch.cov(each.T.double()).numpy() for each in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    means = (first.double().mean(0) - second.double().mean(0)).square().sum().item()
    expected = means + (covariances[0] + covariances[1] - 2 * root).trace()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-6)


def test_scores_by_hand():
    """A reader that sees the digit in the first ten pixels, sure of it if the pixel is bright."""
    reader = DigitReader()
    reader.features, reader.head = nn.Flatten(), nn.Linear(64, 10, bias=False)
    with torch.no_grad():
        reader.head.weight.copy_(torch.eye(10, 64) * 8)
    samples = torch.zeros(100, 1, 8, 8)
    samples.view(100, 64)[:50, 0] = 1.0  # e^8 / (e^8 + 9) = 0.997
    samples.view(100, 64)[50:99, 1] = 0.5  # e^4 / (e^4 + 9) = 0.858
    samples.view(100, 64)[99, 2] = 1.0
    found = digit_scores(reader, samples, samples)
    assert found["recognised"] == pytest.approx(0.51)
    assert found["digits"] == 2.0
    assert found["frechet"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.slow
def test_it_learns_to_draw_and_logs_its_scores():
    torch.manual_seed(0)
    data = DigitsInRange(training=1200)
    reader = trained_reader(data)
    gan = DigitsGAN(reader)
    assert not any("reader" in name for name in gan.state_dict())
    average = EMAWeights(decay=0.99, params="generator")
    trainer = Trainer(max_epochs=20, check_val_every_n_epoch=20, callbacks=[average], **QUIET)
    trainer.validate(gan, data, verbose=False)
    before = dict(trainer.callback_metrics)
    trainer.fit(gan, data)
    after = trainer.callback_metrics
    assert before["digits"] <= 2 and before["frechet"] > 50
    assert after["recognised"] > 0.6 and after["digits"] == 10 and after["frechet"] < 10
