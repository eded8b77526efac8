"""GradientHealth in runs: when it measures, what it logs, what it says, and when it keeps quiet."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import nn

from lightning_tricks import GradientClip, GradientHealth
from lightning_tricks.reporting.layer_watch import LayerWatch, unit_axes
from tests import wandb_offline
from tests.contract.test_together import reads_per_step
from tests.toys import Loader, Logged, StopAfter, StopError, Toy, TwoOptimizers, scaler_plugin, trainer


class Silent(Toy):
    """Its body gets no gradient once ``after`` batches have passed."""

    after = 0

    def loss(self, batch: Any) -> torch.Tensor:
        features = self.body(batch[0])
        cut = self.training and self._trainer is not None and self.trainer.global_step >= self.after
        return nn.functional.cross_entropy(self.head(features * 0.0 if cut else features), batch[1])


def measured_at(every: int, log: int, *, steps: int = 15) -> list[int]:
    """Return the steps at which it measured."""
    technique, seen = GradientHealth(every=every), []

    class Watches(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            seen.append(technique.outcome()["measured"])

    trainer(technique, Watches(), max_epochs=3, log_every_n_steps=log).fit(Toy(), Loader())
    return [step for step in range(steps) if seen[step] > (seen[step - 1] if step else 0)]


def test_it_measures_where_lightning_logs_and_not_too_often() -> None:
    assert measured_at(5, 1) == [4, 9, 14]
    assert measured_at(1, 5) == [4, 9, 14]
    assert measured_at(4, 3) == [5, 11]
    assert measured_at(1, 1) == list(range(15))


def test_values_are_those_of_the_step() -> None:
    class Asks(Callback):
        norm = update = 0.0

        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
            self.before = pl_module.head.weight.detach().clone(), pl_module.head.bias.detach().clone()
            self.norm = float(torch.cat([p.grad.flatten() for p in pl_module.head.parameters()]).norm())

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            after = torch.cat([p.detach().flatten() for p in pl_module.head.parameters()])
            before = torch.cat([each.flatten() for each in self.before])
            self.update = float((after - before).norm() / before.norm())

    asks, logged = Asks(), Logged("gradient_health")
    trainer(asks, GradientHealth(every=1), GradientClip(max_norm=1e-3), logged, max_epochs=1).fit(
        Toy(), Loader()
    )
    assert logged.column("gradient_norm/head")[-1] == pytest.approx(asks.norm, rel=1e-5)
    assert logged.column("update_to_weight/head")[-1] == pytest.approx(asks.update, rel=1e-5)
    assert logged.column("dead")[-1] == 0.0


@pytest.mark.usefixtures("wandb_is_offline")
def test_weights_and_biases_gets_histograms(tmp_path: Path) -> None:
    gradients = []

    class Watches(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
            gradients.append(torch.cat([p.grad.flatten() for p in pl_module.head.parameters()]).numpy())

    logger = WandbLogger(save_dir=tmp_path, offline=True, project="health")
    trainer(Watches(), GradientHealth(every=4), logger=logger, max_epochs=1).fit(Toy(), Loader())
    logger.experiment.finish()
    wandb.teardown()  # waits for the process that writes
    [run] = tmp_path.rglob("*.wandb")
    history = wandb_offline.history(run)
    name = "gradient_health/gradients/head"
    values, bins = np.histogram(gradients[3], bins=64)
    assert history[f"{name}/values"] == [values.tolist()]
    assert history[f"{name}/bins"] == [pytest.approx(bins.tolist())]


def test_samples_are_spread_evenly_and_bounded() -> None:
    network = nn.Linear(100, 50)
    network.weight.grad, network.bias.grad = torch.arange(5000.0).reshape(50, 100), torch.ones(50)
    watch = LayerWatch(dict(network.named_parameters()), network, {})
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    found = watch.samples(optimizer, 1000)["bias"]
    assert len(found) == 50
    assert watch.samples(optimizer, 1000)["weight"].tolist() == list(range(0, 5000, 5))


def test_overall_values_only() -> None:
    logged = Logged("gradient_health")
    trainer(GradientHealth(every=1, per_layer=False), logged, max_epochs=1).fit(Toy(), Loader())
    names = {name.removeprefix("gradient_health/") for name in logged.rows[-1] if "health" in name}
    shares = {"gradient_norm", "update_to_weight", "zero", "non_finite"}
    assert names == shares | {"exploding", "vanishing", "dead", "symmetric"}


def test_a_dead_layer_is_named_once_and_only_if_it_stays_so() -> None:
    technique = GradientHealth(every=2)
    message = r"^GradientHealth: no gradient arrives \(all zero, or none\) in 'body\.0', 'body\.1'$"
    with pytest.warns(UserWarning, match=message) as caught:
        trainer(technique).fit(Silent(), Loader())
    assert sum("GradientHealth" in str(warning.message) for warning in caught) == 1
    assert technique.findings["dead"] == ["body.0", "body.1"]
    assert technique.outcome()["dead"] == "body.0, body.1"

    class Once(Silent):
        def loss(self, batch: Any) -> torch.Tensor:
            self.after = 0 if self.trainer.global_step == 3 else 10**6
            return super().loss(batch)

    trainer(GradientHealth(every=1)).fit(Once(), Loader())  # a warning would be an error


def test_exploding_layers_are_named_although_they_are_clipped() -> None:
    with pytest.warns(
        UserWarning, match=r"explode \(norm above 0.001, or not finite\) in 'body.0', 'body.1', 'head'"
    ):
        trainer(GradientHealth(every=1, exploding=1e-3), GradientClip(max_norm=1e-6)).fit(Toy(), Loader())


def test_layers_of_each_optimizer_on_their_own() -> None:
    logged = Logged("gradient_health")
    trainer(GradientHealth(every=1), logged, max_epochs=1).fit(TwoOptimizers(), Loader())
    assert {"gradient_norm/0", "gradient_norm/1", "gradient_norm/head/1", "gradient_norm/body.0/0"} <= {
        name.removeprefix("gradient_health/") for name in logged.rows[-1]
    }


def test_steps_that_a_scaler_cancels_are_not_measured() -> None:
    class Huge(Toy):
        def loss(self, batch: Any) -> torch.Tensor:
            factor = float("inf") if self.training and self.trainer.global_step == 2 else 1.0
            return super().loss(batch) * factor

    technique = GradientHealth(every=1)
    trainer(technique, plugins=[scaler_plugin()], max_epochs=1).fit(Huge(), Loader())
    assert technique.outcome() == {
        "measured": 4,
        "exploding": "",
        "vanishing": "",
        "dead": "",
        "symmetric": "",
    }


def test_suspicion_survives_a_resume(tmp_path: Path) -> None:
    saved = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        trainer(GradientHealth(every=5), StopAfter(6, saved)).fit(Silent(), Loader())
    technique = GradientHealth(every=5)
    with pytest.warns(UserWarning, match="no gradient arrives"):
        trainer(technique, max_epochs=2).fit(Silent(), Loader(), ckpt_path=saved)
    assert technique.outcome()["measured"] == 2


def test_measuring_nothing_is_said() -> None:
    with pytest.warns(UserWarning, match="measured nothing: .*log_every_n_steps must be .* got 100 and 1"):
        trainer(GradientHealth(every=100)).fit(Toy(), Loader())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer(GradientHealth(every=100), fast_dev_run=True).fit(Toy(), Loader(), Loader())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"per_layer": 1}, "per_layer must be True or False, got 1"),
        ({"exploding": 0.0}, "exploding must lie in (0.0, inf], got 0.0"),
        ({"vanishing": 1.0}, "vanishing must lie in [0.0, 1.0), got 1.0"),
        ({"params": ""}, "params must not hold an empty pattern, got ''"),
    ],
)
def test_refused_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        GradientHealth(**settings)


def test_nothing_is_read_back_to_the_host_between_measurements() -> None:
    with pytest.warns(UserWarning, match="measured nothing"):
        assert reads_per_step(GradientHealth(every=10**6), fused=True) == reads_per_step(fused=True)


def test_layers_go_by_their_own_names_and_tables_have_no_units() -> None:
    network = nn.Sequential(nn.ConvTranspose1d(2, 3, 1), nn.Embedding(3, 2), nn.Linear(2, 2))
    axes = unit_axes(network)
    assert [axes.get(parameter, 0) for parameter in network.parameters()] == [1, 1, None, 0, 0]
    logged = Logged("gradient_health")
    module = Toy()
    nn.utils.parametrizations.weight_norm(module.head)
    trainer(GradientHealth(every=1), logged, max_epochs=1).fit(module, Loader())
    assert {name for name in logged.rows[-1] if "/zero/" in name} == {
        f"gradient_health/zero/{layer}" for layer in ("body.0", "body.1", "head")
    }


def test_a_layer_that_is_stepped_twice_in_a_batch_is_named_once() -> None:
    class Twice(TwoOptimizers):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()[0]
            for _ in range(2):
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch) * 0.0)
                optimizer.step()

    technique = GradientHealth(every=1)
    with pytest.warns(UserWarning, match="no gradient arrives"):
        trainer(technique, max_epochs=1).fit(Twice(), Loader())
    assert technique.findings["dead"] == ["body.0", "body.1"]
