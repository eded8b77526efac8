"""Cross-validation over the training data alone.

    fold i of k validates on every k-th of the shuffled samples, from the i-th on, and trains on the others

Validation and test data are left alone. Both parts are as the training loader gives them, augmentation
included. That loader must be torch's ``DataLoader`` over a data set with a length, without a sampler or
batches of its own; what it is otherwise set to holds for the folds, too.

Reference: Stone, "Cross-Validatory Choice and Assessment of Statistical Predictions", 1974,
https://doi.org/10.1111/j.2517-6161.1974.tb00994.x.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from lightning_tricks.study.trial import Build, Setup, StudyError

__all__ = ["fold_indices", "folded"]

Part = Literal["train", "val"]


def fold_indices(count: int, *, fold: int, folds: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the samples that a fold trains on, and those that it validates on.

    Example:
        >>> training, validation = fold_indices(10, fold=0, folds=5, seed=0)
        >>> len(training), len(validation)
        (8, 2)
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return [each for at, each in enumerate(order) if at % folds != fold], order[fold::folds]


def folded(build: Build, *, fold: int, folds: int, seed: int) -> Build:
    """Return ``build`` with the training data of a fold, and the others of them for validation.

    What it gives raises a StudyError where the training data cannot be split.
    """

    def split(loader: Any, part: Part) -> DataLoader[Any]:
        return _part(loader, part, fold=fold, folds=folds, seed=seed)

    def built(given: int) -> Setup:
        setup = Setup.of(build(given))
        if isinstance(setup.data, LightningDataModule):
            _fold_module(setup.data, split)
            return setup
        loader, _ = setup.data
        return Setup(setup.module, (split(loader, "train"), split(loader, "val")), setup.trainer)

    return built


def _fold_module(data: LightningDataModule, split: Callable[[Any, Part], DataLoader[Any]]) -> None:
    # In place, since hooks of it, such as those that move batches, may refer to it.
    whole = data.train_dataloader
    data.train_dataloader = lambda: split(whole(), "train")  # type: ignore[method-assign]
    data.val_dataloader = lambda: split(whole(), "val")  # type: ignore[method-assign]


def _part(loader: Any, part: Part, *, fold: int, folds: int, seed: int) -> DataLoader[Any]:
    _check(loader, folds)
    training, validation = fold_indices(len(loader.dataset), fold=fold, folds=folds, seed=seed)
    is_training = part == "train"
    return DataLoader(
        Subset(loader.dataset, training if is_training else validation),
        loader.batch_size,
        shuffle=is_training and isinstance(loader.sampler, RandomSampler),
        drop_last=is_training and loader.drop_last,
        generator=loader.generator,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


def _check(loader: Any, folds: int) -> None:
    rule = "folds must be left out for training data other than one DataLoader"
    if not isinstance(loader, DataLoader):
        raise StudyError(f"{rule}, got {loader!r:.80}")
    if isinstance(loader.dataset, IterableDataset) or not isinstance(loader.dataset, Sized):
        raise StudyError(f"{rule} over a data set with a length, got {type(loader.dataset).__name__}")
    if type(loader.sampler) not in (RandomSampler, SequentialSampler) or loader.batch_size is None:
        raise StudyError(
            f"{rule} without a sampler or batches of its own, got {type(loader.sampler).__name__}"
        )
    if len(loader.dataset) < folds:
        raise StudyError(f"folds must be at most the {len(loader.dataset)} training samples, got {folds}")
