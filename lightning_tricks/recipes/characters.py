"""The text of Python's own help as a data module, and a character model to train on it.

Python ships the topics of its ``help()``, some 460,000 characters of English and code; nothing is
downloaded. The text differs between versions of Python, and so do losses.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.text import Perplexity

from lightning_tricks.core import checks

__all__ = ["ALPHABET", "CharacterData", "CharacterModel", "encoded", "help_text"]

ALPHABET = "\n" + "".join(map(chr, range(32, 127))) + "\N{REPLACEMENT CHARACTER}"
"""Line feed, printable ASCII, and one sign for all else: the same in every version of Python."""


def help_text() -> str:
    """Return the paragraphs of Python's help topics in the order of their names, each paragraph once.

    Several topics hold the same paragraphs. Left in, they would be both trained and validated on.
    """
    from pydoc_data.topics import topics

    paragraphs = (part for name in sorted(topics) for part in topics[name].split("\n\n"))
    once = {" ".join(part.split()): part.strip("\n") for part in paragraphs}
    return "\n\n".join(part for words, part in once.items() if words)


def encoded(text: str) -> Tensor:
    r"""Return each character's index in :data:`ALPHABET`, shape (characters,).

    Example:
        >>> encoded("\n ~é").tolist()
        [0, 1, 95, 96]
    """
    index = {character: place for place, character in enumerate(ALPHABET)}
    return torch.tensor([index.get(character, len(ALPHABET) - 1) for character in text])


class CharacterData(LightningDataModule):
    """Windows of Python's help as indices in :data:`ALPHABET`, shape (n, length + 1).

    The last tenth of the text validates. Windows overlap in one character: the last to be predicted is the
    first to be read of the next.

    Args:
        length: Characters to predict in each window, at least 1.
        batch_size: Windows of a training batch, at least 1; a smaller last one is dropped.
        seed: Of the order of training.

    Example:
        >>> data = CharacterData(length=64)
        >>> data.setup("fit")
        >>> data.train_set[0][0].shape
        torch.Size([65])
    """

    def __init__(self, *, length: int = 64, batch_size: int = 32, seed: int = 0) -> None:
        """Check the settings; :meth:`setup` reads the text."""
        super().__init__()
        self.length = checks.whole("length", length, 1)
        self.batch_size = checks.whole("batch_size", batch_size, 1)
        self.seed = checks.whole("seed", seed)

    def setup(self, stage: str) -> None:
        text = encoded(help_text())
        cut = len(text) - len(text) // 10
        if cut <= self.length * self.batch_size or len(text) - cut <= self.length:
            least = f"a training batch of {cut} characters and a window of {len(text) - cut}"
            raise ValueError(
                f"length and batch_size must leave {least}, got {self.length} and {self.batch_size}"
            )
        self.train_set, self.val_set = self._windows(text[:cut]), self._windows(text[cut:])

    def _windows(self, text: Tensor) -> TensorDataset:
        return TensorDataset(text.unfold(0, self.length + 1, self.length))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.train_set, self.batch_size, shuffle=True, drop_last=True, generator=order)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.val_set, batch_size=256)


class CharacterModel(LightningModule):
    """Cross entropy of the next character and AdamW around a network that returns logits.

    Logs ``train_loss`` every step; ``val_loss`` (nats per character), ``val_bits`` (the same in bits) and
    ``val_perplexity`` every epoch.

    Args:
        network: Maps indices, shape (n, places), to logits, shape (n, places, alphabet).
        lr: Learning rate, above 0.
        weight_decay: Of AdamW, at least 0.
    """

    def __init__(self, network: nn.Module, *, lr: float = 5e-3, weight_decay: float = 0.0) -> None:
        """Take the network; its weights are trained, not copied."""
        super().__init__()
        self.save_hyperparameters(ignore="network")
        self.network = network
        self.lr = checks.in_range("lr", lr, 0.0, open_low=True)
        self.weight_decay = checks.in_range("weight_decay", weight_decay, 0.0)
        self.perplexity = Perplexity()

    def forward(self, characters: Tensor) -> Tensor:
        """Return the logits, shape (n, places, alphabet)."""
        logits: Tensor = self.network(characters)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (windows,) = batch
        loss = F.cross_entropy(self(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        (windows,) = batch
        logits, targets = self(windows[:, :-1]), windows[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.perplexity(logits, targets)
        self.log("val_loss", loss, batch_size=len(windows))
        self.log("val_bits", loss / math.log(2), batch_size=len(windows))
        self.log("val_perplexity", self.perplexity, batch_size=len(windows))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
