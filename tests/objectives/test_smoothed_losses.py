"""Smoothed labels and the losses on them, beside torch, scipy, scikit-learn and cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax
from scipy.stats import entropy
from sklearn.preprocessing import label_binarize

from lightning_tricks import smooth_labels, smoothed_binary_cross_entropy, smoothed_cross_entropy

GENERATOR = torch.Generator().manual_seed(0)


def logits_of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def labels_of(classes: int, *shape: int) -> torch.Tensor:
    return torch.randint(classes, shape, generator=GENERATOR)


SHAPES = {
    "vector": ((7, 4), (7,)),
    "text": ((3, 4, 5), (3, 5)),
    "segmentation": ((2, 4, 3, 5), (2, 3, 5)),
    "volume": ((2, 4, 2, 3, 2), (2, 2, 3, 2)),
    "one": ((4,), ()),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_torchs_to_the_bit(shapes, weighted, reduction, soft):
    logits = logits_of(*shapes[0])
    target = logits_of(*shapes[0]).softmax(min(1, logits.ndim - 1)) if soft else labels_of(4, *shapes[1])
    weight = torch.tensor([0.1, 3.0, 1.0, 0.5]).double() if weighted else None
    if not soft and target.ndim:
        target.flatten()[1] = -100
    for smoothing in (0.0, 0.1, 1.0):
        options = {"weight": weight, "reduction": reduction}
        ours = smoothed_cross_entropy(logits, target, smoothing=smoothing, **options)
        assert torch.equal(ours, F.cross_entropy(logits, target, label_smoothing=smoothing, **options))


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_smoothed_labels_give_the_same_loss(shapes):
    logits, target = logits_of(*shapes[0]), labels_of(4, *shapes[1])
    smooth = smooth_labels(target, smoothing=0.2, classes=4).double()
    assert smooth.shape == logits.shape
    torch.testing.assert_close(smooth.sum(min(1, logits.ndim - 1)), torch.ones_like(target).double())
    torch.testing.assert_close(
        F.cross_entropy(logits, smooth), smoothed_cross_entropy(logits, target, smoothing=0.2)
    )


def test_ignored_labels_add_nothing_and_weights_count_as_written_out():
    logits, target, weight = logits_of(6, 3), labels_of(3, 6), torch.tensor([0.2, 2.0, 5.0]).double()
    target[[1, 4]] = 7
    ours = smoothed_cross_entropy(logits, target, smoothing=0.3, weight=weight, ignore_index=7)
    total = mass = 0.0
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        if label != 7:
            shares = [0.1 + 0.7 * (label == k) for k in range(3)]
            total -= sum(s * w * p for s, w, p in zip(shares, weight.tolist(), log_softmax(row), strict=True))
            mass += weight[label].item()
    assert ours.item() == pytest.approx(total / mass, rel=1e-12)
    without = smoothed_cross_entropy(logits[target != 7], target[target != 7], smoothing=0.3, weight=weight)
    torch.testing.assert_close(ours, without)


def test_labels_worked_out_by_hand():
    labels = torch.tensor([2, 0, 1, 1])
    expected = torch.from_numpy(label_binarize(labels, classes=[0, 1, 2])) * 0.85 + 0.05
    torch.testing.assert_close(smooth_labels(labels, smoothing=0.15, classes=3), expected.float())
    mixed = torch.tensor([[0.5, 0.5, 0.0]])
    torch.testing.assert_close(
        smooth_labels(mixed, smoothing=0.3, classes=3), torch.tensor([[0.45, 0.45, 0.1]])
    )
    assert smooth_labels(labels[:0], classes=3).shape == (0, 3)
    assert torch.equal(smooth_labels(labels, smoothing=1.0, classes=4), torch.full((4, 4), 0.25))


def test_the_floor_is_the_entropy_of_the_smoothed_label():
    target = torch.tensor([3])
    floor = entropy([0.91] + [0.01] * 9)
    assert floor == pytest.approx(0.50, abs=5e-3)  # as the card says
    best = smooth_labels(target, smoothing=0.1, classes=10).log()
    assert smoothed_cross_entropy(best, target, smoothing=0.1).item() == pytest.approx(floor, rel=1e-6)


def test_binary_labels_are_two_classes():
    logits, target = logits_of(8), labels_of(2, 8)
    two = torch.stack([torch.zeros(8).double(), logits], 1)
    for smoothing in (0.0, 0.2):
        ours = smoothed_binary_cross_entropy(logits, target.double(), smoothing=smoothing)
        torch.testing.assert_close(ours, F.cross_entropy(two, target, label_smoothing=smoothing))
    plain = {"weight": logits_of(8).abs(), "pos_weight": torch.tensor(3.0), "reduction": "sum"}
    ours = smoothed_binary_cross_entropy(logits, target.double(), smoothing=0.0, **plain)
    assert torch.equal(ours, F.binary_cross_entropy_with_logits(logits, target.double(), **plain))
    # However many labels there are at once: the divisor is the number of classes, never that of entries.
    several = smoothed_binary_cross_entropy(torch.zeros(2, 5), torch.ones(2, 5), smoothing=0.2)
    assert several.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: smooth_labels(torch.tensor([0, 3]), classes=3),
            "labels must hold classes from 0 to 2, got 3",
        ),
        (lambda: smooth_labels(torch.tensor([0, -100]), classes=3), "from 0 to 2, got -100"),
        (lambda: smooth_labels(torch.rand(4, 3), classes=5), r"5 classes in axis 1, got shape \(4, 3\)"),
        (lambda: smooth_labels(torch.tensor([True]), classes=2), "got torch.bool"),
        (lambda: smooth_labels(torch.tensor([0]), smoothing=1.5, classes=2), "smoothing must lie in"),
        (lambda: smooth_labels(torch.tensor([0]), classes=1), "classes must be at least 2"),
        (
            lambda: smoothed_cross_entropy(torch.zeros(2, 3, 4), torch.full((2, 4), 3)),
            "target must hold classes from 0 to 2, got 3",
        ),
        (lambda: smoothed_cross_entropy(torch.zeros(2, 3), torch.tensor([1, -1])), "got -1"),
        (lambda: smoothed_cross_entropy(torch.zeros(2, 3), torch.tensor([1, 1]), smoothing=-1), "smoothing"),
        (lambda: smoothed_binary_cross_entropy(torch.zeros(2), torch.tensor([True, False])), "torch.bool"),
        (
            lambda: smoothed_binary_cross_entropy(torch.zeros(2), torch.tensor([0, 1])),
            "floating, got torch.int",
        ),
        (
            lambda: smoothed_binary_cross_entropy(torch.zeros(2), torch.tensor([0.0, 2.0])),
            r"labels must be probabilities, in \[0, 1\], got 2.0",
        ),
        (lambda: smooth_labels(torch.tensor([[-0.5, 1.5]]), classes=2), "in .0, 1., got -0.5"),
        (lambda: smooth_labels([0, 1], classes=2), "labels must be a tensor, got list"),
    ],
)
def test_bad_labels_have_named_errors(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
