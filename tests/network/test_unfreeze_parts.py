"""ProgressiveUnfreeze: stages by position, type and depth; memory; dropout; the table of a module."""

from __future__ import annotations

import pytest
from lightning.pytorch import Callback
from torch import nn

import lightning_tricks as lt
from lightning_tricks.network.unfreeze import ProgressiveUnfreeze
from tests.lifecycle.test_configuration import read_back
from tests.network.deep import STAGES, Deep, Watch, fit

NORMS = "torch.nn.modules.batchnorm._BatchNorm"


class Memory(Callback):
    """Counts, after each batch, the parameters that the optimizer keeps anything for, and the bytes."""

    def __init__(self) -> None:
        self.entries: list[int] = []
        self.bytes: list[int] = []

    def on_train_batch_end(self, trainer, *_) -> None:
        states = [state for state in trainer.optimizers[0].state.values() if state]
        self.entries.append(len(states))
        # All but the count of steps, which is a scalar.
        tensors = [value for state in states for value in state.values() if value.ndim]
        self.bytes.append(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def test_the_optimizer_has_memory_for_open_stages_alone():
    module, memory = Deep(), Memory()
    fit(module, ProgressiveUnfreeze(stages=STAGES), memory)
    parts = [list(part.parameters()) for part in (module.head, module.mid, module.body)]
    numbers = [len(part) for part in parts]
    sizes = [2 * 4 * sum(p.numel() for p in part) for part in parts]  # two means of 4 bytes an entry
    opened = [1] * 5 + [2] * 5 + [3] * 5
    assert memory.entries == [sum(numbers[:count]) for count in opened]
    assert memory.bytes == [sum(sizes[:count]) for count in opened]
    assert sizes == [216, 576, 448]


def test_the_figures_of_the_card():
    class Equal(Deep):
        def __init__(self):
            super().__init__()
            self.body, self.mid = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), nn.Identity()
            self.head = nn.Linear(4, 4)

    module, memory = Equal(), Memory()
    fit(module, ProgressiveUnfreeze(stages=4, at=1), memory, max_epochs=1)
    entries = sum(p.numel() for p in module.parameters())
    assert [count / entries for count in memory.bytes[:4]] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("stages", "moved"),
    [
        (2, ["m", "mhb"]),
        (["mid", ("[1:2]", "body[1:]"), "body[:1]"], ["m", "mhb", "mhb"]),
        ([("head", "mid"), NORMS, "body.0"], ["hm", "hmb", "hmb"]),
        ([("head", "mid"), nn.BatchNorm1d, "body.0"], ["hm", "hmb", "hmb"]),
    ],
)
def test_stages_by_depth_position_and_type(stages, moved):
    watch = Watch()
    watch.on_train_batch_start = lambda trainer, pl_module, *_: watch.before.append(
        {name: value.clone() for name, value in pl_module.state_dict().items()}
    )
    fit(Deep(), ProgressiveUnfreeze(stages=stages), watch)
    epochs = [
        set.union(*(watch.moved(batch) for batch in range(5 * k, 5 * k + 5))) for k in range(len(moved))
    ]
    assert epochs == [set(names) for names in moved]


def test_by_depth_from_yaml_and_in_a_table(capsys):
    (unfreeze,) = read_back(lt.to_yaml(ProgressiveUnfreeze(stages=3, at="20%", lr_factor=0.5)))
    module = Deep()
    table = unfreeze.table(module)
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[3:]] == [
        ["1", "mid.0", "start", "2", "72", "1", "72"],
        ["2", "head", "20%", "2", "27", "0.5", "99"],
        ["3", "body.0, body.1", "40%", "4", "56", "0.25", "155"],
    ]
    fit(module, unfreeze)
    assert capsys.readouterr().out.splitlines() == table.splitlines()
    assert unfreeze.outcome() == {"stages": 3, "opened": 3, "trainable": 155}


def test_more_stages_than_layers_are_refused():
    with pytest.raises(ValueError, match="stages must be at most 3, the layers that Deep is built of, got 4"):
        fit(Deep(), ProgressiveUnfreeze(stages=4))


@pytest.mark.parametrize(("dropout", "expected"), [("on", [True] * 15), ("off", [False] * 10 + [True] * 5)])
def test_dropout_of_closed_stages_is_switched_off_on_request(dropout, expected):
    class Modes(Callback):
        def __init__(self) -> None:
            self.seen = []

        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            self.seen.append(pl_module.body[3].training)
            assert pl_module.training
            assert pl_module.body[1].training == pl_module.body[0].weight.requires_grad

    module, modes = Deep(), Modes()
    fit(module, ProgressiveUnfreeze(stages=STAGES, dropout=dropout), modes, val_check_interval=2)
    assert modes.seen == expected
    assert all(layer.training for layer in module.modules())


def test_a_function_that_drops_out_as_its_module_says_is_switched_off_too():
    class Drops(Deep):
        def loss(self, batch):
            return super().loss(batch)

        def __init__(self):
            super().__init__()
            self.body = Part()

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 8)

        def forward(self, inputs):
            seen.append(self.training)
            return nn.functional.dropout(self.linear(inputs), 0.5, self.training)

    seen = []
    fit(Drops(), ProgressiveUnfreeze(stages=["head", ("mid", "body")], dropout="off"), limit_val_batches=0)
    assert seen == [False] * 5 + [True] * 10


def test_it_does_without_what_another_technique_freezes_but_not_before_it_does():
    stages = ["head", "mid"]
    fit(Deep(), lt.Freeze(params="body"), ProgressiveUnfreeze(stages=stages))
    with pytest.raises(ValueError, match="stages must hold each parameter, got none for 'body.0.weight'"):
        fit(Deep(), lt.Freeze(params="body", at=3), ProgressiveUnfreeze(stages=stages))
