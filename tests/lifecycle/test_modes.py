"""Layers kept in evaluation mode: each alone, for several at once, with their own modes after it."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_tricks.lifecycle.modes import Modes


def modes(module: nn.Sequential) -> list[bool]:
    return [layer.training for layer in module]


@pytest.fixture
def norms() -> nn.Sequential:
    """Two norms, of which the second is in evaluation mode anyway."""
    module = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    module[1].eval()
    return module


def test_layers_are_held_until_they_are_let_go(norms: nn.Sequential) -> None:
    kept = Modes()
    kept.keep("a", norms)
    assert modes(norms) == [False, False]
    norms.train()  # as after a validation
    kept.hold()
    assert modes(norms) == [False, False]
    kept.keep("a", [norms[1]])
    assert modes(norms) == [True, False]


def test_a_layer_alone_is_held() -> None:
    class Norm(nn.BatchNorm1d):
        def __init__(self) -> None:
            super().__init__(2)
            self.drop = nn.Dropout()

    module = Norm()
    Modes().keep("a", [module])
    assert (module.training, module.drop.training) == (False, True)


@pytest.mark.parametrize("training", [True, False])
def test_layers_get_their_own_modes_back(norms: nn.Sequential, training: bool) -> None:
    kept = Modes()
    kept.keep("a", norms)
    kept.release("a", training=training)
    assert modes(norms) == [training, False]
    norms.train()
    kept.hold()
    assert modes(norms) == [True, True]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_layer_that_two_keep_comes_back_with_the_last(norms: nn.Sequential, order: str) -> None:
    kept = Modes()
    for owner in "ab":
        kept.keep(owner, norms)
        kept.keep(owner, norms)
    kept.release(order[0], training=True)
    assert modes(norms) == [False, False]
    kept.release(order[1], training=True)
    assert modes(norms) == [True, False]


def test_nobody_keeps_anything_at_first(norms: nn.Sequential) -> None:
    kept = Modes()
    kept.hold()
    kept.release("a", training=False)
    assert modes(norms) == [True, False]
