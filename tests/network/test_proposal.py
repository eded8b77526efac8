"""Stages that a network itself suggests: by its children, or by depth."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_tricks.network.proposal import propose_stages
from tests.network.test_stages import Net, partition
from tests.updates.test_layer_decay import Bert, ResNet, ViT


def test_proposal_goes_from_the_last_child_to_the_modules_own_parameters():
    assert propose_stages(Net()) == ["head", "norm", "layer", "token"]


def test_proposal_looks_into_lone_children():
    assert propose_stages(nn.ModuleDict({"net": Net()})) == ["net.head", "net.norm", "net.layer", "net.token"]
    assert propose_stages(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))) == ["0.0"]
    assert propose_stages(nn.Linear(2, 2)) == [("weight", "bias")]


def test_proposal_sees_through_compilation():
    assert propose_stages(torch.compile(Net())) == ["head", "norm", "layer", "token"]


def test_proposal_takes_names_literally():
    module = nn.ModuleDict({"a[b]*": nn.Linear(2, 2), "ab": nn.Linear(2, 2)})
    stages = propose_stages(module)
    assert [list(stage) for stage in partition(module, stages)] == [
        ["ab.weight", "ab.bias"],
        ["a[b]*.weight", "a[b]*.bias"],
    ]


def test_proposal_keeps_tied_children_together():
    module = Net()
    module.embed = nn.Linear(1, 2, bias=False)
    module.head.weight = nn.Parameter(torch.zeros(1, 2))
    module.out = nn.Linear(2, 1)
    module.layer[0].weight = module.out.weight
    assert propose_stages(module) == [("out", "layer"), "embed", "head", "norm", "token"]
    partition(module, propose_stages(module))


def test_every_proposal_is_a_partition():
    for module in (Net(), nn.Linear(2, 2), nn.Sequential(Net(), Net())):
        parts = partition(module, propose_stages(module))
        names = [name for part in parts for name in part]
        assert sorted(names) == sorted(name for name, _ in module.named_parameters())


def test_proposal_needs_parameters():
    with pytest.raises(ValueError, match="the module must have parameters, got ReLU without any"):
        propose_stages(nn.ReLU())


def test_by_depth_layers_are_dealt_out_from_the_head_down():
    assert propose_stages(ViT(), 5) == [
        ("norm", "head"), "blocks.2", "blocks.1", "blocks.0", ("patch_embed", "cls_token"),
    ]  # fmt: skip
    assert propose_stages(ViT(), 2) == [
        ("norm", "head", "blocks.2"), ("blocks.1", "blocks.0", "patch_embed", "cls_token"),
    ]  # fmt: skip
    assert propose_stages(ResNet(), 4) == [
        "fc", "layer2.1", ("layer2.0", "layer1.1"), ("layer1.0", "conv1", "bn1"),
    ]  # fmt: skip
    assert propose_stages(nn.Linear(2, 2), 1) == [("weight", "bias")]


def test_by_depth_every_number_of_stages_is_a_partition():
    for module, layers in ((ViT(), 5), (Bert(), 4), (ResNet(), 6), (Net(), 12)):
        for count in range(1, layers + 1):
            stages = propose_stages(module, count)
            assert len(stages) == count
            held = sum(len(part) for part in partition(module, stages))
            assert held == len(list(module.parameters()))


def test_by_depth_what_is_shared_is_in_one_stage():
    module = Bert()
    module.classifier.weight = module.embeddings["words"].weight
    stages = propose_stages(module, 3)
    assert stages == [("pooler", "classifier", "embeddings"), "encoder.layer.1", "encoder.layer.0"]
    partition(module, stages)


@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (6, ValueError, "stages must be at most 5, the layers that ViT is built of, got 6: name the parts"),
        (0, ValueError, "stages must be at least 1, got 0"),
        (1.5, TypeError, "stages must be a whole number, got 1.5"),
    ],
)
def test_numbers_of_stages_that_are_refused(count, error, message):
    with pytest.raises(error, match=message):
        propose_stages(ViT(), count)
