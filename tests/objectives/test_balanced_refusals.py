"""What balancing refuses, by name, and before it does damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch._functorch import config as functorch_config

import lightning_tricks as lt
from lightning_tricks import BalancedLosses, OptimizerMixin, OptimizerSettings
from lightning_tricks.objectives import balancing
from lightning_tricks.objectives.loss_balance import LossBalance
from tests.contract.mixing import two_tasks
from tests.fuzz.verdicts import Batches
from tests.objectives.test_balanced_losses import KINDS, built
from tests.toys import Compiled, Loader, SaveAfter, Toy, TwoOptimizers, assert_equal, trainer, weights
from tests.yaml_trainer import yaml_module

NAN, ONE, WHOLE = torch.tensor(torch.nan), torch.tensor(1.0), torch.tensor(1)
LEARNING = lt.UncertaintyBalance(KINDS)


class Given(BalancedLosses, LightningModule):
    """Balances what it is given."""

    def __init__(self, strategy: LossBalance, *batches: Any) -> None:
        super().__init__()
        self.loss_balance, self.batches = strategy, batches
        self.body = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        given = self.batches[batch_idx]
        if isinstance(given, dict):
            one = self.body.weight.sum() ** 0
            given = {k: v if v is WHOLE or not isinstance(v, Tensor) else v * one for k, v in given.items()}
        return self.balance(given)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("strategy", "batch", "error"),
    [
        (lt.FixedWeights(), {"a": ONE, "b": NAN}, "losses must be finite, got 'b': nan"),
        (lt.RandomWeights(), {"a": ONE, "b": -ONE / 0}, "losses must be finite, got 'b': -inf"),
        (lt.MagnitudeBalance(), {"a": -ONE, "b": ONE}, "and at least 0 for MagnitudeBalance, got 'a': -1.0"),
        (lt.GradNorm("body"), {"a": -ONE, "b": ONE}, "and at least 0 for GradNorm, got 'a': -1.0"),
        (lt.DynamicWeightAverage(), {"a": NAN}, "losses must be finite and at least 0 .*, got 'a': nan"),
        (lt.FixedWeights(), {"a": torch.ones(2)}, r"of one real number, got 'a': shape \(2,\)"),
        (lt.FixedWeights(), {"a": 1.0}, "losses must be tensors of one real number, got 'a': 1.0"),
        (lt.FixedWeights(), {"a": WHOLE}, "of one real number, got 'a': shape .*int64"),
        (lt.FixedWeights(), {}, "losses must hold at least one, got none"),
        (lt.FixedWeights(), [ONE], "losses must be tensors by name, got"),
        (
            lt.FixedWeights({"a": 1.0, "bx": 2.0}),
            {"a": ONE, "b": ONE},
            "losses, 'a', 'b', got 'a', 'bx'",
        ),
        (
            LEARNING,
            {"fit": ONE},
            "for the losses, 'fit', got 'fit', 'size'",
        ),
        (lt.GradNorm("body"), {"a": ONE, "b": ONE}, "got gradients of 0 for 'a', 'b'"),
    ],
)
def test_a_bad_first_batch(strategy: LossBalance, batch: Any, error: str) -> None:
    module = Given(strategy, batch)
    before = weights(module)
    with pytest.raises((TypeError, ValueError), match=error):
        trainer(max_epochs=1).fit(module, Loader(1))
    assert_equal(before, {name: value for name, value in weights(module).items() if name in before})


@pytest.mark.parametrize(
    ("second", "error"),
    [
        ({"a": ONE, "c": ONE}, "losses must be the same in each batch, 'a', 'b', got 'a', 'c'"),
        ({"a": ONE}, "losses must be the same in each batch, 'a', 'b', got 'a'"),
        ({"b": NAN, "a": ONE}, "got 'b': nan"),
    ],
)
def test_a_bad_later_batch(second: Any, error: str) -> None:
    module = Given(lt.MagnitudeBalance(), {"a": ONE, "b": ONE}, second)
    with pytest.raises(ValueError, match=error):
        trainer(max_epochs=1).fit(module, Loader(2))
    assert all(value.isfinite().all() for value in module._balancing.state.values())


def test_on_a_device_a_loss_is_named_on_the_next_step_that_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancing, "read_freely", lambda tensor: False)
    good = {"a": ONE, "b": ONE}
    module = Given(lt.MagnitudeBalance(), good, {"a": ONE, "b": NAN}, good, good, good)
    seen = Batches()
    with pytest.raises(ValueError, match="got 'b': 1.0 after one of an earlier batch that was not"):
        trainer(seen, max_epochs=1, log_every_n_steps=4).fit(module, Loader())
    assert seen.count == 4


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (
            lambda: type("Own", (BalancedLosses, TwoOptimizers), {"loss_balance": LEARNING})(),
            "loss_log_variances must be in an optimizer for UncertaintyBalance, got none that holds it",
        ),
        (lambda: built(lt.GradNorm("bodie")), "params must match a parameter, got 'bodie'.*nearest: 'body'"),
        (
            lambda: built(lt.GradNorm(("body", "body.*")), Compiled),
            "donated_buffer must be False",
        ),
        (
            lambda: built("size"),
            r"loss_balance must be a strategy such as MagnitudeBalance\(\), got 'size",
        ),
    ],
)
def test_what_the_run_does_not_offer_is_refused_before_the_first_batch(
    build: Callable[[], Toy], error: str
) -> None:
    seen = Batches()
    with functorch_config.patch(donated_buffer=True), pytest.raises((TypeError, ValueError), match=error):
        trainer(seen).fit(build(), Loader())
    assert seen.count == 0


def test_classes_that_would_hide_its_hooks_are_refused() -> None:
    with pytest.raises(TypeError, match="Net must inherit BalancedLosses before LightningModule"):
        type("Net", (LightningModule, BalancedLosses), {})
    with pytest.raises(TypeError, match=r"on_save_checkpoint of Net must call super\(\).on_save_checkpoint"):

        class Net(BalancedLosses, LightningModule):
            def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
                checkpoint["mine"] = 1

    class Fine(BalancedLosses, LightningModule):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            super().on_save_checkpoint(checkpoint)


def checkpoint_of(strategy: LossBalance | None, path: Path) -> Path:
    """Return a checkpoint after an epoch with ``strategy``, or without balancing."""
    saved = path / "a.ckpt"
    module = Toy(weight_decay=0.0) if strategy is None else built(strategy)
    trainer(SaveAfter(5, saved), max_epochs=1).fit(module, Loader())
    return saved


def resume(module: LightningModule, saved: Path, *callbacks: Callback) -> None:
    trainer(*callbacks, max_epochs=2).fit(module, Loader(), ckpt_path=saved)


def test_a_run_does_not_go_on_with_another_strategy_or_other_losses(tmp_path: Path) -> None:
    saved, seen = checkpoint_of(lt.MagnitudeBalance(), tmp_path), Batches()
    with pytest.raises(ValueError, match=r"of the checkpoint, MagnitudeBalance\(decay=0.99\), got Random"):
        resume(built(lt.RandomWeights()), saved, seen)
    assert seen.count == 0
    with pytest.warns(UserWarning, match=r"changed settings: MagnitudeBalance\(decay=0.99\) -> Magnitude"):
        resume(built(lt.MagnitudeBalance(decay=0.5)), saved)
    module = built(lt.MagnitudeBalance())
    own = module.balance
    module.__class__ = type(
        "Renamed", (type(module),), {"balance": lambda self, losses: own({"x": losses["fit"]})}
    )
    with pytest.raises(ValueError, match="losses must be the same in each batch, 'fit', 'size', got 'x'"):
        resume(module, saved)
    saved = checkpoint_of(LEARNING, tmp_path)
    other = built(lt.UncertaintyBalance({"fit": "classification"}))
    with pytest.raises(ValueError, match="losses must be .*'fit', 'size', got 'fit'"):
        resume(other, saved, seen)
    assert seen.count == 0


def test_a_checkpoint_from_before_starts_a_balance_but_holds_nothing_that_was_learned(tmp_path: Path) -> None:
    saved, seen = checkpoint_of(None, tmp_path), Batches()
    module = built(lt.MagnitudeBalance())
    resume(module, saved)
    assert module._balancing.steps == 4
    with pytest.raises(ValueError, match="must hold loss_log_variances for Uncertainty"):
        resume(built(LEARNING), saved, seen)
    assert seen.count == 0
    kind = type(built(LEARNING))
    assert not kind.load_from_checkpoint(saved).loss_log_variances.any()
    learned = checkpoint_of(LEARNING, tmp_path)
    assert kind.load_from_checkpoint(learned).loss_log_variances.all()
    assert not hasattr(type(module).load_from_checkpoint(learned), "loss_log_variances")


class Configured(OptimizerMixin, Toy):
    """With an optimizer from its description."""

    optimizer_settings = OptimizerSettings("AdamW", lr=0.05, weight_decay=0.1)


def test_what_is_learned_does_not_decay_in_groups_by_type() -> None:
    members = two_tasks(LEARNING)
    del members["configure_optimizers"]
    module = type("Both", (BalancedLosses, Configured), members)()
    runner = trainer()
    runner.fit(module, Loader())
    (group,) = (
        group
        for group in runner.optimizers[0].param_groups
        if any(p is module.loss_log_variances for p in group["params"])
    )
    assert group["weight_decay"] == 0.0
    module = built(LEARNING)
    module.options |= {"weight_decay": 0.3}
    with pytest.warns(UserWarning, match="loss_log_variances should not decay, got weight_decay=0.3"):
        trainer().fit(module, Loader())


def test_what_never_balances_says_so() -> None:
    class Silent(BalancedLosses, Toy):
        pass

    with pytest.warns(UserWarning, match="BalancedLosses: training_step never called self.balance"):
        trainer(max_epochs=1).fit(Silent(), Loader())


class FromYAML(BalancedLosses, Toy):
    """Takes its strategy."""

    def __init__(self, loss_balance: LossBalance) -> None:
        super().__init__(weight_decay=0.0)
        self.save_hyperparameters()
        self.loss_balance = loss_balance


@pytest.mark.parametrize(
    "strategy",
    [
        lt.FixedWeights({"fit": 1.0, "size": "linear(to=0.1)"}),
        lt.MagnitudeBalance(decay=0.5),
        lt.UncertaintyBalance(KINDS, start=0.0),
        lt.GradNorm(("body", "head"), alpha=0.5),
        lt.DynamicWeightAverage(temperature=3.0),
        lt.RandomWeights(seed=4),
    ],
)
def test_a_strategy_comes_from_yaml_and_from_hyperparameters(strategy: LossBalance, tmp_path: Path) -> None:
    kind = type(strategy)
    arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(strategy).items()}
    written = {"class_path": f"lightning_tricks.{kind.__name__}", "init_args": arguments}
    found: Any = yaml_module({"model": {"loss_balance": written}, "trainer": {"logger": False}}, FromYAML)
    again = kind(**vars(found.loss_balance))
    assert again == found.loss_balance
    assert repr(found.loss_balance).replace("[", "(").replace("]", ")") == repr(strategy)
    runner = trainer(max_epochs=0)
    runner.fit(FromYAML(strategy), Loader())
    runner.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert FromYAML.load_from_checkpoint(tmp_path / "a.ckpt").loss_balance == strategy
