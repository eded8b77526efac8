"""What the demo is to do: its network, its data, its optimizer and its techniques."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from lightning_tricks import (
    EMAWeights,
    GradientClip,
    LastEpochs,
    LearningRate,
    OptimizerSettings,
    ProgressiveUnfreeze,
    WarmupCosine,
    WeightFusion,
)
from lightning_tricks.core import checks
from lightning_tricks.lifecycle.optimizer_names import default_of, optimizer_class
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.recipes.digits import DigitsData
from lightning_tricks.recipes.residual import ResidualNet

__all__ = ["OPTIMIZERS", "PHASES", "Demo"]

PHASES = ("8 digits", "all ten")
OPTIMIZERS = (
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
)
_CLASSES = (tuple(range(8)), tuple(range(10)))


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The settings of a demo.

    Args:
        output: Folder for the figure and for runs that are logged offline; made if need be.
        seed: Of data, weights and order, in [0, 2**32 - 1].
        epochs: Of each of the two phases, at least 1.
        widths: Channels of each group of residual blocks.
        blocks: Residual blocks per group.
        training: Training images of all ten digits.
        label_noise: Share of the training labels that is drawn anew.
        batch_size: Of training.
        optimizer: Of both runs, by its name in torch.
        lr: Base learning rate of both runs; ``None`` for 0.05 with SGD, else for the optimizer's own.
        schedule: Of the rate in the run with techniques, as text; ``None`` for WarmupCosine.
        max_norm: To which gradients are clipped in the run with techniques.
    """

    output: str = "demo_output"
    seed: int = 0
    epochs: int = 10
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: int = 2
    training: int = 800
    label_noise: float = 0.2
    batch_size: int = 40
    optimizer: str = "SGD"
    lr: float | None = None
    schedule: str | None = None
    max_norm: float = 2.5

    def __post_init__(self) -> None:
        checks.whole("seed", self.seed)
        checks.in_range("seed", self.seed, 0, 2**32 - 1)  # scikit-learn's
        checks.whole("epochs", self.epochs, 1)
        checks.one_of("optimizer", self.optimizer, OPTIMIZERS)
        if self.lr is not None:
            checks.in_range("lr", self.lr, 0.0, open_low=True, open_high=True)
        if self.schedule is not None:
            LearningRate(schedule=self.schedule)

    @classmethod
    def quick(cls, **settings: Any) -> Self:
        """Return a demo of a few seconds, with a network too small to learn much."""
        return cls(**{"epochs": 3, "widths": (4, 8), "blocks": 1, **settings})

    def other_optimizer(self) -> OptimizerSettings | None:
        """Return what the optimizer of both runs is to be; ``None`` for the classifier's own, SGD."""
        return None if self.optimizer == "SGD" else OptimizerSettings(self.optimizer, lr=self.rate)

    @property
    def rate(self) -> float:
        """The base learning rate of both runs."""
        own = 0.05 if self.optimizer == "SGD" else default_of(optimizer_class(self.optimizer), "lr")
        return float(own if self.lr is None else self.lr)

    def network(self, classes: int) -> ResidualNet:
        """Return the network with the first weights that torch's random state gives."""
        return ResidualNet(classes=classes, widths=self.widths, blocks=self.blocks)

    def data(self, phase: int) -> DigitsData:
        """Return the data of a phase."""
        return DigitsData(
            classes=_CLASSES[phase],
            training=self.training,
            batch_size=self.batch_size,
            label_noise=self.label_noise,
            seed=self.seed,
        )

    def caution(self, steps: int) -> str:
        """Return what must be said of the result after so many ``steps``, if this demo is too small a one."""
        if self.epochs >= type(self).epochs and self.widths == type(self).widths:
            return ""
        return (
            f"Too small for a comparison: within {steps} steps the techniques may cost more than they give. "
            "It shows that everything runs; leave out --quick and --epochs to compare."
        )

    def techniques(self, phase: int) -> list[Technique]:
        """Return those of the run that has any."""
        rate: Technique = WarmupCosine(warmup="10%", final=0.1)
        if self.schedule is not None:
            rate = LearningRate(schedule=self.schedule)
        common = [GradientClip(max_norm=self.max_norm), rate, EMAWeights()]
        if phase == 0:
            return common
        groups = [f"network.groups.{index}" for index in reversed(range(len(self.widths)))]
        stages = ["network.head", *groups, "network.stem"]
        # Always kept, because here it shall be shown beside the others and not only used if it is better.
        fusion = WeightFusion(collect=LastEpochs(5), monitor="val_loss", mode="min", keep="always")
        return [*common, ProgressiveUnfreeze(stages=stages, at="8%"), fusion]
