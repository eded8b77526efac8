"""Logits of all training samples, computed once, before training, and looked up by the samples' indices."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_tricks.lifecycle.randomness import drawn_seed, random_states, set_random_states
from lightning_tricks.lifecycle.training_pass import on_device
from lightning_tricks.objectives.distillation_loss import check_predictions

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["CachedLogits", "as_fresh"]

_TOLERANCE = 0.1  # in standard deviations of logits: in bfloat16, batches of others move them by a hundredth


def as_fresh(cached: Tensor, fresh: Tensor) -> bool:
    """Return whether logits are those of the same inputs, but for rounding.

    Example:
        >>> as_fresh(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.001, 2.0]]))
        True
        >>> as_fresh(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]]))
        False
    """
    return bool((cached - fresh).abs().max() <= _TOLERANCE * fresh.std())


def _draw_others() -> None:
    # Or random augmentation would draw the same for the first batch as training does, and pass for none.
    seed = drawn_seed()
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)


class CachedLogits:
    """A table for each teacher, with a row for each sample of the dataset.

    Attributes:
        tables: Logits, shape (samples, classes, ...).
    """

    def __init__(self, tables: list[Tensor]) -> None:
        """Take the tables."""
        self.tables = tables

    @classmethod
    def of_training(
        cls,
        trainer: Trainer,
        pl_module: LightningModule,
        *,
        ask: Callable[[Any], list[Tensor]],
        index: Callable[[Any], Tensor],
    ) -> Self:
        """Return the logits of the samples that ``trainer`` trains on.

        Args:
            trainer: The Trainer of the run, which is in ``fit``.
            pl_module: Its module.
            ask: Returns each teacher's logits of a batch.
            index: Returns the indices of its samples, shape (n,).

        Raises:
            ValueError: If samples do not come with their index, or the loader is over no dataset of a length.
        """
        loader = trainer.train_dataloader
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            raise ValueError(
                f"cached needs a DataLoader over a dataset whose samples have indices, got {loader!r:.80}"
            )
        in_order = DataLoader(
            loader.dataset,
            loader.batch_size or 1,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            generator=torch.Generator(),  # or it would draw from that of training
        )
        tables: list[Tensor] = []
        done, samples = 0, len(loader.dataset)  # type: ignore[arg-type]  # it is no IterableDataset
        states = random_states()
        _draw_others()
        for batch in on_device(trainer, pl_module, iter(in_order), edited=False):
            with trainer.precision_plugin.train_step_context():
                found = ask(batch)
            check_predictions(found, values=True)
            end = done + len(found[0])
            given = index(batch).tolist()
            if given != list(range(done, end)):
                raise ValueError(
                    f"a dataset must give each sample with its own index for cached, got {given!s:.60} for "
                    f"samples {done} to {end - 1}"
                )
            tables = tables or [logits.new_empty(samples, *logits.shape[1:]) for logits in found]
            for table, logits in zip(tables, found, strict=True):
                table[done:end] = logits
            done = end
        set_random_states(states)
        return cls(tables)

    def __getitem__(self, index: Tensor) -> list[Tensor]:
        """Return each teacher's logits of the samples at ``index``, shape (n,)."""
        return [table[index] for table in self.tables]
