"""LSUV where one process has more batches than another."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, IterableDataset

from lightning_tricks import LSUV
from tests.toys import Loader, Toy, trainer


class Unsized(IterableDataset):
    """Does not say how many batches it has."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return iter(Loader(self.count))


class Uneven(Toy):
    """The second process has a batch more."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Unsized(1 + self.global_rank), batch_size=None)


def test_it_measures_as_many_as_all_have(capfd) -> None:
    strategy = DDPStrategy(start_method="fork", timeout=timedelta(seconds=5))
    settings = {"strategy": strategy, "devices": 2, "use_distributed_sampler": False, "max_steps": 1}
    trainer(LSUV(batches=3, seed=1), **settings).fit(Uneven())
    assert "behind 2 layers, by 1 batch\n" in capfd.readouterr().out
