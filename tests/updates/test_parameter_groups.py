"""Parameter groups: each parameter in one, with the rate and the decay worked out by hand; their table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_tricks import OptimizerSettings
from lightning_tricks.lifecycle.table import text_table
from lightning_tricks.updates.group_table import GROUP_COLUMNS, group_rows, in_force, state_bytes
from lightning_tricks.updates.parameter_groups import build_optimizer, divide, groups_of
from tests.toys import Toy
from tests.updates.test_layer_decay import ViT


def settings_of(module: nn.Module, settings: OptimizerSettings) -> dict[str, dict[str, Any]]:
    """Return what is set for each parameter, by name."""
    groups = groups_of(module, settings, divide(module, [settings])[0])
    optimizer = build_optimizer(settings, groups)
    names = {parameter: name for name, parameter in module.named_parameters()}
    found = {names[p]: group for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    return found


def test_every_parameter_is_in_one_group_with_its_own_rate_and_decay() -> None:
    module = ViT()
    module.head.requires_grad_(False)
    found = settings_of(module, OptimizerSettings(lr=1.0, weight_decay=0.1, layer_decay=0.75))
    # By hand: five layers, so the first learns at 0.75 ** 4.
    assert {name: (round(g["lr"], 6), g["weight_decay"]) for name, g in found.items()} == {
        "cls_token": (0.316406, 0.0),
        "patch_embed.weight": (0.316406, 0.1),
        "patch_embed.bias": (0.316406, 0.0),
        **{
            f"blocks.{index}.{name}": (rate, decay)
            for index, rate in enumerate([0.421875, 0.5625, 0.75])
            for name, decay in [
                ("norm.weight", 0.0),
                ("norm.bias", 0.0),
                ("mlp.0.weight", 0.1),
                ("mlp.0.bias", 0.0),
                ("mlp.2.weight", 0.1),
                ("mlp.2.bias", 0.0),
            ]
        },
        "norm.weight": (1.0, 0.0),
        "norm.bias": (1.0, 0.0),
        "head.weight": (1.0, 0.1),
        "head.bias": (1.0, 0.0),
    }


def test_overrides_are_final_and_the_first_match_counts() -> None:
    overrides = {
        "head.weight": {"lr": 5.0},
        "head": {"lr": 7.0, "eps": 1e-3},
        "blocks.0": {"weight_decay": 0.3},
        "cls_token": {"weight_decay": 0.2},
    }
    found = settings_of(ViT(), OptimizerSettings(lr=1.0, layer_decay=0.5, overrides=overrides))
    assert (found["head.weight"]["lr"], found["head.weight"]["eps"]) == (5.0, 1e-8)
    assert (found["head.bias"]["lr"], found["head.bias"]["eps"]) == (7.0, 1e-3)
    assert found["head.bias"]["weight_decay"] == 0.0
    assert found["blocks.0.norm.weight"]["weight_decay"] == 0.3
    assert (found["cls_token"]["weight_decay"], found["cls_token"]["lr"]) == (0.2, 1 / 16)


def test_a_shared_weight_is_in_one_group() -> None:
    module = nn.ModuleDict({"embed": nn.Embedding(4, 2), "head": nn.Linear(2, 4)})
    module["head"].weight = module["embed"].weight
    found = settings_of(module, OptimizerSettings(weight_decay=0.1))
    assert {name: group["weight_decay"] for name, group in found.items()} == {
        "embed.weight": 0.0,
        "head.bias": 0.0,
    }


def test_frozen_parameters_are_told_in_the_table() -> None:
    module = Toy()
    module.body.requires_grad_(False)
    groups = groups_of(module, OptimizerSettings(), divide(module, [OptimizerSettings()])[0])
    optimizer = build_optimizer(OptimizerSettings(), groups)
    table = text_table("", GROUP_COLUMNS, group_rows(optimizer, groups))
    assert "2 (1 frozen)" in table
    assert in_force(optimizer) == "AdamW(betas=(0.9, 0.999), eps=1e-08, amsgrad=False)"


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adafactor", "Adagrad", "RMSprop", "ASGD", "NAdam"])
def test_the_bytes_of_the_state_are_those_after_a_step(name: str) -> None:
    parameter = nn.Parameter(torch.randn(6, 5))
    optimizer = getattr(torch.optim, name)([parameter])
    told = state_bytes(optimizer, optimizer.param_groups[0], parameter.shape, parameter.dtype)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    assert told == sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_a_class_or_an_import_path_is_as_good_as_a_name() -> None:
    assert OptimizerSettings(torch.optim.SGD) == OptimizerSettings("SGD")
    assert settings_of(Toy(), OptimizerSettings("torch.optim.adamw.AdamW"))
