"""Steps of fused optimizers that are cancelled on the device, half precision, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_tricks import GradientClip
from tests.toys import Loader, Toy, TwoOptimizers, assert_equal, trainer, weights


class Poison(Callback):
    """Makes the gradients of ``part`` NaN at optimizer step ``step``."""

    def __init__(self, step: int, part: str = "head") -> None:
        self.step, self.part, self.count = step, part, -1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
        self.count += 1
        if self.count == self.step:
            for parameter in getattr(pl_module, self.part).parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("options", [{"momentum": 0.9}, {}], ids=["momentum", "plain"])
def test_a_cancelled_first_step_leaves_no_garbage_for_momentum(step: int, options: dict[str, Any]) -> None:
    results = []
    for fused in (False, True):
        module = Toy(optimizer="SGD", fused=fused, **options)
        trainer(Poison(step), GradientClip()).fit(module, Loader())
        results.append(weights(module))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, msg=name)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("order", [("body", "head"), ("head", "body")])
def test_of_two_parts_either_cancels_the_step(fused: bool, order: tuple[str, str]) -> None:
    clips = [GradientClip(label=part, params=part) for part in order]
    module = Toy(fused=fused)
    trainer(Poison(3, "body"), *clips).fit(module, Loader())
    assert all(torch.isfinite(value).all() for value in weights(module).values())


class BodyAlone(TwoOptimizers):
    """One fused optimizer that steps twice a batch: head and body, then the body alone."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        for parts in (self, self.body):
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            for parameter in set(self.parameters()) - set(parts.parameters()):
                parameter.grad = None
            self.before = weights(self.body)
            optimizer.step()
        self.moved = any(not torch.equal(v, self.before[n]) for n, v in weights(self.body).items())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.05, fused=True)


@pytest.mark.filterwarnings("ignore:the module made 2 steps in a batch")
def test_a_cancelled_step_does_not_cancel_the_next_of_the_batch() -> None:
    module = BodyAlone()
    trainer(Poison(0), GradientClip(params="head"), max_epochs=1, limit_train_batches=1).fit(module, Loader())
    assert module.moved


def test_large_half_precision_gradients_are_no_overflow() -> None:
    class Large(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
            for parameter in pl_module.parameters():
                parameter.grad.fill_(3e4)

    module, clip = Toy(optimizer="SGD"), GradientClip(max_norm=1.0)
    before = weights(module)
    trainer(Large(), clip, precision="16-true", max_epochs=1).fit(module, Loader())
    assert clip.outcome() == {"steps": 5, "clipped": 5, "skipped": 0}
    assert not torch.equal(module.head.weight.float(), before["head.weight"])


class Special(Toy):
    """Has a parameter that cannot be clipped in every way."""

    def __init__(self, special: nn.Module) -> None:
        super().__init__()
        self.special = special


def test_sparse_gradients_and_complex_values_are_refused_before_the_first_batch() -> None:
    sparse = Special(nn.Embedding(3, 2, sparse=True))
    with pytest.raises(ValueError, match="dense gradients, got 'special.weight'"):
        trainer(GradientClip()).fit(sparse, Loader())
    trainer(GradientClip(params=("body", "head"))).fit(Toy(), Loader())
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="max_value must be None for complex parameters, got 'special.w"):
        trainer(GradientClip(max_value=1.0)).fit(Special(holder), Loader())


def test_poison_without_clip_is_what_these_tests_need() -> None:
    module = Toy()
    trainer(Poison(3)).fit(module, Loader())
    with pytest.raises(AssertionError):
        assert_equal(weights(module), {k: torch.nan_to_num(v) for k, v in weights(module).items()})
