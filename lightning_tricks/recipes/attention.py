"""The transformer block that the reference models are built of: normalisation first, then the branch.

    x <- x + dropout(attention(norm(x)))
    x <- x + dropout(mlp(norm(x))),    mlp = linear . gelu . linear

References: Vaswani et al., "Attention Is All You Need", 2017, https://arxiv.org/abs/1706.03762; Xiong et
al., "On Layer Normalization in the Transformer Architecture", 2020, https://arxiv.org/abs/2002.04745
(normalisation within the branch); Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019,
https://arxiv.org/abs/1910.07467.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_tricks.core import checks

__all__ = ["SelfAttention", "TransformerBlock", "norm_layer"]

_NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def norm_layer(norm: str, width: int) -> nn.Module:
    """Return the ``"layer"`` or ``"rms"`` normalisation of vectors of ``width`` entries.

    Raises:
        ValueError: If it is neither.
    """
    return _NORMS[checks.one_of("norm", norm, tuple(_NORMS))](width)


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention of a sequence on itself.

    Args:
        width: Of the sequence's vectors, a multiple of ``heads``.
        heads: Attention heads, at least 1.
        causal: Whether a place sees only itself and those before it.
        dropout: Of attention weights, in [0, 1).
    """

    def __init__(self, width: int, *, heads: int, causal: bool, dropout: float = 0.0) -> None:
        """Build the projections with torch's own initial weights."""
        super().__init__()
        self.heads = checks.whole("heads", heads, 1)
        if checks.whole("width", width, 1) % heads:
            raise ValueError(f"width must be a multiple of heads, {heads}, got {width}")
        self.causal = checks.flag("causal", causal)
        self.dropout = checks.in_range("dropout", dropout, 0.0, 1.0, open_high=True)
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (n, places, width) to the same."""
        # (n, places, 3 * width) -> three of (n, heads, places, width / heads)
        query, key, value = self.in_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=self.causal)
        projected: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return projected


class TransformerBlock(nn.Module):
    """Attention and a two-layer network, each on the normalised sequence and added to it (equations above).

    Args:
        width: Of the sequence's vectors, a multiple of ``heads``.
        heads: Attention heads, at least 1.
        causal: Whether a place sees only itself and those before it.
        norm: ``"layer"`` or ``"rms"``.
        dropout: Of attention weights and of both branches' outputs, in [0, 1).
        expansion: Hidden width of the two-layer network in units of ``width``, at least 1.

    Example:
        >>> import torch
        >>> TransformerBlock(8, heads=2, causal=True)(torch.zeros(3, 5, 8)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        causal: bool,
        norm: Literal["layer", "rms"] = "layer",
        dropout: float = 0.0,
        expansion: int = 4,
    ) -> None:
        """Build the block with torch's own initial weights."""
        super().__init__()
        hidden = width * checks.whole("expansion", expansion, 1)
        self.attention = SelfAttention(width, heads=heads, causal=causal, dropout=dropout)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.attention_norm, self.mlp_norm = norm_layer(norm, width), norm_layer(norm, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (n, places, width) to the same."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x
