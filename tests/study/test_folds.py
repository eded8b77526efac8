"""Cross-validation over the training data alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from lightning.pytorch import LightningDataModule
from sklearn.model_selection import KFold
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from lightning_tricks.study.folds import fold_indices, folded
from lightning_tricks.study.trial import StudyError, run_trial
from tests.study.small import QUIET
from tests.toys import Loader, Toy

COUNT = 23


@pytest.mark.parametrize(("count", "folds"), [(COUNT, 5), (10, 5), (4, 4), (2, 2)])
def test_each_sample_is_validated_on_once(count, folds):
    found = [fold_indices(count, fold=fold, folds=folds, seed=3) for fold in range(folds)]
    assert sorted(joined(validation for _, validation in found)) == list(range(count))
    for training, validation in found:
        assert sorted(training + validation) == list(range(count))
    expected = sorted(len(validation) for _, validation in KFold(folds).split(range(count)))
    assert sorted(len(validation) for _, validation in found) == expected


def joined(lists):
    return list(itertools.chain.from_iterable(lists))


class Data(LightningDataModule):
    """Samples that tell where they are from; each number is one."""

    def __init__(self, **options):
        super().__init__()
        self.options = {"batch_size": 4, "shuffle": True, **options}

    def setup(self, stage):
        x = torch.arange(float(COUNT))[:, None].expand(COUNT, 4) / COUNT
        self.samples = TensorDataset(x, torch.arange(COUNT) % 3)

    def train_dataloader(self):
        return DataLoader(self.samples, **self.options)

    def val_dataloader(self):
        raise AssertionError("the validation split is left alone")

    test_dataloader = val_dataloader

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.moved = True
        return batch


class Watching(Toy):
    """Keeps what it is trained and validated on."""

    def __init__(self):
        super().__init__()
        self.seen = {"train": [], "val": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append((batch[0][:, 0] * COUNT).round().int().tolist())
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append((batch[0][:, 0] * COUNT).round().int().tolist())
        return super().validation_step(batch, batch_idx)


def trained(fold, data=None, **options):
    module, data = Watching(), data or Data(**options)
    build = folded(lambda seed: (module, data, {**QUIET, "max_epochs": 1}), fold=fold, folds=5, seed=0)
    run_trial(build, [], seed=0, metric="val_loss")
    return module.seen, data


def test_a_data_module_is_split_and_keeps_its_hooks():
    training, validation = fold_indices(COUNT, fold=1, folds=5, seed=0)
    seen, data = trained(1)
    assert sorted(joined(seen["train"])) == sorted(training)
    assert [len(batch) for batch in seen["train"]] == [4, 4, 4, 4, 2]
    assert joined(seen["train"]) != training  # shuffled anew
    assert joined(seen["val"]) == validation * 2  # in the loop, and at the end
    assert data.moved


def test_a_loader_is_split_and_keeps_its_settings():
    data = Data(shuffle=False, drop_last=True)
    data.setup("fit")
    seen, _ = trained(0, (data.train_dataloader(), None))
    training, _ = fold_indices(COUNT, fold=0, folds=5, seed=0)
    assert joined(seen["train"]) == training[:16]
    assert len(joined(seen["val"])) == 2 * 5


class Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(4)])


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (Loader(3), "folds must be left out for training data other than one DataLoader, got"),
        ([DataLoader(range(9))], "other than one DataLoader, got"),
        (DataLoader(Stream()), "over a data set with a length, got Stream"),
        (DataLoader(range(9), sampler=WeightedRandomSampler([1.0] * 9, 9)), "got WeightedRandomSampler"),
        (DataLoader(range(9), batch_size=None), "without a sampler or batches of its own"),
        (DataLoader(range(4)), "folds must be at most the 4 training samples, got 5"),
    ],
)
def test_data_that_cannot_be_split_are_told(loader, message):
    with pytest.raises(StudyError, match=message):
        trained(0, (loader, None))
