"""A small transformer that predicts the next character, the reference model for sequences.

    logits = head . norm . blocks(embedding[character] + positions[place])

Each block is a causal :class:`~lightning_tricks.recipes.attention.TransformerBlock`.

References: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3
(normalisation first and once more at the end, learned positions); Press and Wolf, "Using the Output
Embedding to Improve Language Models", 2017, https://arxiv.org/abs/1608.05859 (tied head).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.recipes.attention import TransformerBlock, norm_layer

__all__ = ["CharacterNet"]

_EMBEDDING_STD = 0.02  # GPT-2's; with torch's 1 a tied head begins with logits as large as the root of width


class CharacterNet(nn.Module):
    """Embeddings of characters and places, causal transformer blocks, and a linear head.

    Its parts in the order of data, as name patterns: ``embedding``, ``positions``, ``blocks.0``, ...,
    ``norm``, ``head``.

    Args:
        characters: Size of the alphabet, at least 2.
        length: Most characters that it can look back on, at least 1.
        width: Of the vectors between blocks, a multiple of ``heads``.
        blocks: Number of them, at least 1.
        heads: Of each block's attention.
        norm: ``"layer"`` or ``"rms"``.
        tied: Whether the head's weights are the embedding's.
        dropout: Of embeddings, attention weights and each branch's output, in [0, 1).

    Example:
        >>> CharacterNet(97, length=16)(torch.zeros(2, 16, dtype=torch.long)).shape
        torch.Size([2, 16, 97])
    """

    def __init__(  # noqa: PLR0913  # settings
        self,
        characters: int,
        *,
        length: int = 64,
        width: int = 64,
        blocks: int = 3,
        heads: int = 4,
        norm: Literal["layer", "rms"] = "layer",
        tied: bool = True,
        dropout: float = 0.0,
    ) -> None:
        """Build the network; embeddings are drawn from Normal(0, 0.02), the rest as torch does."""
        super().__init__()
        checks.whole("characters", characters, 2)
        self.length = checks.whole("length", length, 1)
        checks.whole("blocks", blocks, 1)
        checks.whole("width", width, 1)
        checks.in_range("dropout", dropout, 0.0, 1.0, open_high=True)
        self.embedding = nn.Embedding(characters, width)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(width, heads=heads, causal=True, norm=norm, dropout=dropout)
                for _ in range(blocks)
            )
        )
        self.norm = norm_layer(norm, width)
        self.head = nn.Linear(width, characters, bias=False)
        for table in (self.embedding, self.positions):
            nn.init.normal_(table.weight, std=_EMBEDDING_STD)
        if checks.flag("tied", tied):
            self.head.weight = self.embedding.weight

    def forward(self, characters: Tensor) -> Tensor:
        """Return the logits of the character after each place, shape (n, places, alphabet).

        Args:
            characters: Indices in the alphabet, shape (n, places), at most ``length`` places.

        Raises:
            ValueError: If there are more places.
        """
        places = characters.shape[1]
        if places > self.length:
            raise ValueError(f"characters must have at most {self.length} places, got {places}")
        where = torch.arange(places, device=characters.device)
        x = self.dropout(self.embedding(characters) + self.positions(where))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits
