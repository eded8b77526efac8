"""A generator and a critic for a toy module, and GANMixin as the contract suite runs it."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_tricks import R1, GANMixin, GradientPenalty, Latent, LayerNoise, NoisyLabels, Player
from tests.toys import Toy, seed


class CrossEntropyBeside(nn.Module):
    """The toy's own loss; others' weights have a part in it of no size, as DDP waits for all gradients."""

    def __init__(self, others: nn.Module) -> None:
        super().__init__()
        self.others = others

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        none = sum(p.sum() for p in self.others.parameters())
        return cross_entropy(logits, labels) + 0 * none


def with_a_pair(module: Toy) -> Toy:
    """Return ``module`` with a generator, compiled if its body is, and a critic of its inputs."""
    seed(3)
    generator = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.LeakyReLU(0.2), nn.Linear(8, 4))
    critic = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    pair = nn.ModuleDict({"generator": generator, "critic": critic}).to(module.head.weight.dtype)
    module.criterion = CrossEntropyBeside(pair)
    if hasattr(module.body, "_orig_mod"):
        pair["generator"] = torch.compile(generator, backend="aot_eager")  # type: ignore[assignment]
    module.pair = pair
    return module


class Plays(Callback):
    """Makes GANMixin the first base of the module's class, and brings what the mixin brings along.

    Attributes:
        settings: Those that differ from the usual ones here.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not hasattr(pl_module, "pair"):
            with_a_pair(cast("Toy", pl_module))
        compiled = hasattr(pl_module.pair["generator"], "_orig_mod")  # type: ignore[operator, index, union-attr]
        fused = {"fused": True} if pl_module.options.get("fused") else {}  # type: ignore[operator, union-attr]
        own: dict[str, Any] = {
            "generators": "pair.generator",
            "critics": ("pair.critic",),
            "latent": Latent(3, law="sphere"),
            "penalties": [GradientPenalty(0.1), R1(0.1, every=3)],
            "generator_optimizer": Player(lr=0.01, options={"betas": (0.5, 0.9), **fused}),
            "critic_optimizer": Player("SGD", lr=0.02, options={"momentum": 0.5, **fused}),
            "n_critic": 2,
            "noisy_labels": NoisyLabels(flipped=0.1),
            "instance_noise": "0.1 * linear(to=0.0)",
            "layer_noise": None
            if compiled
            else LayerNoise("0.1 * linear(to=0.0)", layers="pair.generator.0"),
            "weight_clip": 0.5,
            "real_samples": lambda self, batch: batch[0].to(self.head.weight.dtype),
            **self.settings,
        }
        kind = type(pl_module)
        pl_module.__class__ = type(kind.__name__, (GANMixin, kind), own)
        pl_module.automatic_optimization = False
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        for callback in pl_module.configure_callbacks():
            at = callbacks.index(self) + 1
            vars(trainer)["callbacks"] = [*callbacks[:at], callback, *callbacks[at:]]
            callback.setup(trainer, pl_module, stage)
