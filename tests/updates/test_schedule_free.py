from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import schedulefree
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_tricks import LearningRate, ScheduleFree
from lightning_tricks.updates.schedule_free import evaluation_weights
from tests.averaging.watching import Watch, differ
from tests.toys import Loader, StopError, Toy, assert_equal, scaler_plugin, trainer, weights

VALIDATION = Loader(2, seed=9, fixed=True)
FORMS: list[Callable[..., Any]] = [
    schedulefree.SGDScheduleFree,
    schedulefree.AdamWScheduleFree,
    schedulefree.RAdamScheduleFree,
    schedulefree.SGDScheduleFreeReference,
    schedulefree.AdamWScheduleFreeReference,
    schedulefree.AdamWScheduleFreePaper,
]


class Free(Toy):
    """The toy without BatchNorm and dropout, with a Schedule-Free optimizer of any kind."""

    def __init__(self, kind: Callable[..., Any] = schedulefree.SGDScheduleFree, **options: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        self.kind, self.free = kind, {"lr": 0.1, **options}

    def configure_optimizers(self) -> Any:
        return self.kind(self.parameters(), **self.free)


@pytest.mark.parametrize("form", FORMS)
def test_evaluation_weights_are_those_of_eval_and_cost_the_others_no_bit(form: Callable[..., Any]) -> None:
    module = nn.Linear(4, 3)
    optimizer = form(module.parameters(), lr=0.1, weight_decay=0.1)
    optimizer.train()
    for seed in range(7):
        for parameter in module.parameters():
            generator = torch.Generator().manual_seed(seed)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    held, state = weights(module), deepcopy(optimizer.state_dict())
    found = evaluation_weights(optimizer)
    assert_equal(weights(module), held)
    assert_equal(optimizer.state_dict(), state)
    optimizer.eval()
    assert differ(weights(module), held)
    assert_equal(
        [found[parameter] for parameter in module.parameters()],
        [*map(nn.Parameter.detach, module.parameters())],
    )


def slow_twin(
    *, gamma: Callable[[int], float], beta: float, steps: int
) -> list[dict[str, dict[str, Tensor]]]:
    """Schedule-Free SGD in the paper's notation, in a plain loop: x and y at first and after each step."""
    module, loader = Free(), Loader()
    z = {name: value.detach().double() for name, value in module.named_parameters()}
    x, y, seen, total = z, z, [{"x": z, "y": z}], 0.0
    for t in range(steps):
        if t % 5 == 0:
            loader.set_epoch(t // 5)
            batches = iter(loader)
        module.load_state_dict(y)
        module.zero_grad()
        module.loss(next(batches)).backward()
        gradient = {name: value.grad.double() for name, value in module.named_parameters()}
        z = {name: z[name] - gamma(t) * gradient[name] for name in z}
        largest = max(gamma(s) for s in range(t + 1))
        total += largest**2
        c = largest**2 / total
        x = {name: (1 - c) * x[name] + c * z[name] for name in z}
        y = {name: (1 - beta) * z[name] + beta * x[name] for name in z}
        seen.append({"x": x, "y": y})
    return seen


@pytest.mark.parametrize("warmup", [0, 4])
def test_training_holds_y_and_evaluation_x_of_the_paper(warmup: int) -> None:
    module, watch = Free(momentum=0.8, warmup_steps=warmup), Watch()
    trainer(ScheduleFree(), watch).fit(module, Loader(), VALIDATION)
    twin = slow_twin(gamma=lambda t: 0.1 * min(1.0, (t + 1) / max(warmup, 1)), beta=0.8, steps=15)
    for step, held in enumerate(watch.steps):
        for name, value in held.items():
            torch.testing.assert_close(value.double(), twin[step]["y"][name], rtol=1e-4, atol=1e-6)
    for seen, step in zip([*watch.seen, weights(module)], [5, 10, 15, 15], strict=True):
        for name, value in seen.items():
            torch.testing.assert_close(value.double(), twin[step]["x"][name], rtol=1e-4, atol=1e-6)


def test_a_schedule_that_rises_is_the_optimizers_own_warm_up() -> None:
    own, ours = Free(warmup_steps=6), Free()
    trainer(ScheduleFree()).fit(own, Loader())
    # (t + 1) / (w + 1) here and (k + 1) / warmup_steps there.
    trainer(ScheduleFree(), LearningRate(schedule="warmup(5) >> constant()")).fit(ours, Loader())
    assert_equal(weights(ours), weights(own))


@pytest.mark.parametrize("form", FORMS)
def test_validation_in_mid_epoch_changes_no_bit_of_the_training(form: Callable[..., Any]) -> None:
    results = []
    for settings in ({"limit_val_batches": 0}, {"val_check_interval": 2, "num_sanity_val_steps": 2}):
        module, watch = Free(form), Watch()
        trainer(ScheduleFree(), watch, **settings).fit(module, Loader(), VALIDATION)
        results.append((watch.steps, weights(module)))
    assert_equal(*results)
    assert differ(watch.seen[-1], watch.steps[-1])


class Modes(Callback):
    """Notes in each hook of an evaluation whether the module holds the weights of the last step."""

    def __init__(self) -> None:
        self.live: dict[str, bool] = {}
        self.last = torch.empty(0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.last = pl_module.head.weight.detach().clone()

    def _note(self, hook: str, pl_module: LightningModule) -> None:
        self.live[hook] = torch.equal(self.last, pl_module.head.weight)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note("on_validation_start", pl_module)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._note("on_validation_batch_start", pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note("on_validation_epoch_end", pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note("on_validation_end", pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note("on_train_epoch_end", pl_module)


def test_callbacks_in_validation_see_the_right_mode_20441() -> None:
    modes = Modes()
    trainer(ScheduleFree(), modes).fit(Free(), Loader(), VALIDATION)
    assert modes.live == {
        "on_validation_start": False,
        "on_validation_batch_start": False,
        "on_validation_epoch_end": False,
        "on_validation_end": True,
        "on_train_epoch_end": True,
    }


def test_evaluations_after_fit_see_x() -> None:
    module, watch = Free(), Watch()
    runner = trainer(ScheduleFree(), watch)
    runner.fit(module, Loader(), VALIDATION)
    held = watch.seen[-1]
    watch.seen.clear()
    runner.validate(module, VALIDATION, verbose=False)
    runner.test(module, VALIDATION, verbose=False)
    runner.predict(module, VALIDATION)
    assert_equal([*watch.seen, weights(module)], [held] * 4)


class Switches(Free):
    """Follows the package's advice by itself."""

    def on_train_epoch_start(self) -> None:
        self.optimizers().train()

    def on_validation_epoch_start(self) -> None:
        self.optimizers().eval()

    def on_test_epoch_start(self) -> None:
        self.trainer.optimizers[0].eval()


def test_a_module_that_switches_too_does_no_harm() -> None:
    results = []
    for module in (Free(), Switches()):
        watch = Watch()
        runner = trainer(ScheduleFree(), watch)
        runner.fit(module, Loader(), VALIDATION)
        runner.test(module, VALIDATION, verbose=False)
        results.append((watch.steps, watch.seen, weights(module)))
    assert_equal(*results)


def test_a_module_that_leaves_the_optimizer_in_eval_mode_is_told() -> None:
    class Flips(Free):
        def on_validation_model_eval(self) -> None:
            self.eval()
            self.optimizers().eval()

        def on_validation_model_train(self) -> None:
            self.train()

    with pytest.raises(RuntimeError, match="SGDScheduleFree must be switched by ScheduleFree alone"):
        trainer(ScheduleFree()).fit(Flips(), Loader(), VALIDATION)


def test_another_optimizer_beside_it_is_left_alone() -> None:
    class Two(Free):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizers = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            for optimizer in optimizers:
                optimizer.step()

        def configure_optimizers(self) -> Any:
            free = schedulefree.SGDScheduleFree(self.body.parameters(), lr=0.1)
            return [free, torch.optim.SGD(self.head.parameters(), lr=0.1)]

    watch = Watch()
    trainer(ScheduleFree(), watch).fit(Two(), Loader(), VALIDATION)
    seen, last = watch.seen[-1], watch.steps[-1]
    same = {name: torch.equal(seen[name], last[name]) for name in seen}
    assert same == {name: name.startswith("head") for name in seen}


def test_a_step_that_the_scaler_skips_is_not_counted_by_the_optimizer() -> None:
    module = Free(schedulefree.AdamWScheduleFree)
    runner = trainer(ScheduleFree(), plugins=[scaler_plugin(2.0**22)], max_epochs=2)
    runner.fit(module, Loader())
    scale = runner.precision_plugin.scaler.get_scale()
    skipped = 22 - torch.tensor(scale).log2().item()
    assert skipped > 0
    assert runner.optimizers[0].param_groups[0]["k"] == 10 - skipped


def test_weights_that_are_frozen_in_mid_run_keep_their_average() -> None:
    class Freezes(Free):
        def on_train_epoch_start(self) -> None:
            self.head.requires_grad_(self.current_epoch == 0)

    watch = Watch()
    trainer(ScheduleFree(), watch).fit(Freezes(), Loader(), VALIDATION)
    first, last = watch.seen[0]["head.weight"], watch.seen[-1]["head.weight"]
    assert torch.equal(first, last)
    assert not torch.equal(last, watch.steps[-1]["head.weight"])


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end"])
def test_an_error_gives_y_back_to_the_bit_and_the_optimizer_its_mode(hook: str) -> None:
    class Breaks(Callback):
        pass

    def stop(self: Any, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise StopError

    setattr(Breaks, hook, stop)
    module, watch = Free(), Watch()
    runner = trainer(ScheduleFree(), watch, Breaks())
    with pytest.raises(StopError):
        runner.fit(module, Loader(), VALIDATION)
    assert_equal(weights(module), watch.steps[-1])
    assert runner.optimizers[0].param_groups[0]["train_mode"] is True


def test_a_second_fit_begins_with_y() -> None:
    module, watch = Free(), Watch()
    runner = trainer(ScheduleFree(), watch, max_epochs=1)
    runner.fit(module, Loader(), VALIDATION)
    assert differ(weights(module), watch.steps[-1])
    runner.fit_loop.max_epochs = 2
    runner.fit(module, Loader(), VALIDATION)
    assert_equal(watch.starts[1], watch.steps[5])
    assert len(watch.steps) == 11


def test_weights_put_in_between_two_fits_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    module, watch = Free(), Watch()
    runner = trainer(ScheduleFree(), watch, max_epochs=1)
    runner.fit(module, Loader(), VALIDATION)
    with torch.no_grad():
        module.head.weight.fill_(0.5)
    put = weights(module)
    runner.fit_loop.max_epochs = 2
    runner.fit(module, Loader(), VALIDATION)
    assert_equal(watch.starts[1], put)
    assert "ScheduleFree: the module holds other weights than the average" in capsys.readouterr().out
