"""What techniques of ours bring on three small real tasks, and what they cost: each alone, and all but each.

    digits      1,000 digits, a fifth of whose labels are drawn anew; a residual network, SGD, 225 steps
    characters  the text of Python's own help; a transformer, AdamW, 200 steps
    gan         8x8 digits drawn by DigitsGAN without a penalty, Adam, 180 steps

Metrics, techniques and their settings were chosen before any result, and stay as they are: defaults, or
what the ready lists and modules of ``recipes`` have. Digits are measured by accuracy, for smoothed and mixed
labels change what confidence means, and a loss would pay for that alone; characters by the loss, which is
what such models are compared by; the GAN by the Fréchet distance, which sees both poor samples and few
kinds. What chooses weights by validation data, as ``WeightFusion`` does, is left out: it would be judged by
what it chose.

What a step costs is measured apart, in short trainings that take turns in a random order, by the processor's
time: of one thread that is the time on a machine that does nothing else. The median over turns, with the
least and the greatest, by that without techniques of the same turn.

Trials are kept in ``ablation/`` (not in git): interrupted, the same command goes on.

    python -m benchmarks.ablation --seeds 5
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from matplotlib.figure import Figure
from rich.progress import Progress as Bar

import lightning_tricks as lt
from benchmarks.record import ROOT, record
from lightning_tricks.recipes.character_net import CharacterNet
from lightning_tricks.recipes.characters import ALPHABET, CharacterData, CharacterModel
from lightning_tricks.recipes.digits import DigitsClassifier, DigitsData
from lightning_tricks.recipes.digits_gan import DigitReader, DigitsGAN, DigitsInRange, trained_reader
from lightning_tricks.recipes.residual import ResidualNet
from lightning_tricks.study.ablation import Ablation, Progress
from lightning_tricks.study.arguments import made_from
from lightning_tricks.study.effects import Effects, Outcome
from lightning_tricks.study.report import draw_panels, table_rows
from lightning_tricks.study.trial import run_trial

STORAGE = ROOT / "ablation" / "benchmark.journal"
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


def measured(name: str, seeds: int, bar: Bar) -> Effects:
    """Run what is left of a task's trials."""
    task, line = TASKS[name], bar.add_task(name)
    study = Ablation(
        task.build,
        task.techniques,
        seeds=seeds,
        metric=task.metric,
        mode=task.mode,
        name=name,
        storage=STORAGE,
        settings=SIZES[name],
    )

    def watch(progress: Progress) -> None:
        bar.update(line, completed=progress.done + progress.dead, total=progress.wanted)

    return study.run(watch)


class Clock(Callback):
    """Notes the processor's time at the start of each training step."""

    def __init__(self) -> None:
        """Begin with none."""
        self.marks: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Note it."""
        self.marks.append(time.process_time())

    @property
    def step_ms(self) -> float:
        """The median over steps, in milliseconds."""
        return 1000 * statistics.median(after - before for before, after in pairwise(self.marks))


def step_ms(task: Task, outcome: Outcome) -> float:
    """Return the time of a step with the techniques of a trial."""
    clock = Clock()

    def short(seed: int) -> Built:
        module, data, settings = task.build(seed)
        few = {"max_epochs": 2, "limit_train_batches": 15, "limit_val_batches": 1, "callbacks": [clock]}
        return module, data, {**settings, **few}

    techniques = [made_from(task.techniques[name]) for name in outcome.names]
    run_trial(short, techniques, seed=outcome.seed, metric=task.metric)
    return clock.step_ms


def timed(name: str, effects: Effects, bar: Bar) -> Effects:
    """Return the same effects with times of steps that were measured in turns, one for each seed."""
    shown = {(), effects.names, *((each,) for each in effects.names)}
    turns = [each for each in effects.outcomes if each.names in shown and each.result]
    random.Random(0).shuffle(turns)
    turns.sort(key=lambda outcome: outcome.seed)
    times = {
        (each.names, each.seed): step_ms(TASKS[name], each)
        for each in bar.track(turns, description=f"{name}, steps")
    }

    def with_time(outcome: Outcome) -> Outcome:
        if outcome.result is None:
            return outcome
        result = {key: outcome.result[key] for key in ("value", "host", "device")}
        found = times.get((outcome.names, outcome.seed))
        return replace(outcome, result=result if found is None else {**result, "step_ms": found})

    return replace(effects, outcomes=tuple(map(with_time, effects.outcomes)))


def table(found: dict[str, Effects]) -> str:
    """Return the effects of all tasks and the time of a step; what helps or harms clearly is bold."""
    lines = ["| task | technique | alone | among the others | step time |", "|---|---|---:|---:|---:|"]
    for name, effects in found.items():
        plain = effects.values(()).values()
        base = f"{sum(plain) / len(plain):.3g}" if plain else ""
        lines.append(f"| {name}, `{effects.metric}` | none: {base} | | | |")
        for technique, *cells, _ in table_rows(effects, ("**", "**"))[1:]:
            label = f"`{technique}`" if technique in effects.names else technique
            lines.append(f"| {name} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: dict[str, Effects], path: Path) -> None:
    """Draw effects and costs of all tasks into a PNG at ``path``."""
    heights = [1.9 + 0.42 * len(effects.rows) for effects in found.values()]
    figure = Figure(figsize=(10.0, sum(heights)), dpi=110, layout="constrained")
    parts = figure.subfigures(len(found), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (name, effects) in zip(parts, found.items(), strict=True):
        part.suptitle(name, fontweight="bold")
        draw_panels(part, effects)
    figure.savefig(path, format="png")


def figures(effects: Effects) -> dict[str, Any]:
    """Return effects, and of each arm the metric and the time of a step of each seed, as plain values."""
    plain = effects.plain()
    trials: dict[str, dict[str, dict[int, float]]] = {}
    for outcome in effects.outcomes:
        for key in ("value", "step_ms"):
            if outcome.result and key in outcome.result:
                trials.setdefault(outcome.arm, {}).setdefault(key, {})[outcome.seed] = outcome.result[key]
    died = [f"{each.arm}, seed {each.seed}: {each.error}" for each in effects.dead]
    return {
        "metric": effects.metric,
        "mode": effects.mode,
        "effects": plain["effects"],
        "trials": trials,
        "died": died,
    }


def main() -> None:
    """Run the trials that are left, and write figures, picture and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="trials of each arm (default: 5)")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=[*TASKS], help="if not all, nothing is written"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # more only wait for one another in networks as small as these
    asked = [name for name in TASKS if name in arguments.tasks]
    with Bar() as bar:
        found = {name: measured(name, arguments.seeds, bar) for name in asked}
        found = {name: timed(name, effects, bar) for name, effects in found.items()}
    if len(found) < len(TASKS):
        print(table(found))
        return
    draw(found, ROOT / "docs" / "ablation.png")
    results = {name: figures(effects) for name, effects in found.items()}
    record("ablation", {"seeds": arguments.seeds, "tasks": results}, table(found))


if __name__ == "__main__":
    main()
