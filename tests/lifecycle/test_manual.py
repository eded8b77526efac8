"""Manual optimization: what the module does by itself is seen, or said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch import LightningModule

import lightning_tricks as lt
from tests.toys import Loader, Toy, TwoOptimizers, trainer


class Raw(TwoOptimizers):
    """Steps past Lightning."""

    def optimizers(self, use_pl_optimizer: bool = False) -> object:
        return LightningModule.optimizers(self, use_pl_optimizer=False)


@pytest.mark.parametrize("technique", [lt.GradientClip, lt.WarmupCosine, lt.EMAWeights])
def test_a_step_past_lightning_is_an_error(technique: type[lt.GradientClip]) -> None:
    with pytest.raises(RuntimeError, match="Adam.* was stepped past Lightning.*use_pl_optimizer=False"):
        trainer(technique()).fit(Raw(), Loader())


class Twice(Toy):
    """Steps twice in every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: object, batch_idx: int) -> None:
        for _ in range(2):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()


def test_several_steps_in_a_batch_are_said_once() -> None:
    schedule = lt.WarmupCosine()
    with pytest.warns(UserWarning, match="made 2 steps in a batch, which schedules") as told:
        trainer(schedule).fit(Twice(), Loader())
    assert len([each for each in told if "in a batch" in str(each.message)]) == 1
    assert schedule.outcome()["steps"] == 15


def test_a_trainer_of_the_other_package_is_refused_with_the_remedy(tmp_path: Path) -> None:
    other = type("Trainer", (SimpleNamespace,), {"__module__": "pytorch_lightning.trainer.trainer"})()
    with pytest.raises(TypeError, match="Trainer must be that of lightning.pytorch, got pytorch_lightning"):
        lt.GradientClip().setup(other, Toy(), "fit")
