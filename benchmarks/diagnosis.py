"""How often Diagnosis speaks of healthy runs, and whether it finds what is wrong with ill ones.

Healthy runs differ in network, optimizer, rate, batch and data: digits and characters, WarmupCosine, clipping
by a percentile; every other one at a constant rate. Each ill run is one of them with one thing spoilt. Limits
were set on the first hundred seeds, so other healthy runs are drawn here. The whole takes about five minutes.

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
from rich.progress import track
from torch import Tensor, nn

from benchmarks.record import record
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


def _plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def _linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def _sigmoids() -> nn.Module:
    deep = [layer for _ in range(12) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Sigmoid(), *deep, nn.Linear(32, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "two layers": _two_layers,
    "residual": lambda: ResidualNet(widths=(8, 16)),
    "hybrid": lambda: HybridNet(width=16, blocks=1),
    "characters": lambda: CharacterNet(len(ALPHABET), width=32, blocks=1, heads=2, length=32),
}
# Without what keeps others in order.
ILL_NETWORKS = {"plain": _plain, "linear": _linear, "sigmoids": _sigmoids}
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
    validates: bool = True
    schedule: Callable[[], Technique] = field(default=WarmupCosine)
    clip: Callable[[], Technique | None] = field(default=lambda: GradientClip(max_norm=Percentile(90)))
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
        network = {**NETWORKS, **ILL_NETWORKS}[self.network]()
        self.spoil(network)
        options = {"momentum": 0.9} if self.optimizer == "SGD" else {}
        settings = OptimizerSettings(self.optimizer, lr=self.rate, weight_decay=0.01, options=options)
        diagnosis = Diagnosis(every=5)
        limits: dict[str, Any] = {} if self.validates else {"limit_val_batches": 0}
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
        callbacks: Any = [each for each in (self.schedule(), self.clip(), diagnosis) if each is not None]
        trainer = Trainer(max_epochs=self.epochs, callbacks=callbacks, log_every_n_steps=1, **limits, **QUIET)
        with warnings.catch_warnings(), redirect_stdout(None):
            warnings.simplefilter("ignore")
            trainer.fit(module, data)
        return {kind: finding.evidence for kind, finding in diagnosis.findings.items()}


def _constant() -> Technique:
    return LearningRate(schedule="1")


def _no_clipping() -> None:
    pass


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

    assert isinstance(network, nn.Sequential)
    network[1] = Detached(network[1])


ILL: dict[str, Callable[[Run], Run]] = {
    "rate too high (divergence)": lambda run: replace(
        run,
        network="plain",
        optimizer="SGD",
        rate=0.03,
        schedule=lambda: LearningRate(schedule="constant(1, over=60) >> constant(200)"),
        clip=_no_clipping,
    ),
    "rate too high (oscillation)": lambda run: replace(
        run, network="plain", optimizer="SGD", rate=1.0, schedule=_constant, clip=_no_clipping
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
        run,
        network="linear",
        optimizer="AdamW",
        rate=0.01,
        label_noise=0.5,
        epochs=30,
        validates=False,
        schedule=_constant,
    ),
    "dead layer": lambda run: replace(run, network="two layers", spoil=_kill),
    "no gradient": lambda run: replace(run, network="two layers", spoil=_cut),
    "vanishing gradient": lambda run: replace(run, network="sigmoids", optimizer="SGD", rate=0.1),
    "GradientClip clips nearly always": lambda run: replace(run, clip=lambda: GradientClip(max_norm=1e-3)),
    "GradientClip clips never": lambda run: replace(run, clip=lambda: GradientClip(max_norm=1e3)),
}


def healthy(first: int, count: int) -> list[dict[str, Any]]:
    """Return the alarms that healthy runs raise."""
    alarms = []
    for seed in track(range(first, first + count), "healthy runs"):
        run = Run.drawn(seed)
        if seed % 2:  # of these the validation loss jumps about to the end
            run = replace(run, rate=run.rate / 3, schedule=_constant)
        if found := run.findings():
            alarms.append({"seed": seed, "network": run.network, "optimizer": run.optimizer, "found": found})
    return alarms


def ill(kind: str, seeds: int) -> Counter[str]:
    """Return how often each finding was made in runs with an illness."""
    return Counter(
        name for seed in track(range(seeds), kind) for name in ILL[kind](Run.drawn(seed)).findings()
    )


def main() -> None:
    """Measure, write the figures as JSON, and put the table into its document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--healthy", type=int, default=50, help="healthy runs (default: 50)")
    parser.add_argument("--first", type=int, default=100, help="seed of the first of them (default: 100)")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each illness (default: 5)")
    asked = parser.parse_args()
    alarms = healthy(asked.first, asked.healthy)
    found = {kind: ill(kind, asked.seeds) for kind in ILL}
    lines = ["| what is wrong | found in | found besides |", "|---|---:|---|"]
    said = Counter(name for alarm in alarms for name in alarm["found"])
    lines.append(f"| nothing | {len(alarms)} of {asked.healthy} | {_listed(said)} |")
    for kind, counts in found.items():
        besides = Counter({name: count for name, count in counts.items() if name != kind})
        lines.append(f"| {kind} | {counts[kind]} of {asked.seeds} | {_listed(besides)} |")
    figures = {
        "healthy": asked.healthy,
        "first": asked.first,
        "seeds": asked.seeds,
        "alarms": alarms,
        "found": found,
    }
    record("diagnosis", figures, "\n".join(lines))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common())


if __name__ == "__main__":
    main()
