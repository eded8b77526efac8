"""The ready lists: each trains its reference model, names its sources, and goes through YAML and back."""

from __future__ import annotations

import re

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.nn.functional import softplus

import lightning_tricks as lt
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.recipes import finetune, from_scratch_cnn, gan, transformer
from lightning_tricks.recipes.character_net import CharacterNet
from lightning_tricks.recipes.characters import CharacterData, CharacterModel
from lightning_tricks.recipes.digits import DigitsClassifier, DigitsData
from lightning_tricks.recipes.gan_pair import Critic, Generator
from lightning_tricks.recipes.ready import READY
from lightning_tricks.recipes.residual import ResidualNet
from tests.toys import Toy, trainer
from tests.yaml_trainer import yaml_trainer

STAGES = ["network.head", "network.groups.1", ("network.groups.0", "network.stem")]


class Adversaries(LightningModule):
    """The reference pair with the non-saturating loss, a step each per batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = Generator(width=4), Critic(width=4)

    def training_step(self, batch: list[torch.Tensor], _: int) -> None:
        real, fake = batch[0].clamp(-1, 1), self.generator.sample(len(batch[0]))
        losses = (
            softplus(-self.critic(real)).mean() + softplus(self.critic(fake.detach())).mean(),
            softplus(-self.critic(fake)).mean(),
        )
        for optimizer, loss in zip(self.optimizers(), losses, strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss, inputs=optimizer.param_groups[0]["params"])
        for optimizer in self.optimizers():
            optimizer.step()

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        self.log("val_score", self.critic(self.generator.sample(len(batch[0]))).mean())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.Adam(self.critic.parameters(), lr=4e-4, betas=(0.0, 0.9)),
            torch.optim.Adam(self.generator.parameters(), lr=1e-4, betas=(0.0, 0.9)),
        ]


def classifier(**settings):
    return DigitsClassifier(ResidualNet(widths=(4, 6)), **{"weight_decay": 0.0, **settings})


def character_model():
    return CharacterModel(CharacterNet(97, length=16, width=8, blocks=1, heads=2))


def characters():
    return CharacterData(length=16)


CASES = {
    "finetune": (lambda: finetune(stages=STAGES), classifier, DigitsData),
    "from_scratch_cnn": (from_scratch_cnn, classifier, DigitsData),
    "transformer": (transformer, character_model, characters),
    "gan": (gan, Adversaries, DigitsData),
}


class Rates(Callback):
    """Notes the rate of every group at each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *_):
        self.seen.append([group["lr"] for each in trainer.optimizers for group in each.param_groups])


class Start(Callback):
    """Notes the weights with which training begins, after layers were changed and given first values."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            self.weights = {name: value.detach().clone() for name, value in pl_module.named_parameters()}


def run(recipe, module, data, epochs, batches=2):
    """Train with the list; return the rates of every step."""
    rates = Rates()
    limits = {"limit_train_batches": batches, "limit_val_batches": 1}
    runner = trainer(*recipe, rates, max_epochs=epochs, **limits)
    runner.fit(module, datamodule=data)
    return rates.seen


def test_every_list_has_its_case():
    assert CASES.keys() == READY.keys()


@pytest.mark.parametrize("name", CASES)
def test_it_trains_the_reference_model(name):
    build, module, data = CASES[name]
    torch.manual_seed(0)
    model = module()
    started = Start()
    run([*build(), started], model, data(), epochs=7)
    moved = [key for key, value in model.named_parameters() if not torch.equal(value, started.weights[key])]
    assert len(moved) == len(started.weights)
    assert all(value.isfinite().all() for value in model.parameters())


@pytest.mark.parametrize("name", CASES)
def test_each_setting_has_a_source_that_can_be_looked_up(name):
    for technique, setting, _, source in CASES[name][0]().rows():
        named = setting in {"stages", "params"} and source == "as your module names its parts"
        place = r"\w.* \d{4}, arXiv \d{4}\.\d{5}, (section \d|appendix [A-Z]|the authors' \w+\.py)"
        assert named or re.match(place, source), (technique, setting, source)


@pytest.mark.parametrize("name", CASES)
def test_yaml_gives_the_same_list(name, tmp_path):
    recipe, path = CASES[name][0](), tmp_path / "techniques.yaml"
    path.write_text(recipe.yaml())
    built = [
        each for each in yaml_trainer(["--config", str(path)], Toy).callbacks if isinstance(each, Technique)
    ]
    assert sorted(map(repr, built)) == sorted(map(repr, recipe))


def test_fine_tuning_rates_are_ulmfits():
    """Ten steps in four stages would be shorter than the paper's; the numbers are those of its equation 3."""
    seen = run(finetune(stages=STAGES), classifier(lr=0.01), DigitsData(), epochs=10)
    by_stage = list(zip(*seen, strict=True))
    peak = [max(rates) for rates in by_stage]
    assert sorted(peak, reverse=True) == pytest.approx([0.01, 0.01 / 2.6, 0.01 / 2.6**2])
    head = by_stage[peak.index(max(peak))]
    assert head.index(max(head)) == 2  # a tenth of 20 steps
    # p = 1 - (t - cut) / (cut * (1 / cut_frac - 1)), rate = peak * (1 + p * (ratio - 1)) / ratio
    assert head[11] == pytest.approx(0.01 * (1 + 0.5 * 31) / 32)


def test_transformer_rates_end_at_a_tenth():
    seen = [rates[0] for rates in run(transformer(), character_model(), characters(), epochs=1, batches=100)]
    assert seen.index(max(seen)) == 1  # 1 % of 100 steps
    assert seen[-1] == pytest.approx(0.1 * max(seen), rel=2e-2)


def test_both_players_rates_fall_to_zero_together():
    seen = run(gan(), Adversaries(), DigitsData(), epochs=2)
    assert seen == [pytest.approx([4e-4 * left, 1e-4 * left]) for left in (1.0, 0.75, 0.5, 0.25)]


def test_only_the_generator_is_averaged():
    torch.manual_seed(0)
    module, live = Adversaries(), {}

    class Live(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            live.update({name: value.clone() for name, value in pl_module.named_parameters()})

    run([Live(), *gan()], module, DigitsData(), epochs=2)
    changed = {
        name.split(".")[0] for name, value in module.named_parameters() if not torch.equal(value, live[name])
    }
    assert changed == {"generator"}


@pytest.mark.parametrize("name", ["finetune", "from_scratch_cnn"])
def test_the_optimizers_own_decay_is_a_conflict_that_can_be_avoided(name):
    build = {"finetune": lambda **s: finetune(stages=STAGES, **s), "from_scratch_cnn": from_scratch_cnn}[name]
    with pytest.raises(lt.ConflictError, match="WeightDecay"):
        run(build(), classifier(weight_decay=5e-4), DigitsData(), epochs=1)
    run(build(weight_decay=False), classifier(weight_decay=5e-4), DigitsData(), epochs=7)


def test_biases_and_norms_do_not_decay_from_scratch():
    """With gradients of zero only decay moves a weight."""

    class Still(DigitsClassifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0.0

    torch.manual_seed(0)
    module = Still(ResidualNet(widths=(4,), dropout=0.0), weight_decay=0.0)
    started = Start()
    rest = [each for each in from_scratch_cnn() if not isinstance(each, lt.EMAWeights)]
    run([*rest, started], module, DigitsData(), 7)
    before = started.weights
    moved = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    kinds = {name: type(module.get_submodule(name.rpartition(".")[0])) for name in before}
    assert moved == {name for name in before if kinds[name] is not nn.BatchNorm2d and name.endswith("weight")}
