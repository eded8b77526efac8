"""What a rate that follows a schedule refuses, and by which name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_tricks import ConflictError, LearningRate, WarmupCosine
from lightning_tricks.updates.learning_rate import held_by
from tests.toys import Loader, StopAfter, StopError, Toy, trainer


def test_a_checkpoint_with_other_groups_is_refused_by_name(tmp_path: Path) -> None:
    saved = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        trainer(LearningRate(schedule=0.5), StopAfter(2, saved)).fit(Toy(), Loader())
    message = (
        r"params must split parameter groups as in the checkpoint, which has groups of \[\[6\]\] tensors"
    )
    with (
        pytest.raises(ValueError, match=message),
        pytest.warns(UserWarning, match="Be aware"),
    ):
        trainer(LearningRate(schedule=0.5, params="head", label="head")).fit(Toy(), Loader(), ckpt_path=saved)


def test_other_parameters_in_groups_of_equal_sizes_are_refused(tmp_path: Path) -> None:
    class Twins(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())

    saved = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        trainer(LearningRate(schedule=0.5, params="head"), StopAfter(2, saved)).fit(Twins(), Loader())
    message = (
        "params must split off what they did in the checkpoint, .*, 'head.weight', 'head.bias'; got 'body.0"
    )
    with (
        pytest.raises(ValueError, match=message),
        pytest.warns(UserWarning, match="resumed with changed settings"),
    ):
        trainer(LearningRate(schedule=0.5, params="body")).fit(Twins(), Loader(), ckpt_path=saved)


@pytest.mark.parametrize(
    "others",
    [
        (LearningRate(schedule=0.5, params="head.bias", label="b"),),
        (LearningRate(schedule=0.5, label="b"),),
        (WarmupCosine(),),
    ],
)
def test_two_owners_of_one_rate_are_refused(others: tuple[Callback, ...]) -> None:
    with pytest.raises(ConflictError, match="'lr' must have one owner, got LearningRate and"):
        trainer(LearningRate(schedule=0.5, params="head"), *others).fit(Toy(), Loader())


def test_the_modules_own_scheduler_is_refused() -> None:
    class WithScheduler(Toy):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    with pytest.raises(ConflictError, match="'lr' must have one owner, got the scheduler of WithScheduler"):
        trainer(LearningRate(schedule=0.5, params="head")).fit(WithScheduler(), Loader())


def test_params_that_no_optimizer_holds_are_refused() -> None:
    class HeadOnly(Toy):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.head.parameters(), 1.0)

    message = "params must match a parameter that an optimizer holds, got body.0.weight, body.0.bias, in none"
    with pytest.raises(ValueError, match=message):
        trainer(LearningRate(schedule=0.5, params="body.0")).fit(HeadOnly(), Loader())
    module = HeadOnly()
    found = held_by([module.configure_optimizers()], dict(module.named_parameters()))
    assert found == {id(p) for p in module.head.parameters()}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"schedule": "step(every=0)"}, "schedule must be a number or written like .* every must be above 0"),
        ({"schedule": "-1 * cosine()"}, "every value of schedule must lie in"),
        ({"schedule": -0.5}, r"schedule must lie in \[0.0, 1000000.0\], got -0.5"),
        ({"schedule": None}, "schedule must be a number, got None"),
        ({"schedule": 1.0, "params": ()}, "params must name at least one pattern"),
        ({"schedule": 1.0, "parms": "*"}, "did you mean 'params'"),
    ],
)
def test_bad_settings_are_refused_in_the_constructor(bad: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        LearningRate(**bad)


def test_an_optimizer_with_one_group_only_cannot_be_split() -> None:
    class Quasi(Toy):
        def __init__(self) -> None:
            super().__init__(lr=0.1, optimizer="LBFGS")

    with pytest.raises(
        ValueError, match=r"params must be '\*' with LBFGS, which takes a single group, got 'head'"
    ):
        trainer(LearningRate(schedule=0.5, params="head")).fit(Quasi(), Loader())


def test_a_schedule_that_cannot_lie_in_the_run_is_refused_before_the_first_batch() -> None:
    with pytest.raises(
        ValueError, match="the schedule of the rate must fit the run, got inverse_sqrt\\(\\): timescale must"
    ):
        trainer(LearningRate(schedule="inverse_sqrt()")).fit(Toy(), Loader())


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ("warmup(2000) >> cosine()", r"cosine\(to=0.0\) begins at step 2000, but the run has 15 steps"),
        ("multistep([3, '5 epochs'])", "milestone '5 epochs' of multistep.* is step 25, but the run has 15"),
    ],
)
def test_what_the_run_ends_before_is_said(schedule: str, told: str) -> None:
    message = f"LearningRate: of the schedule of the rate, {told}"
    with pytest.warns(UserWarning, match=message):
        trainer(LearningRate(schedule=schedule)).fit(Toy(), Loader())
    runner = trainer(LearningRate(schedule=schedule), fast_dev_run=True)
    runner.fit(Toy(), Loader())  # a warning would be an error


def test_where_no_end_is_known_nothing_is_said() -> None:
    runner = trainer(
        LearningRate(schedule="warmup(2000) >> step(every=10)"), max_epochs=-1, max_time="00:00:00:01"
    )
    runner.fit(Toy(), Loader())
