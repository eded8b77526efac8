"""What the mixin refuses, and what it takes though it is unusual."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_tricks import OptimizerMixin, OptimizerSettings
from tests.toys import Loader, Toy, trainer
from tests.updates.test_optimizer_mixin import Mixed

RMS = OptimizerSettings("RMSprop")


class NeedsRate(torch.optim.SGD):
    """Has no rate of its own, and wants a closure."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)

    def step(self, closure: Any = None) -> Any:
        if closure is None:
            raise ValueError("a closure must be given")
        return super().step(closure)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (lambda: OptimizerSettings("adamw"), "got 'adamw'; did you mean 'AdamW'"),
        (lambda: OptimizerSettings("Optimizer"), "optimizer must be an optimizer's name or class"),
        (
            lambda: OptimizerSettings("no.such.Kind"),
            "must be a path that can be imported, got 'no.such.Kind'",
        ),
        (
            lambda: OptimizerSettings("SGD", options={"momentun": 0.9}),
            "got 'momentun' in .*; did you mean 'momentum'",
        ),
        (lambda: OptimizerSettings(options={"lr": 0.9}), "lr must be given by itself, got it in options"),
        (lambda: OptimizerSettings("LBFGS", weight_decay=0.1), "weight_decay must be an option of LBFGS"),
        (lambda: OptimizerSettings(lr=0.0), "lr must lie in"),
        (lambda: OptimizerSettings(layer_decay=1.5), "layer_decay must lie in"),
        (lambda: OptimizerSettings(layers=["head"]), "layer_decay must be below 1 with layers"),
        (lambda: OptimizerSettings(overrides={"head": {"lrr": 1.0}}), "did you mean 'lr'"),
        (
            lambda: OptimizerSettings(overrides={"head": 1.0}),
            "must be options by name, by pattern, got {'head': 1.0}",
        ),
        (
            lambda: OptimizerSettings(overrides={"hed": {"lr": 1.0}}),
            "overrides must match .* nearest: 'head'",
        ),
        (lambda: OptimizerSettings("LBFGS", layer_decay=0.5), "LBFGS takes a single group"),
        (
            lambda: OptimizerSettings(params="head"),
            "must be for each parameter, got none for 'body.0.weight'",
        ),
        (
            lambda: [OptimizerSettings(), OptimizerSettings()],
            r"optimizer_settings\[1\] must be for a parameter",
        ),
        (lambda: [OptimizerSettings("LBFGS", params="head"), RMS], "LBFGS must be the only optimizer"),
        (lambda: OptimizerSettings(overrides={"head": {"lr": None}}), "lr of overrides.* must be a number"),
        (
            lambda: [OptimizerSettings(params="head"), OptimizerSettings(overrides={"head": {"lr": 1.0}})],
            "overrides must match a parameter of these settings, got 'head', which others took",
        ),
        (lambda: OptimizerSettings(NeedsRate), "lr must be given for NeedsRate, which has none of its own"),
        (list, "must not be empty"),
        (lambda: "AdamW", "must be OptimizerSettings, or several of them, got 'AdamW'"),
    ],
)
def test_errors_come_before_the_first_batch_and_say_what_to_do(settings: Any, expected: str) -> None:
    with pytest.raises((ValueError, TypeError), match=expected):
        trainer(max_epochs=1).fit(Mixed(settings()), Loader())


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
def test_muon_takes_matrices_and_wants_others_for_the_rest() -> None:
    with pytest.raises(ValueError, match="got none for 'body.0.bias', .*add OptimizerSettings"):
        trainer().fit(Mixed(OptimizerSettings("Muon")), Loader())
    with pytest.raises(ValueError, match="must be for a parameter, for Muon a matrix, that none before it"):
        trainer().fit(Mixed([OptimizerSettings("Muon", params="body.1"), OptimizerSettings()]), Loader())


def test_an_optimizer_that_takes_no_trial_step_has_a_table_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainer(max_epochs=1).fit(Mixed(OptimizerSettings(NeedsRate, lr=0.1)), Loader())
    assert capsys.readouterr().out.splitlines()[-1].split("|")[-2].strip() == "?"


def test_a_module_without_layers_to_tell_apart_is_refused() -> None:
    class Flat(OptimizerMixin, Toy):
        optimizer_settings = OptimizerSettings(layer_decay=0.5)

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 8)

    with pytest.raises(ValueError, match="layers must be given with layer_decay=0.5, .* in Flat"):
        trainer().fit(Flat(), Loader())


def test_the_mixin_must_come_first() -> None:
    with pytest.raises(TypeError, match="Own must inherit OptimizerMixin before Toy"):

        class Own(Toy, OptimizerMixin):
            pass

    with pytest.raises(TypeError, match="Late must inherit OptimizerMixin before LightningModule"):

        class Late(LightningModule, OptimizerMixin):
            pass
