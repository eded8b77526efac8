"""The phases in which a technique may change a module's layers and its first weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from lightning_tricks import ConflictError
from lightning_tricks.core.conflicts import Claim
from lightning_tricks.lifecycle.technique import Technique
from tests.toys import Loader, StopAfter, StopError, Toy, TwoOptimizers, trainer, weights


class Late(Toy):
    """Makes one layer in ``setup`` and one in ``configure_model``, as users do."""

    def setup(self, stage: str) -> None:
        self.first = nn.Linear(2, 2)

    def configure_model(self) -> None:
        self.configured = getattr(self, "configured", 0) + 1
        self.second = nn.Linear(2, 2)


@final
@dataclass(eq=False, repr=False, kw_only=True)
class Builder(Technique):
    """Notes when its phases come, and doubles the head's biases plus one."""

    calls: list[str] = field(default_factory=list, repr=False)

    build_order: ClassVar[int] = 1

    def claims(self) -> Iterable[Claim]:
        return []

    def build(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.calls.append(f"build {hasattr(pl_module, 'second')} {len(trainer.optimizers)}")

    def initialize(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.calls.append(f"initialize {len(trainer.optimizers)}")
        with torch.no_grad():
            pl_module.head.bias.fill_(5.0)  # type: ignore[union-attr, operator]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.calls.append(f"begin {pl_module.head.bias.sum().item()}")  # type: ignore[union-attr, operator, arg-type]


@final
@dataclass(eq=False, repr=False, kw_only=True)
class Earlier(Technique):
    """Listed last, but first to build."""

    calls: list[str] = field(default_factory=list, repr=False)

    def claims(self) -> Iterable[Claim]:
        return []

    def build(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.calls.append("earlier")


def test_layers_are_complete_and_optimizers_are_not_there_yet() -> None:
    calls: list[str] = []
    module = Late()
    trainer(Builder(calls=calls), Earlier(calls=calls), max_epochs=1).fit(module, Loader())
    assert calls == ["earlier", "build True 0", "initialize 1", "begin 15.0"]
    assert module.configured == 1
    assert "configure_model" not in vars(module)


def test_a_module_without_configure_model_is_built_too() -> None:
    calls: list[str] = []
    module = TwoOptimizers()
    trainer(Builder(calls=calls), max_epochs=1).fit(module, Loader())
    assert calls[:2] == ["build False 0", "initialize 2"]


@pytest.mark.parametrize("run", ["validate", "test", "predict"])
def test_evaluations_build_but_do_not_initialize(run: str) -> None:
    calls: list[str] = []
    module = Late()
    bias = module.head.bias.detach().clone()
    runner = trainer(Builder(calls=calls))
    {"validate": runner.validate, "test": runner.test, "predict": runner.predict}[run](module, Loader())
    assert calls == ["build True 0"]
    assert torch.equal(module.head.bias, bias)


def test_a_run_that_goes_on_keeps_its_weights(tmp_path: Path) -> None:
    saved = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        trainer(Builder(), StopAfter(3, saved)).fit(Toy(), Loader())
    technique = Builder()
    runner = trainer(technique)
    runner.fit(Toy(), Loader(), ckpt_path=saved)
    assert [call.split()[0] for call in technique.calls] == ["build", "begin"]
    runner.fit_loop.max_epochs = 4
    runner.fit(runner.lightning_module, Loader())
    assert [call.split()[0] for call in technique.calls] == ["build", "begin"] * 2


def test_a_checkpoint_of_step_zero_counts_as_well(tmp_path: Path) -> None:
    runner = trainer(max_epochs=0)
    runner.fit(Toy(), Loader())
    runner.save_checkpoint(tmp_path / "a.ckpt")
    before = weights(runner.lightning_module)["head.bias"]
    technique = Builder()
    runner = trainer(technique, max_epochs=1)
    runner.fit(Toy(), Loader(), ckpt_path=tmp_path / "a.ckpt")
    assert technique.calls[-1] == f"begin {float(before.sum())}"


def test_the_place_is_given_back_after_an_error() -> None:
    class Broken(Late):
        def setup(self, stage: str) -> None:
            raise StopError

    module = Broken()
    with pytest.raises(StopError):
        trainer(Builder()).fit(module, Loader())
    assert "configure_model" not in vars(module)


def test_what_the_user_put_on_the_instance_comes_back() -> None:
    module: Any = Late()
    own = module.configure_model
    vars(module)["configure_model"] = own
    trainer(Builder(), max_epochs=1).fit(module, Loader())
    assert vars(module)["configure_model"] is own
    assert module.configured == 1


@pytest.mark.parametrize("first", [False, True])
def test_lightnings_own_averaging_copies_the_module_too_early(first: bool) -> None:
    pair = [EMAWeightAveraging(), Builder()] if first else [Builder(), EMAWeightAveraging()]
    with pytest.raises(ConflictError, match="copies the module: remove EMAWeightAveraging"):
        trainer(*pair).fit(Toy(), Loader())


def test_after_an_error_anybody_may_set_weights() -> None:
    technique = Builder()
    runner = trainer(technique)
    with pytest.raises(TypeError):
        runner.fit(Toy(), 5)  # type: ignore[arg-type]
    technique.conductor.initialized.add(torch.zeros(1))
    with pytest.raises(TypeError):
        runner.fit(Toy(), 5)  # type: ignore[arg-type]
    assert technique.conductor.initialized == set()
