"""Data of a task that was learnt before, as YAML gives them: by class path."""

from __future__ import annotations

from dataclasses import dataclass

from lightning.pytorch import LightningDataModule

from tests.toys import Loader


@dataclass(eq=False)
class OldTask(LightningDataModule):
    """Some batches, always the same.

    Attributes:
        batches: How many.
        seed: Of what is in them.
    """

    batches: int = 2
    seed: int = 3

    def __post_init__(self) -> None:
        super().__init__()

    def train_dataloader(self) -> Loader:
        return Loader(self.batches, self.seed, fixed=True)
