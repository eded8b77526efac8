"""The three tasks of the ablation: what is trained, with which techniques, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

import lightning_tricks as lt
from lightning_tricks.recipes.character_net import CharacterNet
from lightning_tricks.recipes.characters import ALPHABET, CharacterData, CharacterModel
from lightning_tricks.recipes.digits import DigitsClassifier, DigitsData
from lightning_tricks.recipes.digits_gan import DigitReader, DigitsGAN, DigitsInRange, trained_reader
from lightning_tricks.recipes.residual import ResidualNet

__all__ = ["SIZES", "TASKS", "Built", "Task"]

SIZES: dict[str, dict[str, Any]] = {
    "digits": {"label_noise": 0.2, "widths": (8, 16, 32)},
    "characters": {"length": 32, "width": 32, "blocks": 2},
    "gan": {"training": 1200},
}
"""What is not among a module's or the Trainer's settings; trials with others are not gone on with."""
CPU = {"accelerator": "cpu", "devices": 1, "check_val_every_n_epoch": 1000}  # validated once, at the end


class GANSetting(Callback):
    """Gives attributes of a module with GANMixin other values."""

    def __init__(self, **values: Any) -> None:
        """Take the values by the attributes' names."""
        self.values = values

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set them, before the module looks at them."""
        for name, value in self.values.items():
            setattr(pl_module, name, value)


Built = tuple[LightningModule, LightningDataModule, dict[str, Any]]


def digits(seed: int) -> Built:
    """Return the classifier of digits, 15 steps per epoch."""
    sizes = SIZES["digits"]
    data = DigitsData(label_noise=sizes["label_noise"], seed=seed)
    return DigitsClassifier(ResidualNet(widths=sizes["widths"])), data, {**CPU, "max_epochs": 15}


def characters(seed: int) -> Built:
    """Return the model of characters."""
    network, length = CharacterNet(len(ALPHABET), **SIZES["characters"]), SIZES["characters"]["length"]
    return CharacterModel(network), CharacterData(length=length, seed=seed), {**CPU, "max_steps": 200}


def gan(seed: int) -> Built:
    """Return the GAN without a penalty, 18 steps per epoch; only its weights and noise depend on the seed."""
    module = DigitsGAN(reader())
    module.penalties, module.gan_seed = (), seed
    return module, DigitsInRange(**SIZES["gan"]), {**CPU, "max_epochs": 10}


@cache
def reader() -> DigitReader:
    """Return the one classifier that scores all samples."""
    return trained_reader(DigitsInRange(**SIZES["gan"]))


@dataclass(frozen=True)
class Task:
    """What is trained, with which techniques, and how it is measured."""

    build: Callable[[int], Built]
    metric: str
    mode: Literal["min", "max"]
    techniques: dict[str, Callback]


TASKS = {
    "digits": Task(
        digits,
        "val_accuracy",
        "max",
        {
            "WarmupCosine()": lt.WarmupCosine(),
            "GradientCentralization()": lt.GradientCentralization(),
            "GradientClip(max_norm=1.0)": lt.GradientClip(max_norm=1.0),
            "LabelSmoothing()": lt.LabelSmoothing(),
            "Mixup(classes=10)": lt.Mixup(classes=10),
            "SharpnessAware()": lt.SharpnessAware(),
            "Lookahead()": lt.Lookahead(),
            "EMAWeights()": lt.EMAWeights(),
        },
    ),
    "characters": Task(
        characters,
        "val_loss",
        "min",
        {
            'WarmupCosine(warmup="1%", final=0.1)': lt.WarmupCosine(warmup="1%", final=0.1),
            "GradientCentralization()": lt.GradientCentralization(),
            "GradientClip(max_norm=1.0)": lt.GradientClip(max_norm=1.0),
            "WeightDecay(strength=0.1)": lt.WeightDecay(strength=0.1),
            "Lookahead()": lt.Lookahead(),
            "EMAWeights()": lt.EMAWeights(),
        },
    ),
    "gan": Task(
        gan,
        "frechet",
        "min",
        {
            "GradientPenalty(1.0, one_sided=True)": GANSetting(
                penalties=lt.GradientPenalty(1.0, one_sided=True)
            ),
            'SpectralNorm(params="critic")': lt.SpectralNorm(params="critic"),
            'instance_noise="0.5 * linear(to=0.0)"': GANSetting(instance_noise="0.5 * linear(to=0.0)"),
            "NoisyLabels()": GANSetting(noisy_labels=lt.NoisyLabels()),
            'LearningRate(schedule="linear(to=0.0)")': lt.LearningRate(schedule="linear(to=0.0)"),
            "Lookahead()": lt.Lookahead(),
            'EMAWeights(decay=0.999, params="generator")': lt.EMAWeights(decay=0.999, params="generator"),
        },
    ),
}
