"""Layers of a network from input to output: its own, or those that patterns name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_tricks.core.layers import own_layers
from lightning_tricks.updates.layer_decay import layers_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2)
        self.mlp = nn.Sequential(nn.Linear(2, 4), nn.GELU(), nn.Linear(4, 2))


class ViT(nn.Module):
    """Named as in the usual vision transformers: there the layers are 0, 1 .. depth, depth + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 2))
        self.patch_embed = nn.Conv2d(3, 2, 4)
        self.drop = nn.Dropout(0.1)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 5)


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({"words": nn.Embedding(9, 2), "norm": nn.LayerNorm(2)})
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Block() for _ in range(2))})
        self.pooler = nn.Linear(2, 2)
        self.classifier = nn.Linear(2, 3)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 2, 7), nn.BatchNorm2d(2)
        self.layer1 = nn.Sequential(Block(), Block())
        self.layer2 = nn.Sequential(Block(), Block())
        self.fc = nn.Linear(2, 5)


def names_of(module: nn.Module) -> list[object]:
    return own_layers(module)[0]


def test_the_usual_layouts() -> None:
    assert names_of(ViT()) == [
        ("patch_embed", "cls_token"),
        "blocks.0",
        "blocks.1",
        "blocks.2",
        ("norm", "head"),
    ]
    assert names_of(Bert()) == [
        "embeddings",
        "encoder.layer.0",
        "encoder.layer.1",
        ("pooler", "classifier"),
    ]
    assert names_of(ResNet()) == [
        ("conv1", "bn1"),
        "layer1.0",
        "layer1.1",
        "layer2.0",
        "layer2.1",
        "fc",
    ]


def test_normalisation_counts_to_what_it_follows() -> None:
    net = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2))
    assert names_of(net) == ["0", ("1", "2"), "4"]


def test_a_wrapper_is_looked_into_and_compilation_seen_through() -> None:
    wrapped = nn.ModuleDict({"net": torch.compile(ViT(), backend="eager"), "temperature": nn.Linear(1, 1)})
    assert names_of(wrapped)[:2] == [("net.patch_embed", "net.cls_token"), "net.blocks.0"]


def test_patterns_give_the_same_depths_as_the_layers_they_name() -> None:
    for module in (ViT(), Bert(), ResNet()):
        names, depths = own_layers(module)
        assert layers_of(module, names) == (names, depths)
        assert set(depths) == set(module.parameters())


def test_what_is_shared_learns_as_where_it_comes_first() -> None:
    module = Bert()
    module.classifier.weight = module.embeddings["words"].weight
    assert own_layers(module)[1][module.classifier.weight] == 0


def test_frozen_parameters_in_no_pattern_count_to_the_first_layer() -> None:
    module = ViT()
    module.cls_token.requires_grad_(False)
    layers = ["patch_embed", "blocks", ("norm", "head")]
    assert layers_of(module, layers)[1][module.cls_token] == 0
    module.cls_token.requires_grad_(True)
    with pytest.raises(
        ValueError, match="layers must hold each parameter, got none for 'cls_token': add a last layer"
    ):
        layers_of(module, layers)


def test_one_linear_layer_is_one_layer() -> None:
    assert names_of(nn.Linear(2, 2)) == [("weight", "bias")]
