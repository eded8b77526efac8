"""Scikit-learn's handwritten digits as a data module, and a classifier to train on them.

1,797 grey images of 8x8 pixels come with scikit-learn, so nothing is downloaded.

Reference: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_tricks.core import checks
from lightning_tricks.core.extras import extra

__all__ = ["QUIET", "DigitsClassifier", "DigitsData", "with_label_noise"]

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "num_sanity_val_steps": 0,
}
"""Settings of a Trainer for short runs on the CPU, as in cards: no bars, no summaries, no files."""

Batch = list[Tensor]
"""Images, shape (n, 1, 8, 8), and labels, shape (n,)."""


def with_label_noise(labels: Tensor, *, share: float, classes: int, seed: int) -> Tensor:
    """Return a copy of ``labels`` in which some are drawn anew from all classes (and may come out right).

    Args:
        labels: Class indices, shape (n,).
        share: Of the labels that are drawn anew, in [0, 1]; rounded to whole labels.
        classes: Number of classes to draw from, with equal chances.
        seed: Of the choice and of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    noisy = labels.clone()
    noisy[chosen] = torch.randint(classes, (len(chosen),), generator=generator)
    return noisy


class DigitsData(LightningDataModule):
    """Standardised digits, shape (n, 1, 8, 8), with labels, shape (n,).

    The split is over all ten digits and does not depend on ``classes``: no image that is trained on with
    some classes is validated on with others. Mean and standard deviation are those of all pixels of the
    training part, again of all ten.

    Args:
        classes: Digits to keep, at least two; a label is its digit's index among them.
        training: Images of all ten digits in the training part, in [10, 1787]; the others validate.
        batch_size: Of training batches, at most the number of images kept; a smaller last one is dropped.
        label_noise: Share of the training labels that is drawn anew (:func:`with_label_noise`);
            validation labels stay true.
        seed: Of the split, the noise and the order of training.

    Example:
        >>> data = DigitsData(classes=(3, 5, 8), training=500)
        >>> data.setup("fit")
        >>> len(data.train_set), len(data.val_set)
        (150, 389)
    """

    def __init__(
        self,
        *,
        classes: Sequence[int] = tuple(range(10)),
        training: int = 1000,
        batch_size: int = 64,
        label_noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Check the settings; :meth:`setup` reads the data."""
        super().__init__()
        if len(classes) < 2 or len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
            raise ValueError(f"classes must hold at least two different digits, got {classes!r}")
        self.classes = tuple(classes)
        self.training = checks.whole("training", training, 10)
        if training > 1787:
            raise ValueError(f"training must leave an image of each digit to validate on, got {training!r}")
        self.batch_size = checks.whole("batch_size", batch_size, 1)
        self.label_noise = checks.in_range("label_noise", label_noise, 0.0, 1.0)
        self.seed = checks.whole("seed", seed)

    def setup(self, stage: str) -> None:
        with extra("demo"):
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        pixels, digits = load_digits(return_X_y=True)
        split = train_test_split(
            torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8),
            torch.from_numpy(digits),
            train_size=self.training,
            stratify=digits,
            random_state=self.seed,
        )
        train_images, val_images, train_digits, val_digits = split
        std, mean = torch.std_mean(train_images)
        images, labels = self._kept(train_images, train_digits)
        if len(labels) < self.batch_size:
            raise ValueError(f"batch_size must be at most {len(labels)}, got {self.batch_size}")
        noisy = with_label_noise(labels, share=self.label_noise, classes=len(self.classes), seed=self.seed)
        self.train_set = TensorDataset((images - mean) / std, noisy)
        images, labels = self._kept(val_images, val_digits)
        self.val_set = TensorDataset((images - mean) / std, labels)

    def _kept(self, images: Tensor, digits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images of the classes kept, and their labels."""
        hits = digits[:, None] == torch.tensor(self.classes)
        kept = hits.any(dim=1)
        return images[kept], hits[kept].int().argmax(dim=1)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.train_set, self.batch_size, shuffle=True, drop_last=True, generator=order)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.val_set, batch_size=512)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.val_dataloader()


class DigitsClassifier(LightningModule):
    """Cross entropy and SGD with momentum around a network that returns logits.

    Logs ``train_loss`` every step, ``val_loss`` (nats) and ``val_accuracy`` every epoch.

    Args:
        network: Maps images, shape (n, 1, 8, 8), to logits, shape (n, classes).
        classes: Number of classes.
        lr: Learning rate, above 0.
        momentum: Of SGD, in [0, 1).
        weight_decay: Of SGD, at least 0.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        classes: int = 10,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        """Take the network; its weights are trained, not copied."""
        super().__init__()
        self.save_hyperparameters(ignore="network")
        self.network = network
        self.lr = checks.in_range("lr", lr, 0.0, open_low=True)
        self.momentum, self.weight_decay = momentum, weight_decay
        self.criterion = nn.CrossEntropyLoss()
        self.accuracy = MulticlassAccuracy(num_classes=classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape (n, classes)."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        loss: Tensor = self.criterion(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.accuracy(logits, labels)
        self.log("val_loss", self.criterion(logits, labels), batch_size=len(labels))
        self.log("val_accuracy", self.accuracy, batch_size=len(labels))

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the probabilities of the classes, shape (n, classes)."""
        return F.softmax(self(batch[0]), dim=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            self.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
