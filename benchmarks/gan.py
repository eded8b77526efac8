"""What penalties, spectral norm, instance noise and averaging are worth for a GAN of digits.

The reference pair of 8x8 images learns 1,200 digits for 40 epochs. A classifier of real digits, trained on
the same, scores 512 samples by the live weights of the generator and by their average: the share that it
recognises with more than 90 %, how many of the ten digits make up 2 % or more, and the Fréchet distance of
its features from those of 597 other real digits. Means over seeds, with the least and the greatest.

    python -m benchmarks.gan --seeds 3
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from benchmarks.record import record
from lightning_tricks import R1, EMAWeights, GradientPenalty, SpectralNorm
from lightning_tricks.recipes.digits import QUIET
from lightning_tricks.recipes.digits_gan import (
    DigitReader,
    DigitsGAN,
    DigitsInRange,
    digit_scores,
    trained_reader,
)

EPOCHS = 40
Scores = dict[str, dict[str, float]]
Choice = tuple[dict[str, Any], Callable[[], list[Callback]]]
CHOICES: dict[str, Choice] = {
    "none": ({"penalties": ()}, list),
    "`R1(1.0)`": ({"penalties": R1(1.0)}, list),
    "`GradientPenalty(1.0, one_sided=True)`": ({"penalties": GradientPenalty(1.0, one_sided=True)}, list),
    '`SpectralNorm(params="critic")`': ({"penalties": ()}, lambda: [SpectralNorm(params="critic")]),
    '`instance_noise="0.5 * linear(to=0.0)"`': (
        {"penalties": (), "instance_noise": "0.5 * linear(to=0.0)"},
        list,
    ),
}
SHOWN = {"recognised": ".0%", "digits": ".1f", "frechet": ".1f"}


def scores(
    choice: Choice, seed: int, data: DigitsInRange, reader: DigitReader
) -> dict[str, dict[str, float]]:
    """Return the scores of the live weights and of the average after a training."""
    torch.manual_seed(seed)
    gan, average = DigitsGAN(), EMAWeights(decay=0.99, params="generator")
    for name, value in (choice[0] | {"gan_seed": seed}).items():
        setattr(gan, name, value)
    settings = {**QUIET, "limit_val_batches": 0}
    Trainer(max_epochs=EPOCHS, callbacks=[*choice[1](), average], **settings).fit(gan, data)
    z = gan.latent.draw(512, torch.Generator().manual_seed(seed))
    found = {}
    for name, held in (("live", average.live_weights()), ("average", nullcontext())):
        with held, torch.no_grad():
            samples = gan.eval()(z)
        found[name] = digit_scores(reader, samples, data.val_set.tensors[0])
    return found


def cell(values: list[float], form: str) -> str:
    """Return the mean with the least and the greatest."""
    low, high = (format(end, form) for end in (min(values), max(values)))
    return f"{statistics.mean(values):{form}} ({low} to {high})"


def main() -> None:
    """Measure all choices in turn, and write their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    seeds = range(parser.parse_args().seeds)
    data = DigitsInRange(training=1200)
    reader = trained_reader(data)
    data.setup("fit")
    figures: dict[str, Any] = {name: [] for name in CHOICES}
    for seed in seeds:
        for name, choice in CHOICES.items():
            figures[name].append(scores(choice, seed, data, reader))
            print(seed, name, figures[name][-1], flush=True)
    lines = [
        "| on the critic | weights | recognised | digits | Fréchet distance |",
        "|---|---|---:|---:|---:|",
    ]
    for name, found in figures.items():
        for weights in ("live", "average"):
            values = {score: [each[weights][score] for each in found] for score in SHOWN}
            cells = [cell(values[score], form) for score, form in SHOWN.items()]
            lines.append(f"| {name} | {weights} | {' | '.join(cells)} |")
    record("gan", {"epochs": EPOCHS, "seeds": len(seeds), "scores": figures}, "\n".join(lines))


if __name__ == "__main__":
    main()
