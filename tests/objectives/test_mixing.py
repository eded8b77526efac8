"""Mixup and CutMix: what is mixed, when, and by which draws."""

from __future__ import annotations

import random
from collections import namedtuple
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from scipy.stats import beta, kstest
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lightning_tricks as lt
from lightning_tricks.objectives.batch_entries import replaced_entries, taken_entry
from lightning_tricks.objectives.cut_mix import cut_box, pasted
from lightning_tricks.objectives.mixed_batches import mixed_labels
from lightning_tricks.objectives.mixup import mix_inputs
from tests.toys import Loader, Toy, assert_equal, trainer, weights

BOTH = [lt.Mixup, lt.CutMix]
VALIDATION = Loader(2, seed=9, fixed=True)


class Sees(Toy):
    """Notes the batches of each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.seen.setdefault(str(self.trainer.state.stage.value), []).append(batch)
        return super().loss(batch)


def test_the_loss_on_mixed_labels_is_the_mean_of_both_losses():
    logits, labels, order = torch.randn(6, 4), torch.randint(4, (6,)), torch.randperm(6)
    mixed = mixed_labels(labels, order, share=0.3, classes=4)
    expected = 0.3 * cross_entropy(logits, labels) + 0.7 * cross_entropy(logits, labels[order])
    torch.testing.assert_close(cross_entropy(logits, mixed), expected)
    inputs = torch.randn(6, 2, 3)
    expected = torch.stack([0.3 * inputs[i] + 0.7 * inputs[j] for i, j in enumerate(order.tolist())])
    torch.testing.assert_close(mix_inputs(inputs, order, share=0.3), expected)


def test_a_box_has_the_area_that_labels_are_told():
    draws, order = random.Random(0), torch.tensor([1, 0])
    for _ in range(200):
        share = draws.random()
        box, kept = cut_box([9, 14], share=share, draws=draws)
        images = torch.stack([torch.zeros(3, 9, 14), torch.ones(3, 9, 14)])
        mixed = pasted(images, order, box=box)
        assert mixed[0].mean().item() == pytest.approx(1 - kept, abs=1e-6)
        assert mixed[1].mean().item() == pytest.approx(kept, abs=1e-6)
        assert kept >= share - 1e-9  # what lies outside is cut off, and sides are whole
    assert cut_box([8, 8], share=1.0, draws=draws)[1] == 1.0
    area = [1 - cut_box([64, 64], share=0.75, draws=draws)[1] for _ in range(500)]
    assert max(area) == 0.25  # a whole box has half of each side


@pytest.mark.parametrize("kind", BOTH)
def test_training_batches_are_mixed_and_others_are_not(kind):
    module = Sees()
    technique = kind(classes=3, alpha=1.0)
    runner = trainer(technique, num_sanity_val_steps=1, max_epochs=2)
    runner.fit(module, Loader(), VALIDATION)
    runner.validate(module, VALIDATION, verbose=False)
    runner.test(module, VALIDATION, verbose=False)
    plain = Sees()
    trainer(max_epochs=2).fit(plain, Loader())
    for (inputs, labels), (own, hard) in zip(module.seen["train"], plain.seen["train"], strict=True):
        assert labels.shape == (8, 3) and inputs.shape == own.shape
        torch.testing.assert_close(labels.sum(1), torch.ones(8))
        torch.testing.assert_close(inputs.sum(0), own.sum(0))  # a permutation keeps what there is in all
        torch.testing.assert_close(labels.sum(0), hard.bincount(minlength=3).float())
    assert all(
        labels.ndim == 1 for stage in module.seen if stage != "train" for _, labels in module.seen[stage]
    )
    assert "on_after_batch_transfer" not in vars(module)


@pytest.mark.parametrize("kind", BOTH)
def test_draws_follow_from_the_seed_and_change_from_batch_to_batch(kind):
    runs = []
    for seed in (0, 0, 1):
        module = Sees()
        trainer(kind(classes=3, alpha=1.0, seed=seed), max_epochs=1).fit(
            module, Loader(fixed=True, batches=4)
        )
        runs.append([labels for _, labels in module.seen["train"]])
    assert all(torch.equal(*pair) for pair in zip(runs[0], runs[1], strict=True))
    assert not any(torch.equal(*pair) for pair in zip(runs[0], runs[2], strict=True))


def test_shares_are_those_of_a_beta_distribution():
    module = Sees()
    trainer(lt.Mixup(classes=3, alpha=0.4), max_epochs=60).fit(module, Loader())
    shares = [part for _, labels in module.seen["train"] if 1 > (part := labels.max(1)[0].min().item()) > 0.5]
    # Folded at a half, which is all that labels tell.
    folded = beta(0.4, 0.4)
    assert kstest(shares, lambda x: 2 * folded.cdf(x) - 1).pvalue > 1e-3


def test_a_part_of_the_batches_is_mixed_along_the_schedule():
    module = Sees()
    mixup = lt.Mixup(classes=3, probability="constant(1.0, over='1 epoch') >> constant(0.0)")
    trainer(mixup, max_epochs=2).fit(module, Loader())
    assert [labels.ndim for _, labels in module.seen["train"]] == [2] * 5 + [1] * 5


def test_batches_of_validation_that_a_method_looks_at_are_not_mixed(tmp_path):
    module = Sees()
    soup = lt.WeightFusion(method=lt.LearnedSoup(), keep="always", update_batchnorm=False)
    trainer(lt.Mixup(classes=3), soup, max_epochs=2, default_root_dir=tmp_path).fit(
        module, Loader(), VALIDATION
    )
    assert [labels.ndim for _, labels in module.seen["train"]].count(2) == 2 * 5


def test_data_of_an_old_task_are_not_mixed_whatever_the_order():
    ends = []
    for order in (1, -1):
        old = lt.ElasticWeightConsolidation(strength=5.0, data=Loader(2, seed=4))
        module = Toy()
        trainer(*[lt.Mixup(classes=3), old][::order], max_epochs=1).fit(module, Loader())
        ends.append(weights(module))
    assert_equal(*ends)


Pair = namedtuple("Pair", ["x", "y"])


@pytest.mark.parametrize(
    ("batch", "at"),
    [
        (("a", "x", "y"), (1, 2)),
        (["x", "y"], (0, -1)),
        ({"x": 1, "y": 2, "z": 3}, ("x", "y")),
        (Pair("x", "y"), (0, 1)),
    ],
)
def test_batches_keep_their_form(batch, at):
    changed = replaced_entries(batch, {at[0]: "new", at[1]: "labels"})
    assert type(changed) is type(batch) and len(changed) == len(batch)
    assert changed[at[0]] == "new" and changed[at[1]] == "labels" and batch[at[0]] != "new"


class Own(LightningDataModule):
    """Has a hook of its own, which is then the one that Lightning calls."""

    def train_dataloader(self) -> Any:
        return Loader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * 0, batch[1]


def test_a_hook_of_the_datamodule_comes_first():
    module, data = Sees(), Own()
    trainer(lt.Mixup(classes=3), max_epochs=1).fit(module, data)
    for inputs, labels in module.seen["train"]:
        assert not inputs.any() and labels.shape == (8, 3)
    assert "on_after_batch_transfer" not in vars(data)


class Columns(Toy):
    """Gets labels in a column, as tables give them."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0], batch[1][:, None]


def with_loss(loss: nn.Module) -> Toy:
    module = Toy()
    module.criterion = loss
    return module


@pytest.mark.parametrize(
    ("module", "settings", "words"),
    [
        (
            lambda: with_loss(nn.NLLLoss()),
            {},
            "losses must take probabilities as labels, got 'criterion': NLL",
        ),
        (lambda: with_loss(nn.CrossEntropyLoss(ignore_index=0)), {}, "as ignore_index=0 asks for"),
        (Toy, {"classes": 2}, "labels must hold classes from 0 to 1, got 2"),
        (Columns, {}, r"labels must be one class for each sample, shape \(n,\), or .* got shape \(8, 1\)"),
        (Toy, {"labels": "y"}, "labels must be where a batch holds a tensor, got 'y' for a batch of tuple"),
        (Toy, {"inputs": 5}, "inputs must be where a batch holds a tensor, got 5"),
        (Toy, {"inputs": 1}, "inputs must be floating to have means"),
    ],
)
def test_what_cannot_be_mixed_has_a_named_error(module, settings, words):
    with pytest.raises((ValueError, TypeError), match=words):
        trainer(lt.Mixup(**{"classes": 3, **settings})).fit(module(), Loader())


def test_it_is_told_at_the_first_batch_though_none_is_mixed_yet():
    module = Sees()
    mixup = lt.Mixup(classes=2, probability="constant(0.0, over='1 epoch') >> constant(1.0)")
    with pytest.raises(ValueError, match="labels must hold classes from 0 to 1, got 2"):
        trainer(mixup, max_epochs=2).fit(module, Loader())
    assert "train" not in module.seen


def test_two_do_not_mix_one_batch():
    with pytest.raises(lt.ConflictError, match="'batch' must have one owner, got Mixup and CutMix"):
        trainer(*(kind(classes=3) for kind in BOTH)).fit(Toy(), Loader())


def test_smoothing_comes_on_top_once():
    module = Sees()
    module.criterion = nn.CrossEntropyLoss()
    trainer(lt.Mixup(classes=3), lt.LabelSmoothing(), max_epochs=1).fit(module, Loader())
    assert all(labels.max() <= 1 and labels.min() >= 0 for _, labels in module.seen["train"])


def test_an_entry_that_is_missing_is_named():
    with pytest.raises(ValueError, match=r"got 'x' for a batch of \['a', 'b'\]"):
        taken_entry({"a": 1, "b": 2}, "x", name="inputs")
