"""Data of another task than the one that a run trains on, as its ``training_step`` gets them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.connectors.data_connector import _DataHookSelector
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_tricks.core.functional import count_samples
from lightning_tricks.lifecycle.evaluation import replaced
from lightning_tricks.lifecycle.training_pass import on_device

__all__ = ["check_data", "other_batches"]


def check_data(name: str, data: Any) -> None:
    """Accept a loader of batches or a datamodule.

    Raises:
        TypeError: If it is neither.
    """
    loader = isinstance(data, Iterable) and not isinstance(data, Collection | Iterator)
    if not loader and not isinstance(data, LightningDataModule):
        raise TypeError(f"{name} must be a DataLoader or a LightningDataModule, got {data!r:.80}")


def other_batches(
    trainer: Trainer, pl_module: LightningModule, data: Any, samples: int | None
) -> Iterator[Any]:
    """Yield batches of ``data``, on the device of the run and with the hooks of a transfer.

    Args:
        trainer: The Trainer of the run, which is in ``fit``.
        pl_module: Its module.
        data: A loader, or a datamodule, which is set up for ``fit`` and gives its training loader.
        samples: How many at most, in each process; ``None`` for all.

    Raises:
        ValueError: If ``data`` is that of the run itself, or all is asked of what has no length.
    """
    with ExitStack() as stack:
        own = data if isinstance(data, LightningDataModule) else None
        if own is not None:
            if own is vars(trainer).get("datamodule"):
                raise ValueError(f"data must be of another task, got the datamodule of this run, {own!r:.80}")
            stack.enter_context(replaced(own, {"trainer": trainer}))
            selector = {"_datahook_selector": _DataHookSelector(pl_module, own)}
            stack.enter_context(replaced(trainer._data_connector, selector))
            if trainer.local_rank == 0:
                own.prepare_data()
            trainer.strategy.barrier()
            own.setup("fit")
        loader = CombinedLoader(data if own is None else own.train_dataloader(), "max_size_cycle")
        if samples is None and any(sized_len(part) is None for part in loader.flattened):
            raise ValueError(f"samples must be given for data without length, got None for {data!r:.80}")
        batches = (batch for batch, *_ in iter(loader))
        # In this order, because processes wait for one another where a batch moves.
        yield from on_device(trainer, pl_module, _first(batches, samples), edited=False)


def _first(batches: Iterator[Any], samples: int | None) -> Iterator[Any]:
    left = samples
    while left is None or left > 0:
        if (batch := next(batches, None)) is None:
            return
        count = count_samples(batch)
        if left is not None and count > left:
            batch = tree_map(lambda leaf, n=left: leaf[:n] if isinstance(leaf, Tensor) else leaf, batch)
        yield batch
        left = None if left is None else left - count
