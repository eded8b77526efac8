"""Labels drawn from predictions, and BatchNorm where there is one sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_tricks import fisher_information
from lightning_tricks.objectives.single_samples import loss_of_single_samples, with_drawn_labels


class Bias(nn.Module):
    """The same logits for each sample and place."""

    def __init__(self, odds: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(odds).log())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.view(1, -1, *[1] * (x.ndim - 1)).expand(x.shape[0], -1, *x.shape[1:])


@pytest.mark.parametrize("shape", [(20_000,), (100, 200)])
def test_labels_are_drawn_from_the_predictions(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.zeros(shape)
    same, labels = with_drawn_labels(Bias([0.7, 0.2, 0.1]), (x, torch.zeros(shape, dtype=torch.int32)))
    assert same is x
    assert labels.shape == shape
    assert labels.dtype == torch.int32
    shares = torch.bincount(labels.flatten()) / labels.numel()
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.2, 0.1]), rtol=0, atol=0.015)


def test_with_them_the_fisher_information_is_the_true_one() -> None:
    """Of the logits of a softmax it is p (1 - p), whatever the labels of the data."""
    torch.manual_seed(0)
    module = Bias([0.7, 0.2, 0.1])
    batch = with_drawn_labels(module, (torch.zeros(20_000), torch.zeros(20_000, dtype=torch.long)))
    found = fisher_information(module, [batch], lambda net, pair: cross_entropy(net(pair[0]), pair[1]))
    torch.testing.assert_close(found["logits"], torch.tensor([0.21, 0.16, 0.09]), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.zeros(4), "pairs of inputs and class labels"),
        ((torch.zeros(4), torch.zeros(4)), "pairs of inputs and class labels"),
        ((torch.zeros(4), torch.zeros(4, 2, dtype=torch.long)), r"shape \(4, 2\), got \(4, 2\)"),
    ],
)
def test_batches_without_class_labels_are_refused(batch: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        with_drawn_labels(Bias([0.5, 0.5]), batch)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False).eval()])
def test_statistics_of_one_sample_are_refused(norm: nn.Module) -> None:
    module = nn.Sequential(norm)
    loss = loss_of_single_samples(lambda net, x: net(x).sum())
    with pytest.raises(ValueError, match="BatchNorm must use running statistics .* got '0'"):
        loss(module, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="BatchNorm must use running statistics"):
        loss(module, torch.zeros(1, 2, 3))
