"""Switch EMA: when the live weights jump to the average, and what they take along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision

from lightning_tricks import ConflictError, EMAWeights, Lookahead
from tests.averaging.watching import Watch, live_of, slow_twin, watched
from tests.toys import Loader, StopAfter, StopError, Toy, TwoOptimizers, assert_equal, trainer, weights


class ByHand(Callback):
    """Switch EMA as the paper writes it, done from outside, one weight at a time."""

    def __init__(self, every: int, decay: float = 0.9, start: int = 0) -> None:
        self.every, self.decay, self.start, self.step = every, decay, start, 0

    def _begin(self, pl_module: LightningModule) -> None:
        self.ema = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(pl_module)
        self.at = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.at:
            return
        self.at, self.step = trainer.global_step, self.step + 1
        if self.step <= self.start:
            self._begin(pl_module)
            return
        for name, p in pl_module.named_parameters():
            self.ema[name] = self.decay * self.ema[name] + (1 - self.decay) * p.detach()
            if self.step % self.every == 0:
                p.data.copy_(self.ema[name])


@pytest.mark.parametrize(
    ("switch_every", "steps", "start"),
    [(1, 1, 0), (4, 4, 0), ("1 epoch", 5, 0), ("20%", 3, 0), (4, 4, 6), ("1000 steps", 1000, 0)],
)
@pytest.mark.parametrize("make", [Toy, TwoOptimizers])
def test_a_run_is_that_of_the_paper(switch_every: Any, steps: int, start: int, make: Any) -> None:
    twin, hand = make(), ByHand(steps, start=start)
    trainer(hand, precision="64-true").fit(twin, Loader())
    ema = EMAWeights(decay=0.9, decay_warmup=False, switch_every=switch_every, start=start)
    module = make()
    trainer(ema, precision="64-true").fit(module, Loader())
    for name, live in live_of(ema, module).items():
        torch.testing.assert_close(live, twin.state_dict()[name], rtol=0, atol=1e-9, msg=name)
    for name, average in hand.ema.items():
        torch.testing.assert_close(module.state_dict()[name], average, rtol=0, atol=1e-9, msg=name)


def test_accumulated_batches_are_one_step() -> None:
    twin, module = Toy(), Toy()
    trainer(ByHand(2), accumulate_grad_batches=2, precision="64-true").fit(twin, Loader())
    ema = EMAWeights(decay=0.9, decay_warmup=False, switch_every=2)
    trainer(ema, accumulate_grad_batches=2, precision="64-true").fit(module, Loader())
    torch.testing.assert_close(live_of(ema, module)["head.weight"], twin.head.weight.detach())


def test_others_see_the_weights_after_the_jump_whatever_the_order() -> None:
    for order in (0, 1):
        ema, watch = EMAWeights(decay=0.9, switch_every=1), Watch()
        callbacks = [watch, ema] if order else [ema, watch]
        module = Toy()
        trainer(*callbacks, max_epochs=1).fit(module, Loader())
        assert_equal(watch.steps[-1], weights(module))  # a run whose last step has switched


def test_a_jump_takes_in_what_the_average_has_not_moved_by() -> None:
    ema, module, plain = EMAWeights(decay=0.9, decay_warmup=False, every=100, switch_every=5), Toy(), Watch()
    trainer(ema, max_epochs=1).fit(module, Loader())
    trainer(plain, max_epochs=1).fit(Toy(), Loader())
    expected = slow_twin(plain.steps, lambda _: 0.9, warmup=False, every=5, start=0)
    torch.testing.assert_close(module.head.weight.detach(), expected["head.weight"])
    assert torch.equal(module.head.weight, live_of(ema, module)["head.weight"])
    assert ema.outcome()["decay"] == pytest.approx(0.9**5)


def test_frozen_weights_and_momentum_stay() -> None:
    class Opens(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.head.requires_grad_(trainer.current_epoch != 1)

    class Momenta(Watch):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *_)
            self.momentum = trainer.optimizers[0].state[pl_module.body[0].weight]["exp_avg"].clone()

    ema, watch = EMAWeights(decay=0.9, switch_every=7), Momenta()
    trainer(ema, Opens(), watch, max_epochs=2, max_steps=7).fit(Toy(), Loader())
    plain = Momenta()
    trainer(Opens(), plain, max_epochs=2, max_steps=7).fit(Toy(), Loader())
    assert torch.equal(watch.steps[7]["head.weight"], watch.steps[5]["head.weight"])  # frozen since then
    assert torch.equal(plain.steps[6]["body.0.weight"], watch.steps[6]["body.0.weight"])
    assert not torch.equal(plain.steps[7]["body.0.weight"], watch.steps[7]["body.0.weight"])
    assert torch.equal(plain.momentum, watch.momentum)


def test_narrow_weights_jump_and_the_wide_average_stays_wide() -> None:
    ema = EMAWeights(decay=0.9, switch_every=15)
    module, _, _ = watched(ema, precision="bf16-true")
    wide = ema.saved()["wide"]
    assert wide["head.weight"].dtype == torch.float32
    assert torch.equal(live_of(ema, module)["head.weight"], wide["head.weight"].bfloat16())


class OverflowsAt(Callback):
    def __init__(self, step: int) -> None:
        self.step, self.seen = step, 0

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen += 1
        if self.seen == self.step:
            pl_module.head.weight.grad.fill_(torch.inf)


def scaler() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))


@pytest.mark.parametrize("stop", [4, 5, 6])
def test_a_jump_that_falls_on_a_skipped_step_is_made_at_the_next_also_if_resumed(
    tmp_path: Path, stop: int
) -> None:
    def run(*callbacks: Callback, seen: int = 0, **settings: Any) -> tuple[EMAWeights, Toy, Watch]:
        ema, watch, module, breaks = EMAWeights(decay=0.9, switch_every=5), Watch(), Toy(), OverflowsAt(5)
        breaks.seen = seen
        runner = trainer(ema, breaks, watch, *callbacks, plugins=[scaler()], max_epochs=2)
        runner.fit(module, Loader(), **settings)
        return ema, module, watch

    ema, module, watch = run()
    assert torch.equal(watch.steps[5]["head.weight"], watch.steps[4]["head.weight"])
    assert ema.saved()["progress"]["switches"] == 2
    saved = tmp_path / "stopped.ckpt"
    with pytest.raises(StopError):
        run(StopAfter(stop, saved))
    again, resumed, _ = run(seen=stop, ckpt_path=saved)
    assert_equal(weights(resumed), weights(module))
    assert_equal(live_of(again, resumed), live_of(ema, module))


def test_a_second_owner_of_the_weights_conflicts() -> None:
    with pytest.raises(ConflictError, match="'weights' must have one owner"):
        watched(EMAWeights(switch_every=5), None, Lookahead())
    watched(EMAWeights(), None, Lookahead())


def test_lengths_that_a_run_has_not_are_refused_before_it_starts() -> None:
    runner = trainer(EMAWeights(switch_every="10%"), max_epochs=-1)
    with pytest.raises(ValueError, match="switch_every must be in steps, or max_steps be set, .* got '10%'"):
        runner.fit(Toy(), Loader())


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, "switch_every must be above 0, got 0"),
        (0.5, "switch_every must be a whole number"),
        (-1, "must be"),
    ],
)
def test_wrong_settings_are_named(value: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        EMAWeights(switch_every=value)
