"""The hybrid of convolutions and attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_tricks.recipes.attention import TransformerBlock
from lightning_tricks.recipes.digits import DigitsClassifier, DigitsData
from lightning_tricks.recipes.hybrid import HybridNet
from tests.toys import trainer


def test_tokens_are_the_pixels_of_the_stem_and_see_one_another():
    net = HybridNet(width=8, dropout=0.0).eval()
    seen = []
    net.blocks.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    nn.init.normal_(net.positions)
    images = torch.rand(2, 1, 8, 8)
    net(images)
    assert seen[0].shape == (2, 16, 8)
    pixels = net.stem(images)
    torch.testing.assert_close(seen[0][1, 4 * 3 + 2], pixels[1, :, 3, 2] + net.positions[14])
    assert all(isinstance(block, TransformerBlock) and not block.attention.causal for block in net.blocks)


def test_positions_tell_places_apart():
    net = HybridNet(width=8, dropout=0.0).eval()
    tokens = torch.rand(1, 16, 8)
    scrambled = tokens[:, torch.randperm(16)]

    def logits(tokens):
        return net.head(net.norm(net.blocks(tokens + net.positions)).mean(dim=1))

    torch.testing.assert_close(logits(tokens), logits(scrambled))  # they begin at 0
    nn.init.normal_(net.positions)
    assert not torch.allclose(logits(tokens), logits(scrambled))


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"images must be of 8x8 pixels, got \(1, 1, 9, 8\)"):
        HybridNet(width=8)(torch.zeros(1, 1, 9, 8))


def test_it_learns():
    module = DigitsClassifier(HybridNet(width=16, blocks=1, dropout=0.0), lr=0.03)
    run = trainer(max_epochs=5)
    run.fit(module, datamodule=DigitsData(batch_size=20))
    assert run.callback_metrics["val_accuracy"] > 0.9
