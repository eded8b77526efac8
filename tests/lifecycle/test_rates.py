"""What several techniques scale rates by, and that none of it waits for a device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_tricks.lifecycle.rates import Rates
from tests.host_reads import HostReads


def run_of(*groups: dict[str, Any]) -> Any:
    optimizer = torch.optim.SGD(list(groups), lr=1.0)
    return SimpleNamespace(optimizers=[optimizer], strategy=SimpleNamespace(lr_scheduler_configs=[]))


def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(1))


def rates_of(trainer: Any) -> list[float]:
    return [float(group["lr"]) for group in trainer.optimizers[0].param_groups]


def test_factors_of_several_are_multiplied_each_for_its_groups() -> None:
    first, second = weight(), weight()
    trainer, rates = run_of({"params": [first], "lr": 0.5}, {"params": [second]}), Rates()
    rates.show(trainer)
    rates.scale(trainer, "b", 0.5)
    rates.scale(trainer, "a", 0.25, among=frozenset({id(second)}))
    assert rates_of(trainer) == [0.25, 0.125]
    rates.scale(trainer, "b", 0.1)
    assert rates_of(trainer) == pytest.approx([0.05, 0.025])


def test_nobodys_group_is_left_alone() -> None:
    first, second = weight(), weight()
    trainer, rates = run_of({"params": [first]}, {"params": [second]}), Rates()
    rates.show(trainer)
    trainer.optimizers[0].param_groups[0]["lr"] = 7.0  # by the user
    rates.scale(trainer, "a", 0.5, among=frozenset({id(second)}))
    assert rates_of(trainer) == [7.0, 0.5]


def test_each_optimizer_is_shown_once() -> None:
    trainer, rates = run_of({"params": [weight()]}), Rates()
    rates.show(trainer)
    rates.scale(trainer, "a", 0.5)
    rates.show(trainer)
    assert len(trainer.strategy.lr_scheduler_configs) == 1
    assert trainer.optimizers[0].param_groups[0]["initial_lr"] == 1.0


def test_a_rate_that_is_a_tensor_is_filled_and_never_read() -> None:
    trainer, rates = run_of({"params": [weight()], "lr": torch.tensor(0.5)}), Rates()
    rates.show(trainer)
    held = trainer.optimizers[0].param_groups[0]["lr"]
    with HostReads() as reads:
        rates.scale(trainer, "a", 0.5)
        rates.scale(trainer, "a", 0.25)
    assert reads.count == 0
    assert held == 0.125


def test_a_goal_has_the_last_word_the_nearer_the_more() -> None:
    trainer, rates = run_of({"params": [weight()], "lr": 0.5}, {"params": [weight()]}), Rates()
    rates.show(trainer)
    rates.lead(trainer, "b", 0.2, share=0.25, of_base=False)
    assert rates_of(trainer) == pytest.approx([0.75 * 0.5 + 0.25 * 0.2, 0.75 + 0.25 * 0.2])
    rates.lead(trainer, "b", 0.2, share=1.0, of_base=True)
    rates.scale(trainer, "a", 0.0)
    assert rates_of(trainer) == [0.1, 0.2]
