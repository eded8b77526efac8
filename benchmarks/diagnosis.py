"""How often Diagnosis speaks of healthy runs, and whether it finds what is wrong with ill ones.

Healthy runs differ in network, optimizer, rate, batch and data: digits and characters, WarmupCosine, clipping
by a percentile. Each ill run is one of them with one thing spoilt. The whole takes about five minutes.

    python -m benchmarks.diagnosis --healthy 50 --seeds 5
"""

from __future__ import annotations

import argparse
import random
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_tricks import (
    Diagnosis,
    GradientClip,
    LearningRate,
    OptimizerMixin,
    OptimizerSettings,
    Percentile,
    WarmupCosine,
)
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.recipes.character_net import CharacterNet
from lightning_tricks.recipes.characters import ALPHABET, CharacterData, CharacterModel
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
from lightning_tricks.recipes.hybrid import HybridNet
from lightning_tricks.recipes.residual import ResidualNet


class _Digits(OptimizerMixin, DigitsClassifier):
    """The classifier with any optimizer."""


class _Characters(OptimizerMixin, CharacterModel):
    """The character model with any optimizer."""


def _two_layers() -> nn.Module:
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU()),
        *(nn.Dropout(0.3), nn.Linear(128, 10)),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "two layers": _two_layers,
    "residual": lambda: ResidualNet(widths=(8, 16)),
    "hybrid": lambda: HybridNet(width=16, blocks=1),
    "characters": lambda: CharacterNet(len(ALPHABET), width=32, blocks=1, heads=2, length=32),
}
RATES = {"SGD": (0.02, 0.1), "AdamW": (1e-3, 5e-3)}


@dataclass(frozen=True)
class Run:
    """A run: healthy unless something of it is replaced."""

    seed: int
    network: str
    optimizer: str
    rate: float
    epochs: int = 12
    batch: int = 32
    label_noise: float = 0.0
    training: int = 1000
    schedule: Callable[[], Technique] = field(default=WarmupCosine)
    clip: Callable[[], Technique] = field(default=lambda: GradientClip(max_norm=Percentile(90)))
    spoil: Callable[[nn.Module], None] = field(default=lambda network: None)

    @classmethod
    def drawn(cls, seed: int) -> Run:
        """Return a healthy run."""
        draw = random.Random(seed)
        network, optimizer = draw.choice(list(NETWORKS)), draw.choice(list(RATES))
        if network in ("hybrid", "characters"):
            optimizer = "AdamW"
        low, high = RATES[optimizer]
        return cls(seed, network, optimizer, low * (high / low) ** draw.random(), batch=draw.choice((32, 64)))

    def findings(self) -> dict[str, str]:
        """Train, and return what was found, with its evidence."""
        torch.manual_seed(self.seed)
        network = NETWORKS[self.network]()
        self.spoil(network)
        options = {"momentum": 0.9} if self.optimizer == "SGD" else {}
        settings = OptimizerSettings(self.optimizer, lr=self.rate, weight_decay=0.01, options=options)
        diagnosis = Diagnosis(every=5)
        limits: dict[str, Any] = {}
        if self.network == "characters":
            module: Any = _Characters(network)
            data: Any = CharacterData(length=32, batch_size=self.batch, seed=self.seed)
            limits = {"limit_train_batches": 25, "limit_val_batches": 10}
        else:
            module = _Digits(network)
            data = DigitsData(
                training=self.training, batch_size=self.batch, label_noise=self.label_noise, seed=self.seed
            )
        module.optimizer_settings = settings
        callbacks: Any = [self.schedule(), self.clip(), diagnosis]
        trainer = Trainer(max_epochs=self.epochs, callbacks=callbacks, log_every_n_steps=1, **limits, **QUIET)
        with warnings.catch_warnings(), redirect_stdout(None):
            warnings.simplefilter("ignore")
            trainer.fit(module, data)
        return {kind: finding.evidence for kind, finding in diagnosis.findings.items()}


def _constant() -> Technique:
    return LearningRate(schedule="1")


def _kill(network: nn.Module) -> None:
    """Give the first linear layer biases at which none of its ReLUs ever opens."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.constant_(layer.bias, -100.0)


def _cut(network: nn.Module) -> None:
    """Let a layer in that the loss does not depend on."""

    class Detached(nn.Sequential):
        def forward(self, values: Tensor) -> Tensor:
            return super().forward(values).detach()

    network[1] = Detached(network[1])  # type: ignore[index, operator]


ILL: dict[str, Callable[[Run], Run]] = {
    "rate too high (divergence)": lambda run: replace(
        run,
        network="two layers",
        optimizer="SGD",
        rate=0.03,
        clip=lambda: GradientClip(max_norm=1e6),
        schedule=lambda: LearningRate(schedule="warmup(60) >> 1000 * constant()"),
    ),
    "rate too high (oscillation)": lambda run: replace(
        run, network="residual", optimizer="AdamW", rate=1.0, schedule=_constant
    ),
    "rate too low": lambda run: replace(run, rate=RATES[run.optimizer][0] / 3000, schedule=_constant),
    "decayed too early": lambda run: replace(
        run,
        network="characters",
        optimizer="AdamW",
        rate=1e-3,
        schedule=lambda: LearningRate(schedule="cosine(to=0.001, over='30%') >> constant()"),
    ),
    "over-fitting": lambda run: replace(
        run,
        network="two layers",
        optimizer="AdamW",
        rate=5e-3,
        label_noise=0.4,
        training=300,
        epochs=40,
        schedule=_constant,
    ),
    "plateau": lambda run: replace(
        run, network="two layers", optimizer="SGD", rate=0.05, label_noise=0.9, epochs=20, schedule=_constant
    ),
    "dead layer": lambda run: replace(run, network="two layers", spoil=_kill),
    "no gradient": lambda run: replace(run, network="two layers", spoil=_cut),
    "GradientClip clips nearly always": lambda run: replace(run, clip=lambda: GradientClip(max_norm=1e-3)),
    "GradientClip clips never": lambda run: replace(run, clip=lambda: GradientClip(max_norm=1e3)),
}


def main() -> None:
    """Print what was found in healthy runs and in ill ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--healthy", type=int, default=50, help="healthy runs (default: 50)")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each illness (default: 5)")
    asked = parser.parse_args()
    alarms = {}
    for seed in range(asked.healthy):
        run = Run.drawn(seed)
        if found := run.findings():
            alarms[seed] = found
            print(f"healthy run {run}: {found}")
    print(f"{len(alarms)} of {asked.healthy} healthy runs raise an alarm")
    found_in: dict[str, Counter[str]] = {}
    for kind, spoilt in ILL.items():
        found_in[kind] = Counter()
        for seed in range(asked.seeds):
            found = spoilt(Run.drawn(seed)).findings()
            found_in[kind].update(list(found))
            print(f"{kind}, {seed}: {found}")
    rows = [
        f"| {kind} | {counts[kind]} of {asked.seeds} | "
        + (", ".join(f"{name} ({n})" for name, n in counts.items() if name != kind) or "nothing")
        + " |"
        for kind, counts in found_in.items()
    ]
    table = "\n".join(["| illness | found in | besides |", "|---|---|---|", *rows])
    print(table)


if __name__ == "__main__":
    main()
