"""Several fits: of one Trainer, of one module, of one technique."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lightning_tricks.averaging.ema import EMAWeights
from lightning_tricks.lifecycle.checkpoints import live_state
from tests.averaging.watching import Watch, differ, every_kind, live_of, slow_twin, watched
from tests.toys import Loader, Toy, assert_equal, trainer, weights

VALIDATION = Loader(2, seed=9)


@every_kind
def test_sanity_check_of_a_second_fit_sees_the_average(kind: Any) -> None:
    ema = kind()
    module, watch, runner = watched(ema, num_sanity_val_steps=1, max_epochs=1)
    assert_equal(watch.seen[0], weights(Toy()))
    runner.fit_loop.max_epochs = 2
    average, live = weights(module), live_of(ema, module)
    runner.fit(module, Loader(), VALIDATION)
    assert_equal(watch.seen[2], average)
    assert_equal(watch.starts[1], live)


def two_fits(*callbacks: Callback) -> tuple[Toy, Trainer]:
    module, runner = Toy(), trainer(*callbacks, max_epochs=2)
    runner.fit(module, Loader(), VALIDATION)
    runner.fit_loop.max_epochs = 3
    runner.fit(module, Loader(), VALIDATION)
    return module, runner


def test_a_second_fit_goes_on_from_the_live_weights_and_the_average(tmp_path: Path) -> None:
    ema, watch = EMAWeights(decay=0.9), Watch()
    module, runner = two_fits(ema, watch)
    plain, _ = two_fits()
    assert_equal(live_of(ema, module), weights(plain))
    expected = slow_twin(watch.steps, lambda _: 0.9, warmup=True, every=1, start=0)
    torch.testing.assert_close(module.head.weight.detach(), expected["head.weight"])
    assert ema.outcome()["updates"] == 15
    runner.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert_equal(live_state(tmp_path / "a.ckpt"), weights(plain))


def test_a_second_fit_of_other_weights_begins_anew() -> None:
    ema = EMAWeights(decay=0.9)
    module, _, runner = watched(ema, max_epochs=1)
    live = live_of(ema, module)
    module.head = nn.Linear(8, 3)
    runner.fit_loop.max_epochs = 2
    runner.fit(module, Loader(), VALIDATION)
    assert ema.outcome()["updates"] == 5
    assert differ(live, live_of(ema, module))


@every_kind
def test_a_module_that_is_done_keeps_its_average_when_another_is_trained(kind: Any) -> None:
    first, watch, runner = watched(kind())
    average = weights(first)
    assert differ(average, watch.steps[-1])
    runner.fit_loop.max_epochs = 4
    runner.fit(Toy(), Loader(), VALIDATION)
    assert_equal(weights(first), average)
    assert "on_save_checkpoint" not in vars(first)


def test_a_new_trainer_knows_nothing_of_the_first() -> None:
    settings: dict[str, Any] = {"decay": "warmup('40%') >> linear(to=0.5)", "decay_warmup": False}
    used, fresh = EMAWeights(**settings), EMAWeights(**settings)
    first, _, _ = watched(used)
    held = weights(first)
    (again, _, _), (alike, _, _) = watched(used, max_epochs=5), watched(fresh, max_epochs=5)
    assert_equal(weights(again), weights(alike))
    assert_equal(used.saved(), fresh.saved())
    assert_equal(weights(first), held)


@every_kind
def test_a_new_trainer_goes_on_from_what_the_module_holds(kind: Any) -> None:
    used, fresh = kind(), kind()
    first, _, _ = watched(used)
    alike = copy.deepcopy(first)
    watched(used, first)
    watched(fresh, alike)
    assert_equal(weights(first), weights(alike))
    assert_equal(live_of(used, first), live_of(fresh, alike))
