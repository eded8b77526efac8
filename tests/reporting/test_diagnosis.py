"""Diagnosis in runs: what it watches, what it says and when, what it keeps."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_tricks import Diagnosis, FailureSignals, GradientClip, GradientHealth, LearningRate, Player
from tests.contract.test_together import reads_per_step
from tests.objectives.gan_toys import PointGAN, points
from tests.toys import Loader, Logged, StopAfter, StopError, Toy, TwoOptimizers, trainer


def told(
    *callbacks: Callback, module: Toy | None = None, every: int = 1, **settings: Any
) -> tuple[Diagnosis, list[str]]:
    """Return a diagnosis that looked at each of ``every`` steps of a run, and its warnings."""
    diagnosis = Diagnosis(every=every)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(*callbacks, diagnosis, **settings).fit(module or Toy(), Loader(), Loader(fixed=True))
    return diagnosis, [str(each.message) for each in caught if str(each.message).startswith("Diagnosis")]


def test_windows_are_what_the_run_was_like() -> None:
    losses: list[float] = []

    class Watches(Callback):
        def on_train_batch_end(self, _: Any, __: Any, outputs: Any, *___: Any) -> None:
            losses.append(float(outputs["loss"]))

    diagnosis = Diagnosis(every=3)
    rate = LearningRate(schedule="linear(to=0.5)")
    trainer(Watches(), rate, diagnosis, max_epochs=2).fit(Toy(), Loader(), Loader(fixed=True))
    windows = diagnosis._run.windows
    assert [window.step for window in windows] == [3, 6, 9]
    assert [window.loss for window in windows] == [
        pytest.approx(sum(losses[i : i + 3]) / 3) for i in (0, 3, 6)
    ]
    first = torch.tensor(losses[:3], dtype=torch.float64)
    assert windows[0].spread == pytest.approx(float(first.std(correction=0)), rel=1e-6)
    assert diagnosis._run.first == pytest.approx(losses[0])
    assert windows[0].rate == 1.0 and windows[2].rate == pytest.approx(0.6 / 0.9)
    assert [each.epoch for each in diagnosis._run.validations] == [1, 2]
    assert diagnosis._run.validations[1].training == pytest.approx(sum(losses[3:9]) / 6)


class Half(Toy):
    """A branch whose output nobody uses, and one whose units never open."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(4, 3)
        self.dead = nn.Linear(4, 3)
        nn.init.constant_(self.dead.bias, -100.0)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return super().loss(batch) + self.dead(batch[0]).relu().sum()


def test_layers_that_nothing_reaches_and_dead_ones_are_told_apart_and_once() -> None:
    diagnosis, messages = told(module=Half(), max_epochs=2)
    assert list(diagnosis.findings) == ["no gradient", "dead layer"]
    assert messages == [
        "Diagnosis, no gradient: none arrives in 'unused'; let the loss depend on it, or freeze it",
        "Diagnosis, dead layer: all gradients are zero in 'dead'; lower the rate, initialise it anew, or let "
        "units leak (LeakyReLU)",
    ]
    assert diagnosis.findings["dead layer"].step == 2
    assert diagnosis.outcome()["findings"] == "no gradient; dead layer"


class Deep(Toy):
    """Sigmoids one after another, through which no gradient passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(8 if index else 4, 8) for index in range(12)]
        self.body = nn.Sequential(*(each for layer in layers for each in (layer, nn.Sigmoid())))


def test_where_gradients_vanish_no_rate_is_blamed() -> None:
    diagnosis, messages = told(module=Deep(), every=10, max_epochs=40)
    assert diagnosis._run.windows[-1].step > 100
    assert list(diagnosis.findings) == ["vanishing gradient"]
    assert messages[0].startswith(
        "Diagnosis, vanishing gradient: of those in the largest layer, less than 1e-06 arrives in 'body.0'"
    )


def test_the_rate_is_told_by_layers_that_learn() -> None:
    class Collapsed(Toy):
        """Most layers are dead, as after steps that were too large."""

        def __init__(self) -> None:
            super().__init__()
            self.dead = nn.ModuleList(nn.Linear(4, 3) for _ in range(9))
            for layer in self.dead:
                nn.init.constant_(layer.bias, -100.0)

        def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return super().loss(batch) + sum(layer(batch[0]).relu().sum() for layer in self.dead)

    diagnosis, _ = told(module=Collapsed(), max_epochs=1)
    assert "dead layer" in diagnosis.findings
    assert all(window.update > 0.01 for window in diagnosis._run.windows)  # decay alone: 5e-4


def test_optimizers_that_step_in_turn_leave_no_layer_alone() -> None:
    class Turns(TwoOptimizers):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            optimizer = self.optimizers()[batch_idx % 2]
            optimizer.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            optimizer.step()
            return loss

    diagnosis, messages = told(module=Turns())
    assert messages == [] and diagnosis.outcome() == {"looks": 15, "findings": "none"}


def test_thresholds_of_clipping() -> None:
    settings = {"limit_train_batches": 5, "max_epochs": 25, "limit_val_batches": 0}
    always, _ = told(GradientClip(max_norm=1e-4), **settings)
    assert "GradientClip clips nearly always" in always.findings
    never, _ = told(GradientClip(max_norm=1e4), **settings)
    kind = "GradientClip clips never"
    assert kind in never.findings and "none of 125 steps" in never.findings[kind].evidence
    between, _ = told(GradientClip(max_norm=2.5), **settings)
    assert kind not in between.findings


def test_a_critic_at_its_floor_is_among_the_findings() -> None:
    players = {"critic_optimizer": Player("Adam", lr=0.1), "generator_optimizer": Player("SGD", lr=1e-4)}
    signals = FailureSignals(start=0, window=4, variance=1e-9)
    gan, diagnosis = PointGAN(failure_signals=signals, **players), Diagnosis(every=1)
    far = DataLoader(points(16).dataset.tensors[0] + 100.0, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(diagnosis, max_epochs=1).fit(gan, far)
    assert "the critic wins" in diagnosis.findings["GANMixin, floor"].evidence


def test_what_gradient_health_found_is_told_once() -> None:
    diagnosis, messages = told(GradientHealth(every=1), module=Half(), max_epochs=1)
    assert "GradientHealth, dead" in diagnosis.findings
    assert not any("GradientHealth" in message for message in messages)


def test_a_rate_that_tears_the_weights_apart() -> None:
    diagnosis, messages = told(LearningRate(schedule="warmup(8) >> constant(1.0)"), module=Toy(lr=1e6))
    assert "rate too high (divergence)" in diagnosis.findings
    assert any("lower the learning rate" in message for message in messages)


def test_resumed_it_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    def run(*others: Callback, path: Path | None = None) -> Diagnosis:
        diagnosis = Diagnosis(every=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(diagnosis, *others).fit(Half(), Loader(), Loader(fixed=True), ckpt_path=path)
        return diagnosis

    whole, path = run(), tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        run(StopAfter(7, path))
    again = run(path=path)
    assert again._run == whole._run and again.findings == whole.findings
    assert whole.findings and torch.load(path, weights_only=True)


def test_what_it_never_saw_is_said() -> None:
    with pytest.warns(UserWarning, match=r"never looked: .*log_every_n_steps must be .* got 100 and 1"):
        trainer(Diagnosis(every=100)).fit(Toy(), Loader(), Loader())
    message = r"validation never logged 'val_los'; did you mean 'val_loss'\?"
    with pytest.warns(UserWarning, match=message):
        trainer(Diagnosis(every=1, monitor="val_los")).fit(Toy(), Loader(), Loader())
    assert told(limit_val_batches=0)[1] == []
    assert told(module=Half(), fast_dev_run=True)[1] == []


def test_it_logs_how_much_it_found() -> None:
    logged = Logged("diagnosis")
    told(logged, module=Half(), max_epochs=1)
    assert logged.rows[-1]["diagnosis/findings"] == 2.0


def test_other_steps_wait_for_no_device() -> None:
    with pytest.warns(UserWarning, match="never looked"):
        assert reads_per_step(Diagnosis(every=10**6), fused=True) == reads_per_step(fused=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"every": 0}, "every must be at least 1, got 0"), ({"monitor": ""}, "monitor must")],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Diagnosis(**settings)
