"""Steps that are not the usual ones: none after a batch without a loss, one within another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_tricks import EMAWeights, GradientClip, Lookahead, Percentile, WarmupCosine, WeightDecay
from lightning_tricks.lifecycle.technique import Technique
from tests.toys import Loader, Toy, assert_equal, scaler_plugin, trainer, weights


class Silent(Toy):
    """Gives no loss in some batches."""

    def __init__(self, *silent: int, **options: Any) -> None:
        super().__init__(**options)
        self.silent = silent

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return None if batch_idx in self.silent else super().training_step(batch, batch_idx)


def fit(module: Toy, *techniques: Technique, **settings: Any) -> dict[str, Tensor]:
    trainer(*techniques, plugins=[scaler_plugin()], **settings).fit(module, Loader())
    return weights(module)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.:UserWarning")
@pytest.mark.parametrize("silent", [(0,), (2,), (1, 3)])
@pytest.mark.parametrize("fused", [False, True])
def test_a_batch_without_a_loss_is_as_without_techniques(fused: bool, silent: tuple[int, ...]) -> None:
    techniques = [GradientClip(max_norm=1e9), EMAWeights(decay=0.0), Lookahead(alpha=1.0)]
    plain = fit(Silent(*silent, fused=fused))
    assert_equal(plain, fit(Silent(*silent, fused=fused), *techniques))


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.:UserWarning")
def test_where_no_step_follows_nothing_decays_and_no_norm_is_seen() -> None:
    module = Silent(1, 3, 4, optimizer="SGD")
    clip, decay = GradientClip(max_norm=Percentile()), WeightDecay(strength=0.5)
    before = weights(module)
    after = fit(module, clip, decay, accumulate_grad_batches=2)
    before.pop("body.1.num_batches_tracked")
    for name, value in before.items():
        if "running" not in name:
            assert torch.equal(after[name], value), name
    assert clip.outcome()["steps"] == 0


class Inner(torch.optim.SGD):
    """Makes the step of its parent class, as subclasses do."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_a_step_that_calls_that_of_its_parent_counts_once() -> None:
    class Nested(Toy):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            torch.optim.SGD(self.parameters(), lr=0.1)  # torch hooks into the class when it is first used
            return Inner(self.parameters(), lr=0.1)

    technique = EMAWeights()
    module = Nested()
    runner = trainer(technique, WarmupCosine())
    runner.fit(module, Loader())
    assert technique.clock.updates == technique.clock.position == 15
    assert not runner.optimizers[0]._optimizer_step_pre_hooks


class Twice(torch.optim.SGD):
    """Asks for two gradients a step, as SAM does."""

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            closure()
            loss = closure()
        super().step()
        return loss


def test_decay_past_an_optimizer_with_two_gradients_is_an_error_not_two_decays() -> None:
    class Sharp(Toy):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return Twice(self.parameters(), lr=0.1)

    with pytest.raises(RuntimeError, match="must ask for one gradient per step .*, got Twice, .* form='l2'"):
        trainer(WeightDecay()).fit(Sharp(), Loader())
    trainer(EMAWeights(), GradientClip(max_norm=1.0)).fit(Sharp(), Loader())
