"""Which layers keep running statistics, and that frozen ones keep theirs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_tricks.network.statistics import FrozenStatistics, statistics_modules


def test_layers_with_statistics_and_what_they_go_with():
    module = nn.Sequential(
        nn.BatchNorm1d(2, affine=False),
        nn.Linear(2, 2),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2, affine=False)),
        nn.Sequential(nn.ReLU(), nn.BatchNorm1d(2, affine=False)),
        nn.BatchNorm1d(2),
        nn.InstanceNorm1d(2, track_running_stats=True),
        nn.BatchNorm1d(2, track_running_stats=False),
        nn.LayerNorm(2),
    )
    found = {layer: companions[0] for layer, companions in statistics_modules(module).items()}
    assert found == {
        module[0]: module[1].weight,  # nothing before it
        module[2][2]: module[2][0].weight,  # a sibling
        module[3][1]: module[2][0].weight,  # none around it: the last before it
        module[4]: module[4].weight,  # its own
        module[5]: module[4].weight,
    }


def modes(module):
    return [layer.training for layer in module]


def norms(*, frozen):
    """Two norms, of which ``frozen`` need no gradient, and what looks after them."""
    module = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    for index in frozen:
        module[index].requires_grad_(False)
    return module, FrozenStatistics(module)


def test_frozen_layers_are_held_until_a_parameter_opens():
    module, statistics = norms(frozen=[0])
    statistics.update()
    assert modes(module) == [False, True]
    module.train()  # as after a validation
    statistics.hold()
    assert modes(module) == [False, True]
    module[0].bias.requires_grad_(True)
    statistics.update()
    assert modes(module) == [True, True]


def test_a_layer_alone_is_held():
    class Norm(nn.BatchNorm1d):
        def __init__(self):
            super().__init__(2)
            self.drop = nn.Dropout()

    module = Norm().requires_grad_(False)
    FrozenStatistics(module).update()
    assert (module.training, module.drop.training) == (False, True)


@pytest.mark.parametrize("training", [True, False])
def test_layers_get_their_own_modes_back(training):
    module, statistics = norms(frozen=[0, 1])
    module[1].eval()
    statistics.update()
    statistics.release(training=training)
    assert modes(module) == [training, False]
    module.train()
    statistics.hold()
    assert modes(module) == [True, True]


def test_nothing_is_held_where_nothing_was_asked_for():
    module = nn.BatchNorm1d(2).requires_grad_(False)
    statistics = FrozenStatistics()
    statistics.update()
    before = module.running_mean.clone()
    module(torch.randn(4, 2))
    assert not torch.equal(module.running_mean, before)
