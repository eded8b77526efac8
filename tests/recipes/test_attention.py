"""The transformer block against torch's own layers with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_tricks.recipes.attention import SelfAttention, TransformerBlock, norm_layer

WIDTH, HEADS, PLACES = 12, 3, 7


def of_torch(block, *, norm):
    """Return torch's pre-norm encoder layer with the weights of ``block``."""
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    layer.norm1, layer.norm2 = norm_layer(norm, WIDTH), norm_layer(norm, WIDTH)
    layer.norm1.load_state_dict(block.attention_norm.state_dict())
    layer.norm2.load_state_dict(block.mlp_norm.state_dict())
    layer.linear1.load_state_dict(block.mlp[0].state_dict())
    layer.linear2.load_state_dict(block.mlp[-1].state_dict())
    layer.self_attn.load_state_dict(
        {
            "in_proj_weight": block.attention.in_proj.weight,
            "in_proj_bias": block.attention.in_proj.bias,
            "out_proj.weight": block.attention.out_proj.weight,
            "out_proj.bias": block.attention.out_proj.bias,
        }
    )
    return layer


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("causal", [True, False])
def test_the_block_is_torchs_encoder_layer(norm, causal):
    block = TransformerBlock(WIDTH, heads=HEADS, causal=causal, norm=norm)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, PLACES, WIDTH)
    mask = nn.Transformer.generate_square_subsequent_mask(PLACES) if causal else None
    expected = of_torch(block, norm=norm)(x, src_mask=mask, is_causal=causal)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_rms_norm_has_no_mean_subtracted():
    norm, x = norm_layer("rms", 3), torch.tensor([3.0, 4.0, 0.0])
    torch.testing.assert_close(norm(x), x / (25 / 3) ** 0.5)


def test_dropout_acts_in_training_only_and_on_attention_too():
    attention = SelfAttention(WIDTH, heads=HEADS, causal=True, dropout=0.5)
    x = torch.randn(2, PLACES, WIDTH)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))
    block = TransformerBlock(WIDTH, heads=HEADS, causal=True, dropout=0.5)
    assert block.dropout.p == block.attention.dropout == 0.5


def test_a_block_whose_branches_end_in_zero_is_the_identity():
    block = TransformerBlock(WIDTH, heads=HEADS, causal=True)
    for last in (block.attention.out_proj, block.mlp[-1]):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    x = torch.randn(2, PLACES, WIDTH)
    assert torch.equal(block(x), x)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="expansion must be at least 1, got 0"):
        TransformerBlock(WIDTH, heads=HEADS, causal=True, expansion=0)
    with pytest.raises(ValueError, match="heads must be at least 1, got 0"):
        SelfAttention(WIDTH, heads=0, causal=True)
    with pytest.raises(TypeError, match="causal must be True or False, got 1"):
        SelfAttention(WIDTH, heads=HEADS, causal=1)
