"""Residual blocks that start as the identity: which weights are zero, and that nothing else passes for it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_tricks import LSUV, WeightInit, ZeroInitResidual, zero_init_residual_
from lightning_tricks.recipes.residual import ResidualNet
from tests.network.residual_nets import (
    BasicBlock,
    Bottleneck,
    OwnBlock,
    PlainBlock,
    PreActivation,
    TimmBlock,
)
from tests.toys import Loader, Toy, assert_equal, trainer, weights


class Images(Toy):
    """Makes small images of four numbers, and notes its weights when training begins."""

    def __init__(self, *blocks: nn.Module, stem: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        first = [nn.Conv2d(1, 4, 1), nn.ReLU()] if stem else [nn.Conv2d(1, 4, 1)]
        self.body = nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(8))
        self.body(torch.randn(2, 1, 4, 4))
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()

    def inputs(self, batch: Tensor) -> Tensor:
        return batch[:, None, :, None] * batch[:, None, None, :]

    def loss(self, batch):
        return super().loss((self.inputs(batch[0]), batch[1]))

    def on_train_start(self) -> None:
        self.begun = weights(self)


class Tokens(Images):
    """The same with tokens of eight numbers."""

    def __init__(self, *blocks: nn.Module) -> None:
        Toy.__init__(self)
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(4, 8), *blocks, nn.Flatten(), nn.Linear(24, 8))

    def inputs(self, batch: Tensor) -> Tensor:
        return torch.stack([batch, batch + 1, batch * 2], 1)


def start(module: Images, *techniques: Any) -> set[str]:
    """Train a step and return the names of what was zero at its start and not before."""
    before = weights(module)
    trainer(*(techniques or [ZeroInitResidual()]), max_steps=1).fit(module, Loader())
    return {k for k, v in module.begun.items() if not v.any() and (before[k].any() or "bias" in k)}


def transformer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)


CASES = {
    "torchvision": (
        lambda: Images(BasicBlock(4, 4), BasicBlock(4, 6, 2)),
        ("body.2.bn2.weight", "body.3.bn2.weight"),
        {"body.2": "its input", "body.3": "relu of its shortcut"},
    ),
    "timm": (lambda: Images(Bottleneck(4)), ("body.2.bn3.weight",), {"body.2": "silu of its input"}),
    "reference": (
        lambda: Images(ResidualNet(channels=4, widths=(4, 6), classes=4), nn.Unflatten(1, (4, 1, 1))),
        ("body.2.groups.0.0.second.1.weight", "body.2.groups.1.0.second.1.weight"),
        {"body.2.groups.0.0": "its input", "body.2.groups.1.0": "relu of its shortcut"},
    ),
    "torch": (
        lambda: Tokens(transformer(norm_first=True), transformer(norm_first=False)),
        ("body.1.self_attn.out_proj.weight", "body.1.linear2.weight"),
        {"body.1": "its input"},
    ),
    "vision transformer": (
        lambda: Tokens(TimmBlock(8)),
        ("body.1.attn.proj.weight", "body.1.mlp.fc2.weight"),
        {"body.1": "its input"},
    ),
    "reference transformer": (
        lambda: Tokens(PlainBlock(8)),
        ("body.1.attention.out_proj.weight", "body.1.mlp.2.weight"),
        {"body.1": "its input"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_factor_of_each_branch_is_zero_and_the_block_is_what_it_says(name: str, capsys) -> None:
    build, wanted, verdicts = CASES[name]
    module = build()
    zeros = start(module)
    assert {key for key in zeros if key.endswith("weight")} == set(wanted)
    biases = {key.replace("weight", "bias") for key in wanted} & module.begun.keys()
    assert all(not module.begun[key].any() for key in biases)
    table = capsys.readouterr().out
    for block, verdict in verdicts.items():
        assert any(f"| {block} " in line and f"| {verdict} " in line for line in table.splitlines()), table
    if name == "torch":
        assert "left alone: body.2, TransformerEncoderLayer normalises after the sum" in table


@pytest.mark.parametrize("build", [lambda: TimmBlock(8), lambda: transformer(norm_first=True).eval()])
def test_the_function_makes_a_block_the_identity_to_the_bit(build) -> None:
    block = build()
    zero_init_residual_(block)
    x = torch.randn(2, 3, 8)
    assert torch.equal(block(x), x)


def test_the_zero_factor_learns_at_once_and_the_others_after_it() -> None:
    block = TimmBlock(8)
    zero_init_residual_(block)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    x = torch.randn(2, 3, 8)
    for step in range(2):
        optimizer.zero_grad()
        block(x).square().sum().backward()
        assert block.mlp.fc2.weight.grad.any() and block.attn.proj.weight.grad.any()
        assert bool(block.mlp.fc1.weight.grad.any()) == bool(block.attn.qkv.weight.grad.any()) == (step == 1)
        optimizer.step()


def test_patterns_name_more_and_choose_among_those_found() -> None:
    blocks = lambda: Tokens(OwnBlock(8), TimmBlock(8))  # noqa: E731
    zeros = start(blocks(), ZeroInitResidual(last="body.*.down"))
    assert {"body.1.down.weight", "body.1.down.bias", "body.2.mlp.fc2.weight"} <= zeros
    zeros = start(blocks(), ZeroInitResidual(last="body.1.down.weight", params=("body.2.mlp", "body.1")))
    assert {"body.1.down.weight", "body.2.mlp.fc2.weight"} <= zeros
    assert "body.2.attn.proj.weight" not in zeros


def test_it_comes_after_all_other_initial_weights() -> None:
    wanted = {"body.1.attn.proj.weight", "body.1.mlp.fc2.weight"}
    for others in (
        [ZeroInitResidual(), LSUV()],
        [ZeroInitResidual(), WeightInit()],
        [WeightInit(), ZeroInitResidual()],
    ):
        module = Tokens(TimmBlock(8))
        assert wanted <= start(module, *others)
        assert not module.begun["body.0.bias"].any()  # the other did its part


@pytest.mark.parametrize(
    ("build", "settings", "words"),
    [
        (
            lambda: Tokens(OwnBlock(8)),
            {},
            "that is known, got '\\*' for Tokens: name .* last='blocks",
        ),
        (lambda: Tokens(transformer()), {}, "left alone: 'body.1', TransformerEncoderLayer normalises after"),
        (lambda: Tokens(PlainBlock(8, post=True)), {}, "must be the identity .* got 'body.1'"),
        (lambda: Images(PreActivation(4)), {}, "must be the last of their branch, got 'body.2.bn2.weight'"),
        (
            lambda: Tokens(OwnBlock(8)),
            {"last": "body.1"},
            "one zero factor, got 'body.1.down.weight' with",
        ),
        (lambda: Tokens(OwnBlock(8)), {"last": "nothing"}, "last must match a parameter, got 'nothing'"),
    ],
)
def test_refusals_leave_the_weights_as_they_were(build, settings, words: str) -> None:
    module = build()
    before = weights(module)
    with pytest.raises(ValueError, match=words):
        start(module, ZeroInitResidual(**settings))
    assert_equal(before, weights(module))


def test_two_zero_factors_are_refused_since_neither_would_learn() -> None:
    module = Images(BasicBlock(4, 4))
    nn.init.zeros_(module.body[2].conv2.weight)
    block = copy.deepcopy(module.body[2])
    nn.init.zeros_(block.bn2.weight)
    block(torch.rand(2, 4, 4, 4)).square().sum().backward()
    assert not block.bn2.weight.grad.any() and not block.conv2.weight.grad.any()
    with pytest.raises(ValueError, match="got 'body.2.conv2.weight' at zero beside 'body.2.bn2.weight'"):
        start(module)
    with pytest.raises(ValueError, match="a branch must have one zero factor"):
        zero_init_residual_(module)


def test_trained_weights_are_refused_and_zero_ones_are_right_already() -> None:
    module = Images(BasicBlock(4, 4))
    nn.init.zeros_(module.body[2].bn2.weight)
    start(module)
    assert not module.begun["body.2.bn2.weight"].any()
    module = Images(BasicBlock(4, 4))
    nn.init.constant_(module.body[2].bn2.weight, 0.7)
    with pytest.raises(ValueError, match="as torch first draws them, got 'body.2.bn2.weight'"):
        start(module)
    assert "body.2.bn2.weight" in start(module, ZeroInitResidual(overwrite="*.bn2"))
