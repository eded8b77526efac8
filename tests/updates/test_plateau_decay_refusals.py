"""What a rate that waits for a plateau refuses, and by which name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_tricks import ConflictError, Plateau, PlateauDecay, ProgressiveUnfreeze
from tests.toys import Loader
from tests.updates.test_plateau_decay import Graded, fit


def test_the_modules_own_scheduler_is_refused() -> None:
    class WithScheduler(Graded):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    with pytest.raises(
        ConflictError, match="'lr_decay' must have one owner, got the scheduler of WithScheduler"
    ):
        fit(WithScheduler(1.0), PlateauDecay(monitor="grade"))
    with pytest.raises(ConflictError, match="'lr_decay' must have one owner"):
        fit(Graded(1.0), PlateauDecay(monitor="grade"), PlateauDecay(monitor="grade", label="b"))


def test_a_misspelt_metric_and_a_run_without_validation_are_refused() -> None:
    with pytest.raises(ValueError, match="got 'grad'; it logs 'val_loss', 'grade'; did you mean 'grade'"):
        fit(Graded(1.0), PlateauDecay(monitor="grad"))
    with pytest.raises(ValueError, match="monitor needs validation to watch 'grade', but the run has none"):
        fit(Graded(1.0), PlateauDecay(monitor="grade"), limit_val_batches=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"monitor": ""}, "monitor must not be empty"),
        ({"factor": 1.0}, r"factor must lie in \(0.0, 1.0\), got 1.0"),
        ({"factor": 0}, r"factor must lie in \(0.0, 1.0\), got 0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"min_delta": -1}, "min_delta must lie in"),
        ({"mode": "least"}, "mode must be one of 'min', 'max'"),
        ({"cooldown": -1}, "cooldown must be at least 0"),
        ({"final": 1.5}, r"final must lie in \[0.0, 1.0\], got 1.5"),
        ({"monitr": "x"}, "did you mean 'monitor'"),
    ],
)
def test_bad_settings_are_refused_in_the_constructor(bad: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        PlateauDecay(**{"monitor": "grade", **bad})


@pytest.mark.parametrize(
    "technique",
    [
        PlateauDecay(monitor="grade"),
        ProgressiveUnfreeze(stages=["head", "body"], at=Plateau("grade")),
    ],
    ids=lambda technique: type(technique).__name__,
)
def test_a_barebones_run_is_refused_before_the_first_batch(technique: Callback) -> None:
    class Untrained(Graded):
        def training_step(self, *_: Any) -> Any:
            raise AssertionError("a batch was trained on")

    runner = Trainer(accelerator="cpu", max_epochs=2, barebones=True, callbacks=[technique])
    with pytest.raises(
        ValueError, match="needs validation to log 'grade', but with barebones=True .*: remove"
    ):
        runner.fit(Untrained(1.0, 1.0), Loader(), Loader(2))
