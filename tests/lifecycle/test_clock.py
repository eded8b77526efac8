from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_tricks import GradientClip
from lightning_tricks.core.duration import Horizon, as_duration
from lightning_tricks.lifecycle.clock import Clock, step_applied
from tests.toys import Loader, Toy, TwoOptimizers, scaler_plugin, trainer


def counts(module: Toy, **settings: Any) -> tuple[int, int]:
    clip = GradientClip(max_norm=None, max_value=1e9)
    trainer(clip, **settings).fit(module, Loader())
    return clip.clock.position, clip.clock.updates


class EveryOther(TwoOptimizers):
    """Steps on every other batch only."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if batch_idx % 2:
            super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("module", "settings", "expected"),
    [
        (Toy, {}, (15, 15)),
        (Toy, {"accumulate_grad_batches": 2}, (9, 9)),
        (TwoOptimizers, {}, (15, 15)),  # Lightning's global_step would say 30
        (EveryOther, {}, (6, 6)),
        (Toy, {"precision": "bf16-mixed"}, (15, 15)),
    ],
)
def test_counts_steps_not_batches_and_not_optimizers_17958(
    module: type[Toy], settings: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert counts(module(), **settings) == expected


def test_a_step_that_the_scaler_skips_is_attempted_but_not_applied() -> None:
    position, updates = counts(Toy(), plugins=[scaler_plugin(2.0**40)])
    assert position == 15
    assert updates < 15


def test_a_step_without_any_gradient_is_not_applied() -> None:
    class NoGradients(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
            if trainer.global_step in (2, 5):
                pl_module.zero_grad(set_to_none=True)

    clip = GradientClip()
    trainer(NoGradients(), clip).fit(Toy(), Loader())
    assert (clip.clock.position, clip.clock.updates) == (15, 13)


def test_a_fused_overflow_is_known_to_the_device_only() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
    assert step_applied(optimizer) is True
    optimizer.found_inf = torch.tensor(1.0)
    answer = step_applied(optimizer)
    assert isinstance(answer, Tensor)
    assert not answer


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ([True, False], True),
        ([False, False], False),
        ([torch.tensor(False), True], True),
        ([torch.tensor(False), False], torch.tensor(False)),
        ([False, torch.tensor(True)], torch.tensor(True)),
        ([torch.tensor(False), torch.tensor(True)], torch.tensor(True)),
    ],
)
def test_a_batch_counts_once_if_any_optimizer_stepped(notes: list[Any], expected: bool | Tensor) -> None:
    clock = Clock()
    clock.begin_batch()
    for note in notes:
        clock.count(note)
    assert type(clock.applied) is type(expected)
    assert bool(clock.applied) == bool(expected)


def test_moments() -> None:
    clock = Clock()
    clock.lay(Horizon(100, (20, 40)))
    clock.position, clock.epoch = 30, 1
    reached = {w: clock.reached(as_duration("at", w)) for w in (30, 31, "1 epoch", "2 epochs", "30%", "31%")}
    assert reached == {30: True, 31: False, "1 epoch": True, "2 epochs": False, "30%": True, "31%": False}
    assert clock.reached(as_duration("at", "1.5 epochs"))
    clock.lay(Horizon(None))
    assert clock.reached(as_duration("at", "1 epoch"))  # a loader without length can count epochs
