"""What LSUV cannot do: outputs that do not vary, layers it cannot measure, weights it may not touch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_tricks import LSUV, ConflictError, WeightInit
from tests.network.test_lsuv import Net, start
from tests.toys import assert_equal, weights


def test_what_cannot_be_scaled_is_said() -> None:
    class Zero(Net):
        def loss(self, batch):
            return super().loss((batch[0] * 0, batch[1]))

    with pytest.warns(UserWarning, match="after at most 10 passes, but behind 'body.weight', 'head.weight'"):
        start(Zero(nn.Linear(4, 8)))


def test_one_number_that_never_varies_is_said_and_not_scaled() -> None:
    class Constant(Net):
        def loss(self, batch):
            return super().loss((torch.full((100, 4), 0.1), batch[1].repeat(13)[:100]))

    for seed in range(4):  # the mean is rounded, mostly
        module = Constant(nn.Linear(4, 1), width=1)
        with pytest.warns(UserWarning, match="but behind 'body.weight' they are not"):
            start(module, LSUV(params="body", seed=seed))
        assert torch.linalg.vector_norm(module.begun["body.weight"]).item() == pytest.approx(1.0)


def test_weights_that_somebody_made_are_refused() -> None:
    module = Net(nn.Linear(4, 8))
    nn.init.ones_(module.body.weight)
    before = weights(module)
    with pytest.raises(ValueError, match="as torch first draws them, got 'body.weight', which"):
        start(module)
    assert_equal(before, weights(module))
    start(module, LSUV(overwrite="body"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tolerance": 0.0}, "tolerance must lie in"),
        ({"batches": 0}, "batches must be at least 1"),
        ({"max_passes": 0}, "max_passes must be at least 1"),
    ],
)
def test_settings_are_checked(settings, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LSUV(**settings)


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="linear in its weight, got 'body': body.weight_ih of GRUCell"):
        start(Net(nn.GRUCell(4, 8)), LSUV(params="body"))


def test_layers_called_several_times_leave_nothing_to_measure() -> None:
    class Twice(Net):
        def loss(self, batch):
            return super().loss(batch) + super().loss(batch)

    module = Twice(nn.Linear(4, 8))
    before = weights(module)
    with pytest.raises(ValueError, match="calls once a batch, got 'body': body.weight of Linear, called 2"):
        start(module, LSUV(params="body"))
    assert_equal(before, weights(module))


def test_a_conflict_names_both_ways_out() -> None:
    with pytest.raises(ConflictError, match="remove LSUV or let its params match other weights, or remove W"):
        start(Net(nn.Linear(4, 8)), LSUV(), WeightInit())
    start(Net(nn.Linear(4, 8)), LSUV(params="body"), WeightInit(params="head"))
