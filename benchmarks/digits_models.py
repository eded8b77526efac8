"""Models of one network on the digits, of one start and of different ones, and how good they are."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_tricks import Probe, WarmupCosine
from lightning_tricks.core.tensors import Model
from lightning_tricks.recipes.digits import DigitsClassifier, DigitsData
from lightning_tricks.recipes.residual import ResidualNet

__all__ = ["MODELS", "SHARES", "Digits"]

MODELS = 4
RATES = (0.02, 0.03, 0.05, 0.08)
SHARES = (0.6, 0.7, 0.8, 0.9)  # of the training data, drawn for each model
BATCH = 40


class Digits:
    """Data with a fifth of wrong training labels, and all that is done with them under one seed.

    Attributes:
        seed: Of the split, the labels, the starts and the orders.
        network: Takes the weights that are evaluated.
    """

    def __init__(self, seed: int) -> None:
        """Split the data: 600 images to train on, 400 to choose by and the other 797 to report."""
        self.seed = seed
        data = DigitsData(training=600, label_noise=0.2, seed=seed)
        data.setup("fit")
        self.train_set: TensorDataset = data.train_set
        images, labels = data.val_set.tensors
        self.choice, self.test = (images[:400], labels[:400]), (images[400:], labels[400:])
        self.network = self._start(0)

    def _start(self, index: int) -> nn.Module:
        seed_everything(1000 * self.seed + index, verbose=False)
        return ResidualNet(dropout=0.0)

    def of_one_start(self) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """Return a network after one epoch, and models that were fine-tuned from it for 5."""
        start = self._train(self._start(0), range(len(self.train_set)), epochs=1, lr=0.05)
        return _state(start), [
            _state(self._train(copy.deepcopy(start), self._part(index), epochs=5, lr=RATES[index]))
            for index in range(MODELS)
        ]

    def of_different_starts(self) -> list[dict[str, Tensor]]:
        """Return models that were trained from starts of their own for 6 epochs."""
        return [
            _state(self._train(self._start(index + 1), self._part(index), epochs=6, lr=RATES[index]))
            for index in range(MODELS)
        ]

    def _part(self, index: int) -> Sequence[int]:
        generator = torch.Generator().manual_seed(100 * self.seed + index)
        order: list[int] = torch.randperm(len(self.train_set), generator=generator).tolist()
        return order[: round(SHARES[index] * len(order))]

    def _train(self, network: nn.Module, part: Sequence[int], *, epochs: int, lr: float) -> nn.Module:
        loader: DataLoader[Any] = DataLoader(
            Subset(self.train_set, part), BATCH, shuffle=True, drop_last=True
        )
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[WarmupCosine(warmup="5%")],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(DigitsClassifier(network, lr=lr), loader)
        return network

    def probe(self, *, held_out: bool) -> Probe:
        """Return what shows a method the images to choose by, or those of training."""
        images, labels = self.choice if held_out else self.train_set.tensors
        batches = list(zip(images.split(100), labels.split(100), strict=True))
        return Probe(
            self.network, batches, lambda network, batch: F.cross_entropy(network(batch[0]), batch[1])
        )

    def put(self, model: Model, *, batchnorm: bool) -> None:
        """Put ``model`` into the network, with the statistics of BatchNorm estimated anew if asked."""
        self.network.load_state_dict(model)
        if batchnorm:
            images = self.train_set.tensors[0]
            update_bn([images[at : at + 100] for at in range(0, len(images), 100)], self.network)
        self.network.eval()

    @torch.no_grad()
    def logits(self, model: Model, *, batchnorm: bool = False) -> Tensor:
        """Return those of the images to report on, shape (n, 10)."""
        self.put(model, batchnorm=batchnorm)
        logits: Tensor = self.network(self.test[0])
        return logits

    def accuracy(self, logits: Tensor) -> float:
        """Return the share of right answers, in percent."""
        return 100 * float((logits.argmax(1) == self.test[1]).double().mean())

    def loss(self, logits: Tensor) -> float:
        """Return the cross entropy in nats."""
        return float(F.cross_entropy(logits, self.test[1]))

    @torch.no_grad()
    def score(self, model: Model, *, batchnorm: bool = False) -> float:
        """Return the accuracy on the images to choose by."""
        self.put(model, batchnorm=batchnorm)
        return float((self.network(self.choice[0]).argmax(1) == self.choice[1]).double().mean())


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
