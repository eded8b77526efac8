"""Blocks that only look residual, or have another zero factor: told by a run, and by sizes without one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_tricks import ZeroInitResidual, zero_init_residual_
from tests.network.residual_nets import (
    BasicBlock,
    Bottleneck,
    DownBlock,
    Flagged,
    NormFirst,
    OwnBlock,
    PlainBlock,
    Scaled,
    TimmBlock,
    Wrapped,
)
from tests.network.test_zero_init import Images, Tokens, start
from tests.toys import assert_equal, weights


@pytest.mark.parametrize("downsample", [lambda: nn.MaxPool2d(2), lambda: nn.Conv2d(4, 4, 2, 2)])
def test_a_downsample_behind_the_layers_is_no_shortcut(downsample) -> None:
    module = Images(DownBlock(4, 4, downsample()))
    before = weights(module)
    with pytest.raises(ValueError, match="shortcut must get what its block gets, got 'body.2', whose"):
        start(module)
    assert_equal(before, weights(module))


def test_a_shortcut_may_get_the_input_normalised(capsys) -> None:
    assert "body.2.conv2.weight" in start(Images(NormFirst(4, 6)))
    assert "| body.2 | its shortcut |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (lambda: DownBlock(4, 4, nn.MaxPool2d(2)), "differ from its shortcut in width or stride"),
        (lambda: DownBlock(4, 6, nn.Conv2d(6, 6, 2, 2)), "differ from its shortcut in width or stride"),
        (lambda: DownBlock(4, 6, nn.Identity()), "differ from its shortcut in width or stride"),
        (lambda: Bottleneck(4), "what its Gate does only a run can tell"),
        (lambda: Flagged(4, shortcut=False), "its shortcut is False"),
    ],
)
def test_without_a_run_such_blocks_are_left_alone(block, why: str) -> None:
    net = nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 6, 2), block())
    before = weights(net)
    table = zero_init_residual_(net)
    assert f"left alone: 2, {why}" in table or f"left alone: 2, its layers {why}" in table
    assert {k for k, v in weights(net).items() if not torch.equal(v, before[k])} == {
        "0.bn2.weight",
        "1.bn2.weight",
    }
    with pytest.raises(ValueError, match=f"left alone: '', .*{why}"):
        zero_init_residual_(block())


def test_a_flag_says_whether_there_is_a_shortcut(capsys) -> None:
    zeros = start(Images(Flagged(4, shortcut=True), Flagged(4, shortcut=False)))
    assert {name for name in zeros if "weight" in name} == {"body.2.conv2.weight"}
    table = capsys.readouterr().out
    assert "| body.2 | its input |" in table and "left alone: body.3, its shortcut is False" in table
    with pytest.raises(ValueError, match="left alone: 'body.2', its shortcut is False"):
        start(Images(Flagged(4, shortcut=False)))


def test_a_bare_scale_at_zero_is_another_zero_factor() -> None:
    module = Tokens(Scaled(8, 0.0))
    block = Scaled(8, 0.0)
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)
    block(torch.rand(2, 3, 8)).square().sum().backward()
    assert not block.gamma.grad.any() and not block.mlp.fc2.weight.grad.any()
    with pytest.raises(ValueError, match="one zero factor, got 'body.1.gamma' at zero beside 'body.1.attn"):
        start(module)
    with pytest.raises(ValueError, match="one zero factor, got 'body.1.gamma' at zero"):
        zero_init_residual_(module)
    assert "body.1.mlp.fc2.weight" in start(Tokens(Scaled(8, 0.1)))


def test_last_factors_that_are_zero_already_are_no_others() -> None:
    module = Tokens(TimmBlock(8))
    nn.init.zeros_(module.body[1].mlp.fc2.weight)
    assert "body.1.attn.proj.weight" in start(module, ZeroInitResidual(params="*.attn"))


def test_a_block_is_named_once() -> None:
    with pytest.raises(ValueError, match="got 'body.1', of which something else comes out"):
        start(Tokens(PlainBlock(8, post=True)))


def test_what_is_not_verified_is_said(capsys) -> None:
    start(Tokens(Wrapped(8)))
    assert capsys.readouterr().out.count("| body.1.block | not verified |") == 2
    with pytest.raises(ValueError, match="must be called to be told, got 'body.1.block', of which only"):
        start(Tokens(Wrapped(8, parts=True)))


def test_the_smallest_module_around_a_named_factor_is_verified_where_it_is_the_identity(capsys) -> None:
    start(Tokens(OwnBlock(8)), ZeroInitResidual(last="body.1.down"))
    assert "| body.1.down.weight, body.1.down.bias | body.1 | its input |" in capsys.readouterr().out
    start(Tokens(OwnBlock(8)), ZeroInitResidual(last="body.1.up"))  # behind which a bias comes
    assert "| body.1.up.weight | not verified |" in capsys.readouterr().out
