"""Averages of the same weights, one after the other in the list, move at once, each as it would alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_tricks import EMAWeights
from tests.toys import Loader, Toy, assert_equal, trainer


def kept(number: int, **settings: Any) -> EMAWeights:
    return EMAWeights(decay=1 - 0.1 / number, label=str(number), evaluate=False, **settings)


def run(*callbacks: Callback, every: int = 4) -> Trainer:
    runner = trainer(*callbacks, log_every_n_steps=every)
    runner.fit(Toy(), Loader(), Loader(2, seed=9))
    return runner


def averages(*emas: EMAWeights) -> list[dict[str, Tensor]]:
    return [ema.average() or {} for ema in emas]


@pytest.mark.parametrize(
    "settings",
    [
        [{}, {}, {}],
        [{}, {"every": 3}, {}],
        [{}, {}, {"every": 3}],
        [{}, {"params": "head"}, {}],
        [{"dtype": "float64"}, {}, {}],
        [{"buffers": "average"}, {"buffers": "average"}, {"start": 5}],
        [{}, {"switch_every": 4}, {}],
    ],
)
def test_each_is_what_it_is_where_others_come_between(settings: list[dict[str, Any]]) -> None:
    together, apart = ([kept(n, **each) for n, each in enumerate(settings, start=1)] for _ in range(2))
    run(*together)
    run(*(callback for ema in apart for callback in (ema, Callback())))
    assert_equal(averages(*together), averages(*apart))


class Lerps(TorchDispatchMode):
    """Counts calls of the kernel for many tensors."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += "_foreach_lerp_" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("between", "calls"), [([], 1), ([Callback()], 3), ([kept(3, params="head")], 4)])
def test_neighbours_of_the_same_weights_move_in_one_call(between: list[Callback], calls: int) -> None:
    class LastStep(Lerps, Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 10:
                self.__enter__()

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 11:
                self.__exit__(None, None, None)

    first, *others = (kept(number) for number in (1, 2, 4))
    counted = LastStep()
    run(first, *between, others[0], *(between and [Callback()]), others[1], counted, every=1000)
    assert counted.calls == calls


def test_a_step_that_logs_sees_each_average_moved() -> None:
    together, alone = run(kept(1), kept(2), every=1), run(kept(1), every=1)
    name = "1/ema_weights/distance"
    assert torch.equal(together.callback_metrics[name], alone.callback_metrics[name])
