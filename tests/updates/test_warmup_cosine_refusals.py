from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lightning_tricks import ConflictError, WarmupCosine
from tests.toys import Loader, Toy, TwoOptimizers, trainer
from tests.updates.test_warmup_cosine import used


class WithScheduler(Toy):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def test_the_modules_own_scheduler_is_refused() -> None:
    with pytest.raises(ConflictError, match="'lr' must have one owner, got the scheduler of WithScheduler"):
        trainer(WarmupCosine()).fit(WithScheduler(), Loader())
    with pytest.raises(ConflictError, match="WarmupCosine twice|'lr' must have one owner"):
        trainer(WarmupCosine(), WarmupCosine(label="b")).fit(Toy(), Loader())


class Stream(torch.utils.data.IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from Loader()


def unsized() -> torch.utils.data.DataLoader[Any]:
    return torch.utils.data.DataLoader(Stream(), batch_size=None)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"loader": unsized()}, "the training loader has no length"),
        ({"max_epochs": None, "max_time": "00:01:00:00"}, "neither max_epochs nor max_steps"),
        ({"max_epochs": -1}, "neither max_epochs nor max_steps"),
        (
            {"module": TwoOptimizers(), "max_steps": 10, "max_epochs": -1},
            "max_steps counts the steps of several optimizers",
        ),
    ],
    ids=["unsized", "max_time", "endless", "manual max_steps"],
)
def test_a_run_of_unknown_length_needs_total(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"total must be given, or .*max_steps.*, since .*{reason}"):
        used(WarmupCosine(), **settings)


def test_total_stands_in_for_an_unknown_length() -> None:
    with pytest.warns(UserWarning, match="ends at step 10, but the run goes on"):
        rates = used(WarmupCosine(warmup="20%", total=10), loader=unsized())
    assert rates[:2] == pytest.approx([1 / 3, 2 / 3])
    assert rates[2] == 1.0
    assert rates[10:] == [0.0] * 6


def test_max_steps_alone_is_length_enough() -> None:
    assert len(used(WarmupCosine(), loader=unsized(), max_steps=12, max_epochs=-1)) == 13


def test_a_module_without_optimizer_is_refused() -> None:
    class NoOptimizer(Toy):
        def configure_optimizers(self) -> Any:
            return None

    with (
        pytest.raises(
            ValueError, match=r"NoOptimizer\.configure_optimizers must return an optimizer, got none"
        ),
        pytest.warns(UserWarning, match="no optimizer"),
    ):
        trainer(WarmupCosine()).fit(NoOptimizer(), Loader())


def test_a_warmup_longer_than_the_run_is_said() -> None:
    told = (
        r"WarmupCosine: of the schedule of the rate, cosine\(to=0.0\) begins at step 500, but the run has 15"
    )
    with pytest.warns(UserWarning, match=told):
        used(WarmupCosine(warmup=500))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"warmup": 0.05}, "warmup must be a whole number of steps or text .*, got 0.05"),
        ({"warmup": "5 percent"}, "warmup must be"),
        ({"warmup": "120%"}, "warmup must be at most 100 percent, got .120%"),
        ({"shape": "cubic"}, "shape must be one of 'linear', 'exponential', got 'cubic'"),
        ({"final": 1.5}, r"final must lie in \[0.0, 1.0\], got 1.5"),
        ({"final": "0"}, "final must be a number, got '0'"),
        ({"total": "50%"}, "total must be in steps or epochs, got '50%'"),
        ({"total": 0}, "total must be above 0, got 0"),
        ({"warm_up": 3}, "did you mean 'warmup'"),
    ],
)
def test_bad_settings_are_refused_in_the_constructor(bad: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        WarmupCosine(**bad)
