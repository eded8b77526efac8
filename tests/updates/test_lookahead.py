from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_tricks import EMAWeights, GradientClip, Lookahead, ProgressiveUnfreeze
from lightning_tricks.core.conflicts import ConflictError
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.updates.lookahead import synchronize_
from tests.averaging.watching import Watch
from tests.host_reads import HostReads
from tests.toys import Loader, Toy, TwoOptimizers, assert_equal, scaler_plugin, trainer, weights

HALVES = {"phi": [1.0, -2.0], "theta": [3.0, 2.0], "met": [2.0, 0.0]}


@pytest.mark.parametrize("due", [True, torch.tensor(True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_both_meet_on_the_way_by_hand(due: bool | Tensor, dtype: torch.dtype) -> None:
    slow, fast = [torch.tensor(HALVES["phi"])], [torch.tensor(HALVES["theta"], dtype=dtype)]
    slow = [each.to(torch.promote_types(dtype, torch.float32)) for each in slow]
    synchronize_(slow, fast, alpha=0.5, due=due)
    assert slow[0].tolist() == fast[0].tolist() == HALVES["met"]
    assert fast[0].dtype == dtype


@pytest.mark.parametrize("due", [False, torch.tensor(False)])
def test_before_it_is_due_nothing_moves_not_even_what_is_infinite(due: bool | Tensor) -> None:
    slow, fast = [torch.tensor([1.0, 2.0])], [torch.tensor([5.0, torch.inf])]
    synchronize_(slow, fast, alpha=0.5, due=due)
    assert slow[0].tolist() == [1.0, 2.0]
    assert fast[0].tolist() == [5.0, torch.inf]


@pytest.mark.parametrize(("alpha", "end"), [(0.0, 1e30), (1.0, 1e-30)])
def test_the_ends_are_exact(alpha: float, end: float) -> None:
    slow, fast = [torch.tensor([1e30])], [torch.tensor([1e-30])]
    synchronize_(slow, fast, alpha=alpha)
    assert_equal([slow, fast], [[torch.tensor([end])]] * 2)
    synchronize_([], [], alpha=alpha)


def slow_twin(make: Callable[[], Toy], *, k: int, alpha: Callable[[int], float], epochs: int = 3) -> Toy:
    """The algorithm in the paper's notation: a plain loop, one weight at a time."""
    module = make()
    optimizer, loader = module.configure_optimizers(), Loader()
    phi = {name: theta.detach().clone() for name, theta in module.named_parameters()}
    step = 0
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for index, batch in enumerate(loader):
            torch.manual_seed(1000 * epoch + index)
            optimizer.zero_grad()
            module.loss(batch).backward()
            optimizer.step()
            step += 1
            if step % k == 0:
                for name, theta in module.named_parameters():
                    phi[name] = phi[name] + alpha(step - 1) * (theta.detach() - phi[name])
                    theta.data.copy_(phi[name])
    return module


# The bias before BatchNorm has no gradient but noise, which AdamW would blow up without a larger ``eps``.
@pytest.mark.parametrize(
    "options", [{"optimizer": "SGD", "momentum": 0.9}, {"eps": 1e-3}], ids=["SGD", "AdamW"]
)
@pytest.mark.filterwarnings("ignore:Lookahead. k comes at step 16")
@pytest.mark.parametrize("k", [1, 4, 15, 16])
def test_a_run_is_the_papers_algorithm(k: int, options: dict[str, Any]) -> None:
    module = Toy(**options)
    trainer(Lookahead(k=k, alpha=0.3)).fit(module, Loader())
    twin = slow_twin(lambda: Toy(**options), k=k, alpha=lambda _: 0.3)
    for name, value in weights(twin).items():
        torch.testing.assert_close(weights(module)[name], value, msg=name)


def test_alpha_may_follow_a_schedule() -> None:
    module = Toy(optimizer="SGD")
    look = Lookahead(k=2, alpha="0.8 * linear(to=0)")
    trainer(look).fit(module, Loader())
    twin = slow_twin(lambda: Toy(optimizer="SGD"), k=2, alpha=lambda step: 0.8 * (1 - step / 15))
    for name, value in weights(twin).items():
        torch.testing.assert_close(weights(module)[name], value, msg=name)
    assert look.outcome() == {"cycles": 7}


def test_evaluations_see_the_fast_weights_of_mid_cycle() -> None:
    module, watch = Toy(), Watch()
    trainer(Lookahead(k=3), watch, max_epochs=1).fit(module, Loader(), Loader(2, seed=9))
    assert_equal(watch.seen, [watch.steps[5]])
    assert_equal(weights(module), watch.steps[5])


def test_micro_batches_are_no_steps() -> None:
    look = Lookahead(k=2)
    trainer(look, accumulate_grad_batches=2).fit(Toy(), Loader())
    assert look.outcome() == {"cycles": 4}  # 3 steps in each of 3 epochs


def test_two_optimizers_of_a_batch_count_once() -> None:
    look = Lookahead(k=5)
    trainer(look).fit(TwoOptimizers(), Loader())
    assert look.outcome() == {"cycles": 3}


class Breaks(Callback):
    """Makes all gradients infinite at some steps, and notes the weights after each batch."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.count = steps, -1
        self.after: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
        self.count += 1
        if self.count in self.steps:
            for parameter in pl_module.parameters():
                parameter.grad.fill_(float("inf"))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.after.append(pl_module.head.weight.detach().clone())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("broken", [(), (1,), (2, 3)])
def test_steps_that_were_cancelled_do_not_count(fused: bool, broken: tuple[int, ...]) -> None:
    """With alpha 0 the weights are those of the start right after each cycle, and never else."""
    module, breaks = Toy(fused=fused), Breaks(*broken)
    start = module.head.weight.detach().clone()
    trainer(breaks, GradientClip(max_norm=1e9), Lookahead(k=3, alpha=0.0), max_epochs=2).fit(module, Loader())
    applied = [step for step in range(10) if step not in broken]
    ends = {applied[index] for index in range(2, len(applied), 3)}
    for step, after in enumerate(breaks.after):
        back = any(
            end == step or (end < step and set(range(end + 1, step + 1)) <= set(broken)) for end in ends
        )
        assert torch.equal(after, start) == back, step


class Scales(Callback):
    """Notes which batches left the scaler its scale, because nothing overflowed."""

    def __init__(self) -> None:
        self.applied: list[bool] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.before = trainer.precision_plugin.scaler.get_scale()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.applied.append(trainer.precision_plugin.scaler.get_scale() == self.before)


@pytest.mark.parametrize("fused", [False, True])
def test_a_scalers_overflow_does_not_count(fused: bool) -> None:
    module, look, breaks, scales = Toy(fused=fused), Lookahead(k=2, alpha=0.0), Breaks(), Scales()
    start = module.head.weight.detach().clone()
    # The first scales are too large for half precision; each overflow halves the scale.
    trainer(look, breaks, scales, plugins=[scaler_plugin(2.0**22)], max_epochs=2).fit(module, Loader())
    assert {True, False} <= set(scales.applied)
    at_start = [torch.equal(after, start) for after in breaks.after]
    assert at_start == [sum(scales.applied[: step + 1]) % 2 == 0 for step in range(10)]


def test_frozen_weights_stay_and_begin_their_slow_ones_when_they_open() -> None:
    module, watch = Toy(), Watch()
    start = weights(module)["body.0.weight"]
    look = Lookahead(k=4, alpha=0.0)
    unfreeze = ProgressiveUnfreeze(stages=["head", "body"], at=6, lr_factor=1.0)
    trainer(look, unfreeze, watch).fit(module, Loader())
    body = [held["body.0.weight"] for held in watch.steps]
    assert all(torch.equal(each, start) for each in body[:7])
    # Opened after step 6, it moves in 7, and the cycle that ends with 8 takes it back to where it was opened.
    assert not torch.equal(body[7], start)
    assert torch.equal(body[8], start)
    assert not torch.equal(body[9], start)


@pytest.mark.parametrize("first", [True, False])
def test_averages_see_the_weights_after_it_whatever_the_order_of_the_list(first: bool) -> None:
    look, ema = Lookahead(k=2), EMAWeights(decay=0.9)
    module, watch = Toy(), Watch()
    trainer(*([look, ema] if first else [ema, look]), watch).fit(module, Loader())
    mean = watch.steps[0]["head.weight"]
    for t, held in enumerate(watch.steps[1:]):
        decay = min(0.9, (1 + t) / (10 + t))
        mean = decay * mean + (1 - decay) * held["head.weight"]
    torch.testing.assert_close(module.head.weight.detach(), mean)


def test_a_second_fit_begins_a_new_cycle_from_the_weights_that_it_finds() -> None:
    module, look, breaks = Toy(), Lookahead(k=4, alpha=0.0), Breaks()
    runner = trainer(look, breaks, max_epochs=1)
    runner.fit(module, Loader())
    with torch.no_grad():
        module.head.weight.fill_(0.5)
    breaks.after.clear()
    runner.fit_loop.max_epochs = 2
    runner.fit(module, Loader())
    assert [bool((held == 0.5).all()) for held in breaks.after] == [False, False, False, True, False]


def test_only_what_params_matches_is_called_back() -> None:
    module, watch = Toy(), Watch()
    trainer(Lookahead(k=5, alpha=0.0, params="head"), watch, max_epochs=1).fit(module, Loader())
    changed = {
        name for name, value in weights(module).items() if not torch.equal(value, watch.steps[0][name])
    }
    assert "body.0.weight" in changed
    assert changed.isdisjoint({"head.weight", "head.bias"})


@pytest.mark.parametrize("fused", [False, True])
def test_no_step_reads_anything_back(fused: bool) -> None:
    def reads(*techniques: Technique) -> int:
        runner = trainer(*techniques, max_epochs=1, log_every_n_steps=1000)
        with HostReads() as counted:
            runner.fit(Toy(fused=fused), Loader(20))
        return counted.count

    others = [GradientClip(max_norm=1e9)] if fused else []  # with it, only the device knows what was applied
    assert reads(*others, Lookahead(k=2)) == reads(*others)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"alpha": 1.5}, r"alpha must .* \[0.0, 1.0\], got 1.5"),
        ({"alpha": "2 * constant()"}, r"alpha .* \[0.0, 1.0\], got"),
        ({"params": ()}, r"params must name at least one pattern, got \(\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Lookahead(**settings)


def test_a_k_that_is_no_whole_number_is_refused() -> None:
    with pytest.raises(TypeError, match="k must be a whole number, got 5.0"):
        Lookahead(k=5.0)


def test_two_of_them_for_the_same_weights_are_refused() -> None:
    two = [Lookahead(label="a", params="*"), Lookahead(label="b", params="head")]
    with pytest.raises(ConflictError, match=r"'weights' must have one owner, got Lookahead\[a\] and Look"):
        trainer(*two).fit(Toy(), Loader())


def test_weights_that_no_optimizer_holds_are_refused() -> None:
    class HeadAlone(Toy):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.head.parameters(), lr=0.1)

    with pytest.raises(ValueError, match="params must match a parameter that an optimizer holds, got body"):
        trainer(Lookahead(params="body")).fit(HeadAlone(), Loader())


def test_a_checkpoint_holds_the_slow_weights(tmp_path: Path) -> None:
    module, watch = Toy(), Watch()
    runner = trainer(Lookahead(k=5, alpha=0.3), watch, max_steps=7)
    runner.fit(module, Loader())
    runner.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]["Lookahead"]["state"]
    assert (state["steps"], state["cycles"]) == (2, 1)
    assert torch.equal(state["slow"]["head.weight"], watch.steps[5]["head.weight"])
