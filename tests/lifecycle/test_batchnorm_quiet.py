"""The pass that re-estimates BatchNorm only looks, whatever a ``training_step`` does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_tricks.lifecycle.batchnorm import reestimate_batchnorm
from tests.lifecycle.passes import AtEnd, run
from tests.toys import Compiled, Loader, StopError, Toy, TwoOptimizers, assert_equal, trainer


class Noisy(TwoOptimizers):
    """Does in its ``training_step`` whatever a module may do there."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(3))
        self.register_buffer("hidden", torch.zeros(1), persistent=False)
        self.register_buffer("center", torch.zeros(2))
        self.teacher = nn.Linear(4, 8).requires_grad_(False)
        self.dice = torch.Generator().manual_seed(1)

    def training_step(self, batch, batch_idx):
        optimizers, schedulers = self.optimizers(), self.lr_schedulers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        x = batch[0].clone().requires_grad_()
        loss = self.loss((x, batch[1]))
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        self.toggle_optimizer(optimizers[0])
        self.manual_backward(loss + slope.square().sum(), retain_graph=True)
        self.untoggle_optimizer(optimizers[0])
        loss.backward()
        self.clip_gradients(optimizers[0], 1.0, "norm")
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step(closure=lambda: loss)
            assert optimizer.param_groups
            scheduler.step()
        self.log("loss", loss, prog_bar=True)
        with torch.no_grad():
            self.queue.add_(1.0)
            self.hidden.add_(1.0)
            self.center = self.center + torch.rand(2, generator=self.dice)  # another tensor in its place
            self.teacher.weight.lerp_(self.body[0].weight, 0.1)
        torch.rand(3)

    def configure_optimizers(self):
        optimizers = super().configure_optimizers()
        return optimizers, [torch.optim.lr_scheduler.StepLR(opt, 1) for opt in optimizers]


def without_statistics(shown: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in shown["weights"].items() if "running" not in k and "tracked" not in k}
    return {**shown, "weights": kept}


@pytest.mark.parametrize("kind", [Toy, TwoOptimizers, Noisy, Compiled])
def test_nothing_but_the_statistics_changes(kind):
    module = kind()
    at_end = run(module, reestimate_batchnorm, max_epochs=1, limit_val_batches=0)
    assert at_end.result == 1
    assert all(gradient is not None for gradient in at_end.before["grads"][:4])
    assert_equal(without_statistics(at_end.before), without_statistics(at_end.after))
    assert not torch.equal(
        *(
            shown["weights"][key]
            for shown in (at_end.before, at_end.after)
            for key in [k for k in shown["weights"] if k.endswith("running_mean")]
        )
    )
    assert not any(part._forward_pre_hooks for part in module.modules())
    if kind is Noisy:
        assert module.hidden.item() == 5.0  # one for each batch of the epoch
        dice = torch.Generator().manual_seed(1)
        assert_equal(module.center, sum((torch.rand(2, generator=dice) for _ in range(5)), torch.zeros(2)))
        assert_equal(module.dice.get_state(), dice.get_state())


def test_hooks_of_the_run_hear_nothing():
    class Ears(Callback):
        heard = 0

        def on_train_batch_start(self, *_):
            Ears.heard += 1

        def on_before_optimizer_step(self, *_):
            Ears.heard += 1

    trainer(Ears(), AtEnd(reestimate_batchnorm), max_epochs=1).fit(TwoOptimizers(), Loader())
    assert Ears.heard == 5 + 10


def test_an_error_takes_everything_back_and_says_when_it_was():
    class Breaks(Noisy):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            if not self.training and batch_idx == 2:
                raise StopError

    module = Breaks()
    at_end = run(module, reestimate_batchnorm, max_epochs=1, limit_val_batches=0)
    assert_equal(at_end.before, at_end.after)
    assert "training_step was only looked at" in at_end.error.__notes__[0]
    assert not any(part._forward_pre_hooks for part in module.modules())
