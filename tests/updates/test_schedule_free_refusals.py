from __future__ import annotations

from typing import Any

import pytest
import schedulefree
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback

from lightning_tricks import (
    AdaptiveGradientClip,
    EMAWeights,
    GradientClip,
    Lookahead,
    ProgressiveUnfreeze,
    ScheduleFree,
)
from lightning_tricks.core.conflicts import ConflictError
from tests.toys import Loader, trainer
from tests.updates.test_schedule_free import Free


class Batches(Callback):
    """Counts those that training begins."""

    count = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.count += 1


def refused(error: type[Exception], match: str, module: Free, *techniques: Callback) -> None:
    batches = Batches()
    with pytest.raises(error, match=match):
        trainer(*techniques, ScheduleFree(), batches).fit(module, Loader())
    assert batches.count == 0


def test_other_optimizers_are_refused() -> None:
    match = "configure_optimizers must return a Schedule-Free optimizer, .*pip install .*, got AdamW"
    refused(ValueError, match, Free(torch.optim.AdamW))


@pytest.mark.parametrize("name", ["SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree"])
def test_forms_that_switch_within_a_step_are_refused(name: str) -> None:
    match = rf"must have train\(\) and eval\(\) to be switched, got {name}Closure, .*: use {name}(?!C)"
    refused(ValueError, match, Free(getattr(schedulefree, f"{name}Closure")))


@pytest.mark.parametrize("wrapper", ["ScheduleFreeWrapper", "ScheduleFreeWrapperReference"])
def test_wrappers_are_refused_by_lightning_itself(wrapper: str) -> None:
    def wrapped(parameters: Any, **options: Any) -> Any:
        return getattr(schedulefree, wrapper)(torch.optim.SGD(parameters, **options))

    refused(MisconfigurationException, "Unknown configuration for model optimizers", Free(wrapped))


@pytest.mark.parametrize(
    ("other", "slot"),
    [
        (EMAWeights(), "eval_weights"),
        (Lookahead(), "weights"),
        (ProgressiveUnfreeze(stages=["head", "body"]), "requires_grad"),
    ],
)
def test_what_would_change_its_average_is_refused(other: Callback, slot: str) -> None:
    refused(ConflictError, f"'{slot}' must have one owner", Free(), other)


def test_skipping_steps_by_taking_gradients_away_is_refused() -> None:
    """The optimizer counts such a step, and forgets a little more of its average."""
    refused(ValueError, "non_finite must be 'raise' or 'keep' with SGDScheduleFree", Free(), GradientClip())
    trainer(GradientClip(non_finite="raise"), ScheduleFree()).fit(Free(), Loader())
    trainer(AdaptiveGradientClip(), ScheduleFree()).fit(Free(), Loader())


def test_without_it_the_optimizer_does_not_step() -> None:
    with pytest.raises(Exception, match="Optimizer was not in train mode when step is called"):
        trainer().fit(Free(), Loader())


def test_a_setting_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="update_batchnorm must be True or False, got 1"):
        ScheduleFree(update_batchnorm=1)
