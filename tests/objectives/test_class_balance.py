"""Weights beside scikit-learn's, and draws counted; over processes through Lightning's own wrapper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.trainer.connectors.data_connector import _get_distributed_sampler
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_tricks import balanced_sampler, class_weights

LABELS = torch.tensor([0] * 700 + [1] * 250 + [2] * 50)[torch.randperm(1000)]


@pytest.mark.parametrize("kind", [torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.int])
def test_weights_are_those_of_scikit_learn(kind):
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    torch.testing.assert_close(class_weights(kind(LABELS)), torch.from_numpy(expected).float())


def test_pixels_count_each_and_ignored_ones_do_not():
    masks = LABELS.reshape(10, 10, 10).clone()
    masks[0] = -100
    expected = compute_class_weight("balanced", classes=np.arange(3), y=masks[1:].flatten().numpy())
    torch.testing.assert_close(class_weights(masks), torch.from_numpy(expected).float())
    torch.testing.assert_close(class_weights(masks[1:], ignore_index=7), class_weights(masks))


def test_each_class_has_the_same_part_in_a_weighted_loss():
    weight = class_weights(LABELS)
    each = cross_entropy(torch.zeros(1000, 3), LABELS, weight=weight, reduction="none")
    parts = torch.stack([each[k == LABELS].sum() for k in range(3)])
    torch.testing.assert_close(parts, parts.mean().expand(3))
    assert weight[LABELS].mean().item() == pytest.approx(1.0)


def test_draws_are_balanced_and_others_in_each_epoch_and_the_same_in_each_run():
    runs = []
    for _ in range(2):
        loader = DataLoader(LABELS, 100, sampler=balanced_sampler(LABELS, num_samples=6000))
        runs.append([torch.cat(list(loader)) for _ in range(2)])
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(*runs[0])
    # Five standard deviations of 2000 draws in 6000.
    assert (runs[0][0].bincount() - 2000).abs().max().item() < 5 * (6000 * 2 / 9) ** 0.5
    assert len(balanced_sampler(LABELS)) == 1000


def test_processes_take_shares_of_one_list():
    shares = []
    for rank in range(2):
        loader = DataLoader(LABELS, 100, sampler=balanced_sampler(LABELS, seed=3))
        sampler = _get_distributed_sampler(loader, True, 0, num_replicas=2, rank=rank)
        assert isinstance(sampler, DistributedSamplerWrapper)
        shares.append(list(sampler))
    assert sorted(shares[0] + shares[1]) == sorted(balanced_sampler(LABELS, seed=3))
    for share in shares:
        assert LABELS[share].bincount().min().item() > 120  # of 500, a third each


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: class_weights([0, 2]), "labels must hold every class, got none of 1 of 3"),
        (lambda: class_weights([0, 1], classes=4), "got none of 2, 3 of 4"),
        (lambda: class_weights([0, 3], classes=3), "classes from 0 to 2, got 3"),
        (lambda: class_weights([0, -1]), "got -1"),
        (lambda: class_weights([]), "labels must be whole numbers, got torch.float32"),
        (lambda: class_weights(torch.tensor([], dtype=torch.int64)), "at least one of a class, got none"),
        (lambda: class_weights([-100, -100]), "at least one of a class, got none"),
        (lambda: class_weights(["cat", "dog"]), "labels must be whole numbers, got list: give"),
        (lambda: class_weights(DataLoader([0, 1])), r"got DataLoader: give .* data\.train_set\.targets"),
        (lambda: class_weights([0.0, 1.0]), "whole numbers, got torch.float32"),
        (lambda: balanced_sampler([True, False]), "whole numbers, got torch.bool"),
        (lambda: balanced_sampler([0, -100]), "got -100"),
        (lambda: balanced_sampler(torch.zeros(2, 2, dtype=torch.int64)), r"one for each .* got \(2, 2\)"),
        (lambda: balanced_sampler([0, 1], num_samples=0), "num_samples must be at least 1"),
        (lambda: balanced_sampler(torch.zeros(1, dtype=torch.int64).expand(2**24 + 1)), "at most 16777216"),
    ],
)
def test_bad_labels_have_named_errors(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
