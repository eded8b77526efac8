"""Elastic weight consolidation: against slow twins, over several tasks, and what it keeps."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from lightning_tricks import ElasticWeightConsolidation, GradientClip, ProgressiveUnfreeze
from lightning_tricks.objectives import consolidation
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
from tests.contract.old_task import OldTask
from tests.fuzz.verdicts import Batches
from tests.toys import Loader, Logged, Toy, TwoOptimizers, seed, trainer, weights
from tests.yaml_trainer import yaml_trainer

Tasks = list[dict[str, dict[str, Tensor]]]


def trained(module: Toy, *callbacks: Callback, **settings: Any) -> dict[str, Tensor]:
    trainer(*callbacks, **{"max_epochs": 1, **settings}).fit(module, Loader())
    return weights(module)


def slow_fisher(module: Toy, samples: int, batches: int = 2) -> dict[str, Tensor]:
    """Return the mean of squared gradients over the first ``samples`` of the old task, one by one."""
    module.eval()
    loader = list(OldTask(batches).train_dataloader())
    x, y = (torch.cat(part)[:samples] for part in zip(*loader, strict=True))
    x = x.to(module.head.weight.dtype)
    found = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in module.named_parameters()}
    for index in range(len(x)):
        module.zero_grad()
        Toy.loss(module, (x[index : index + 1], y[index : index + 1])).backward()
        for name, parameter in module.named_parameters():
            found[name] += parameter.grad.double() ** 2 / len(x)
    return found


@pytest.mark.parametrize("samples", [None, 11])
def test_fisher_information_is_that_of_a_loop_over_samples(samples: int | None) -> None:
    technique = ElasticWeightConsolidation(strength=1.0, data=OldTask(), samples=samples)
    start = weights(Toy())
    trained(Toy(), technique)
    (task,) = technique.saved()["tasks"]
    for name, expected in slow_fisher(Toy(), samples or 16).items():
        torch.testing.assert_close(task["fisher"][name].double(), expected, rtol=1e-4, atol=1e-12)
        assert torch.equal(task["anchors"][name], start[name])


class InLoss(Toy):
    """Has the penalty in its loss."""

    def __init__(self, **options: Any) -> None:
        self.fisher = slow_fisher(Toy().double(), 16)
        super().__init__(**options)
        self.start = {name: value.double() for name, value in weights(self).items()}

    def loss(self, batch: Any) -> Tensor:
        parts = (self.fisher[name] * (p - self.start[name]) ** 2 for name, p in self.named_parameters())
        return super().loss(batch) + 20 / 2 * sum(part.sum() for part in parts)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_it_is_a_term_of_the_loss_before_clipping(optimizer: str, accumulated: int) -> None:
    settings = {"precision": "64-true", "accumulate_grad_batches": accumulated, "limit_train_batches": 4}
    options = {"optimizer": optimizer, "lr": 0.02}
    theirs = trained(InLoss(**options).double(), GradientClip(max_norm=0.5), **settings)
    penalty = ElasticWeightConsolidation(strength=20, data=OldTask())
    ours = trained(Toy(**options).double(), penalty, GradientClip(max_norm=0.5), **settings)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-7)


def test_what_it_logs_is_the_penalty() -> None:
    """Before the first step it is 0; before the second, that of the weights after the first."""
    steps: list[dict[str, Tensor]] = []

    class Steps(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            steps.append(weights(pl_module))

    technique = ElasticWeightConsolidation(strength=20, data=OldTask())
    logged = Logged("elastic_weight_consolidation")
    trained(Toy(), technique, logged, Steps())
    start, fisher = weights(Toy()), slow_fisher(Toy(), 16)
    moved = sum((fisher[name] * (steps[0][name] - start[name]) ** 2).sum() for name in fisher)
    assert logged.column("penalty")[:2] == pytest.approx([0.0, 20 / 2 * float(moved)], rel=1e-4)
    assert logged.column("strength") == [20.0] * 5


def learnt(path: Path, module: Toy, **settings: Any) -> Tasks:
    """Train ``module`` with the penalty, leave a checkpoint, and return what it holds."""
    runner = trainer(ElasticWeightConsolidation(strength=5.0, **settings), max_epochs=1)
    runner.fit(module, Loader())
    runner.save_checkpoint(path)
    tasks: Tasks = torch.load(path)["callbacks"]["ElasticWeightConsolidation"]["state"]["tasks"]
    return tasks


def test_each_task_has_its_anchor_or_all_have_the_latest(tmp_path: Path) -> None:
    module, first, last = Toy(), str(tmp_path / "first.ckpt"), tmp_path / "last.ckpt"
    (one,) = learnt(Path(first), module, data=OldTask())
    start = weights(module)
    state = module.state_dict()
    both = learnt(last, copy_of(state), data=OldTask(seed=4), previous=first)
    assert len(both) == 2
    (alone,) = learnt(last, copy_of(state), data=OldTask(seed=4))
    (online,) = learnt(last, copy_of(state), data=OldTask(seed=4), previous=first, decay=0.25)
    (given,) = learnt(last, copy_of(state), previous=first)
    for name in one["fisher"]:
        for kind in ("anchors", "fisher"):
            assert torch.equal(both[0][kind][name], one[kind][name])
            assert torch.equal(both[1][kind][name], alone[kind][name])
            assert torch.equal(given[kind][name], one[kind][name])
        assert torch.equal(online["anchors"][name], start[name])
        expected = 0.25 * one["fisher"][name] + alone["fisher"][name]
        torch.testing.assert_close(online["fisher"][name], expected)


def copy_of(state: dict[str, Tensor]) -> Toy:
    module = Toy()
    module.load_state_dict(state)
    return module


def test_manual_optimization_takes_what_a_run_before_has_left(tmp_path: Path) -> None:
    learnt(tmp_path / "first.ckpt", Toy(), data=OldTask())
    penalty = ElasticWeightConsolidation(strength=50.0, previous=str(tmp_path / "first.ckpt"))
    plain, held = trained(TwoOptimizers()), trained(TwoOptimizers(), penalty)
    assert not torch.equal(plain["body.0.weight"], held["body.0.weight"])
    assert not torch.equal(plain["head.weight"], held["head.weight"])


def test_added_to_a_run_that_goes_on_it_anchors_the_weights_that_were_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, runner = Toy(), trainer(max_epochs=1)
    runner.fit(module, Loader())
    runner.save_checkpoint(tmp_path / "a.ckpt")
    technique = ElasticWeightConsolidation(strength=1.0, data=OldTask())
    trainer(technique, max_epochs=2).fit(Toy(), Loader(), ckpt_path=tmp_path / "a.ckpt")
    anchors = technique.saved()["tasks"][0]["anchors"]
    assert all(torch.equal(anchors[name], p) for name, p in module.named_parameters())
    assert "anchors are the weights of step 5" in capsys.readouterr().out


def test_weights_that_are_frozen_when_it_looks_are_held_once_they_learn() -> None:
    technique = ElasticWeightConsolidation(strength=1.0, data=OldTask())
    trained(Toy(), ProgressiveUnfreeze(stages=["head", "body"], at=2), technique)
    assert technique.saved()["tasks"][0]["fisher"]["body.0.weight"].any()


def test_the_yaml_of_its_card_builds_it() -> None:
    card = inspect.getdoc(ElasticWeightConsolidation)
    config = yaml.safe_load(textwrap.dedent(card.partition("LightningCLI::")[2]))
    runner = yaml_trainer(config, Toy, DigitsData)
    (technique,) = (each for each in runner.callbacks if isinstance(each, ElasticWeightConsolidation))
    assert technique.data.classes == (0, 1, 2, 3, 4)
    assert technique.strength == 300


class Other(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.tail, self.head = self.head, nn.Linear(8, 4)

    def loss(self, batch: Any) -> Tensor:
        return self.tail(self.body(batch[0])).sum() + self.head(self.body(batch[0])).sum()


class Endless(Loader):
    def __len__(self) -> int:
        raise TypeError


class Broken(Loader):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x * torch.nan, y) for x, y in super().__iter__())


class Outside(Loader):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x, y + 7) for x, y in super().__iter__())


def refused(words: str, module: Toy, data: Any = None, **settings: Any) -> None:
    seen = Batches()
    with pytest.raises((TypeError, ValueError), match=words):
        trained(module, ElasticWeightConsolidation(strength=1.0, data=data, **settings), seen)
    assert seen.count == 0


def test_what_cannot_be_right_is_refused_before_the_first_batch(tmp_path: Path) -> None:
    refused("data must hold a sample of the old task, got none", Toy(), Loader(0))
    refused("must have finite gradients, got others of 'body.0.weight'", Toy(), Broken(1))
    refused("samples must be given for data without length", Toy(), Endless(1))
    refused("must be a DataLoader or a LightningDataModule, got \\[", Toy(), [torch.zeros(1)])
    refused("data of the old task must be given, or previous", Toy())
    refused("data must be given with decay=0.5", Toy(), previous="a.ckpt", decay=0.5)
    words = "data must hold samples .* classes that the module has now, got IndexError: Target [79] is out"
    refused(words, Toy(), Outside(1))
    refused("pairs of inputs and class labels", Pair(), PairLoader(1), fisher="true")
    refused("must step once per gradient", Toy(optimizer="LBFGS"), Loader(1))
    refused("previous must be a checkpoint of a run .* No such file", Toy(), previous=str(tmp_path / "none"))
    path, plain = tmp_path / "first.ckpt", tmp_path / "plain.ckpt"
    learnt(path, Toy(), data=OldTask())
    refused("parameter 'head.weight' of shape .* got one of shape", Other(), previous=str(path))
    learnt(path, Other(), data=OldTask())
    refused("parameter 'tail.weight' .* got none in Toy", Toy(), previous=str(path), params="body")
    runner = trainer(max_epochs=1)
    runner.fit(Toy(), Loader())
    runner.save_checkpoint(plain)
    refused("previous must be a checkpoint of a run with Elastic", Toy(), previous=str(plain))
    data = DigitsData(training=100)
    with pytest.raises(ValueError, match="must be of another task, got the datamodule of this run"):
        technique = ElasticWeightConsolidation(strength=1.0, data=data)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        Trainer(max_steps=1, callbacks=[technique], **QUIET).fit(DigitsClassifier(network), data)


class PairLoader(Loader):
    def __iter__(self) -> Iterator[Any]:
        return ((x, y.float()) for x, y in super().__iter__())


class Pair(Toy):
    def loss(self, batch: Any) -> Tensor:
        return self.head(self.body(batch[0])).sum() + batch[1].sum()


def squared_means(module: nn.Module, _: Any, batches: Any, loss: Any) -> tuple[dict[str, Tensor], int]:
    """Return what Avalanche and others take: the sum over batches of squared gradients of their means."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    sums, count = dict.fromkeys(named, torch.zeros(())), 0
    for batch in batches:
        grads = torch.autograd.grad(loss(module, batch), list(named.values()))
        sums = {name: sums[name] + grad**2 for name, grad in zip(named, grads, strict=True)}
        count += 1
    return sums, count


def test_it_keeps_what_plain_training_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = DigitsData(classes=range(5)), DigitsData(classes=range(5, 10))
    seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
    module = DigitsClassifier(network, classes=5, lr=0.02, weight_decay=0.0)

    def accuracies(data: DigitsData, *techniques: Callback) -> list[float]:
        Trainer(max_epochs=8, callbacks=list(techniques), **QUIET).fit(module, data)
        runner = Trainer(**QUIET)
        found = [runner.validate(module, each, verbose=False)[0]["val_accuracy"] for each in (old, new)]
        module.load_state_dict(learned or weights(module))
        return found

    learned: dict[str, Tensor] = {}
    before, _ = accuracies(old)
    learned = weights(module)
    assert before > 0.97
    assert accuracies(new)[0] < 0.4  # 0.35
    kept, learnt_too = accuracies(new, ElasticWeightConsolidation(strength=300, data=old))
    assert kept > 0.85 * before  # 0.88 of it
    assert learnt_too > 0.87  # 0.90
    true, learnt_too = accuracies(new, ElasticWeightConsolidation(strength=100, data=old, fisher="true"))
    assert true > 0.85 * before
    assert learnt_too > 0.87
    with pytest.warns(UserWarning, match=r"strength should be below [\d.]+ for SGD"):
        accuracies(new, ElasticWeightConsolidation(strength=1e5, data=old))
    monkeypatch.setattr(consolidation, "squared_gradients", squared_means)
    assert accuracies(new, ElasticWeightConsolidation(strength=300, data=old))[0] < 0.45  # 0.38
