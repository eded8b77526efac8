"""Which layers of frozen parts run in evaluation mode, and with which parameters each goes."""

from __future__ import annotations

from torch import nn

from lightning_tricks.network.statistics import frozen_layers, statistics_modules


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


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
        self.seen = nn.MultiheadAttention(2, 1, dropout=0.1)
        self.rnns = nn.ModuleList([nn.LSTM(2, 2), nn.LSTM(2, 2, num_layers=2, dropout=0.1)])
        self.drop = nn.Dropout()
        self.head = nn.Linear(2, 2)


def named(module, parameters, **policies):
    """Return the names of the layers, each with how many parameters it waits for."""
    names = {layer: name for name, layer in module.named_modules()}
    found = frozen_layers(module, set(parameters), **policies)
    return {names[layer]: len(held) for layer, held in found.items()}


def test_by_default_only_layers_with_statistics_matter():
    module = Net()
    assert named(module, module.parameters(), norm_stats="frozen", dropout="on") == {"body.1": 2}
    assert named(module, module.parameters(), norm_stats="train", dropout="on") == {}


def test_layers_that_go_with_none_of_the_parameters_are_left_out():
    module = Net()
    assert named(module, module.head.parameters(), norm_stats="frozen", dropout="on") == {}
    off = named(module, module.head.parameters(), norm_stats="train", dropout="off")
    assert off == {"": 22, "head": 2}


def test_without_dropout_whole_parts_are_evaluated():
    module = Net()
    off = named(module, module.body.parameters(), norm_stats="train", dropout="off")
    assert off == {"": 22, "body": 4, "body.0": 2, "body.2": 2}  # the norm goes on, the dropout goes with it
    assert named(module, module.body.parameters(), norm_stats="frozen", dropout="off").keys() == {
        *off, "body.1",
    }  # fmt: skip


def test_dropout_within_a_layer_counts_and_recurrent_layers_without_it_are_left_alone():
    module = Net()
    parameters = [*module.seen.parameters(), *module.rnns.parameters()]
    found = named(module, parameters, norm_stats="train", dropout="off")
    assert found.keys() == {"", "seen", "seen.out_proj", "rnns", "rnns.1", "drop"}
