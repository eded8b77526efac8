"""What each method of fusion brings on the digits, beside the ensemble of the same models.

Four models of a residual network at a time, trained on shares of 600 digits, of whose labels a fifth are
drawn anew: fine-tuned from one start, or each from a start of its own; the latter also with their units
aligned to the first. Accuracies are of 797 other digits, as fused and with BatchNorm statistics estimated
anew over the training images. 400 more digits are what methods choose by and LearnedSoup learns from; RegMean
and FisherWeighted look at the training images. Methods over a base get the start, and where there is none
the first model. Also the loss along the line between two models.

    python -m benchmarks.methods --seeds 5
"""

from __future__ import annotations

import argparse
import logging
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor

import lightning_tricks as lt
from benchmarks.digits_models import MODELS, SHARES, Digits
from benchmarks.record import ROOT, record
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.methods import FusionMethod
from lightning_tricks.fusion.probe import Probing, informed
from lightning_tricks.fusion.weight_matching import align

Models = Sequence[Model]


class Entry(NamedTuple):
    """A method in the table.

    Attributes:
        build: Makes it from the task, for methods that look at data, and each model's share of the data.
        base: Whether it takes the base before the models.
        models: How many of the models it takes.
    """

    build: Callable[[Digits, tuple[float, ...]], FusionMethod]
    base: bool = False
    models: int = MODELS


def _plain(method: FusionMethod, *, base: bool = False, models: int = MODELS) -> Entry:
    return Entry(lambda digits, shares: method, base, models)


_FIRST = (1.0,) + (0.0,) * (MODELS - 1)
_MORE = (0.7,) + (0.1,) * (MODELS - 1)
_EQUAL = (0.25,) * MODELS
METHODS: dict[str, Entry] = {
    "`Average()`": _plain(lt.Average()),
    "`FedAvg(samples)`": Entry(lambda digits, shares: lt.FedAvg(shares)),
    "`Interpolate(0.5)` of two": _plain(lt.Interpolate(0.5), models=2),
    "`Slerp(0.5)` of two": _plain(lt.Slerp(0.5), models=2),
    "`GreedySoup()`": _plain(lt.GreedySoup()),
    "`Median()`": _plain(lt.Median()),
    "`TrimmedMean(0.25)`": _plain(lt.TrimmedMean(0.25)),
    "`SimilarityWeighted()`": _plain(lt.SimilarityWeighted()),
    "`Pruned(0.5)`": _plain(lt.Pruned(0.5)),
    "`TaskArithmetic(scale=0.3)`": _plain(lt.TaskArithmetic(scale=0.3), base=True),
    "`Ties(0.2)`": _plain(lt.Ties(0.2), base=True),
    "`Dare(0.5, scale=0.3)`": _plain(lt.Dare(0.5, scale=0.3), base=True),
    "`DareTies(0.5)`": _plain(lt.DareTies(0.5), base=True),
    "`Breadcrumbs(scale=0.3)`": _plain(lt.Breadcrumbs(scale=0.3), base=True),
    "`ModelStock()`": _plain(lt.ModelStock(), base=True),
    "`FedAvgM(samples)`": Entry(lambda digits, shares: lt.FedAvgM(shares), base=True),
    "`FedAdam(samples, lr=0.003)`": Entry(lambda digits, shares: lt.FedAdam(shares, lr=0.003), base=True),
    "`RegMean()`": _plain(lt.RegMean()),
    "`FisherWeighted()`": _plain(lt.FisherWeighted()),
    "`LearnedSoup()`": _plain(lt.LearnedSoup(batches=4)),
    '`LearnedSoup(per="layer")`': _plain(lt.LearnedSoup(per="layer", batches=4)),
    "`NelderMeadSoup()`": _plain(lt.NelderMeadSoup()),
    "`Layerwise`, first model's stem": _plain(lt.Layerwise({"stem": lt.Average(_FIRST), "*": lt.Average()})),
    "`OverDepth`, less of the first": _plain(
        lt.OverDepth((lt.Average(_MORE), lt.Average(_EQUAL)), layers=("stem", "groups.?", "head"))
    ),
}
GROUPS = ("one start", "different starts", "different starts, aligned")
START, ONE, BEST = "the start", "one model, on average", "one model, the best of the choice"
MEAN, VOTES = "ensemble, averaged", "ensemble, voted"
COLOURS = ("#0072B2", "#D55E00", "#009E73")  # Okabe and Ito's
POINTS = 11  # along the line

Found = dict[str, dict[str, list[list[float]]]]
"""Of each group and row, of each seed: the accuracy as fused, and with new statistics where it has any."""

Lines = dict[str, list[list[list[float]]]]
"""Of each group, of each seed: the losses along the line, as fused and with new statistics."""


def references(digits: Digits, models: Models, base: Model | None) -> dict[str, list[float]]:
    """Return the accuracies of the models themselves, and of their ensembles."""
    logits = [digits.logits(model) for model in models]
    alone = [digits.accuracy(each) for each in logits]
    chosen = max(range(len(models)), key=lambda index: digits.score(models[index]))
    votes = sum(torch.nn.functional.one_hot(each.argmax(1), 10) for each in logits)
    mean = sum(each.softmax(1) for each in logits)
    assert isinstance(votes, Tensor) and isinstance(mean, Tensor)
    return {
        START: [] if base is None else [digits.accuracy(digits.logits(base))],
        ONE: [statistics.mean(alone)],
        BEST: [alone[chosen]],
        MEAN: [digits.accuracy(mean)],
        VOTES: [digits.accuracy(votes)],
    }


def fused(digits: Digits, entry: Entry, models: Models, base: Model | None) -> list[float]:
    """Return the accuracies as fused and with BatchNorm statistics estimated anew."""
    found, given = [], [*models[: entry.models]]
    shares: tuple[float, ...] = SHARES
    if entry.base and base is not None:
        given.insert(0, base)
    elif entry.base:
        shares = SHARES[1:]
    method = entry.build(digits, shares)
    if isinstance(method, Probing) and method.needs_probe:
        method = informed(method, given, digits.probe(held_out=method.held_out))
    for batchnorm in (False, True):
        model = method.fuse(given, partial(digits.score, batchnorm=batchnorm))
        found.append(digits.accuracy(digits.logits(model, batchnorm=batchnorm)))
    return found


def line(digits: Digits, models: Models) -> list[list[float]]:
    """Return the losses from the first model to the second, as fused and with new statistics."""
    shares = [index / (POINTS - 1) for index in range(POINTS)]
    points = [lt.Interpolate(1.0 - share).fuse(models[:2]) for share in shares]
    return [
        [digits.loss(digits.logits(point, batchnorm=batchnorm)) for point in points]
        for batchnorm in (False, True)
    ]


def run(seed: int, found: Found, lines: Lines) -> Iterator[str]:
    """Add what comes of one seed, and yield after each row."""
    digits = Digits(seed)
    start, near = digits.of_one_start()
    far = digits.of_different_starts()
    aligned = align(far, lt.permutation_spec(digits.network), seed=seed)
    groups: list[tuple[Models, Model | None]] = [(near, start), (far, None), (aligned, None)]
    for group, (models, base) in zip(GROUPS, groups, strict=True):
        rows = found.setdefault(group, {})
        for name, values in references(digits, models, base).items():
            rows.setdefault(name, []).append(values)
        for name, entry in METHODS.items():
            rows.setdefault(name, []).append(fused(digits, entry, models, base))
            yield name
        lines.setdefault(group, []).append(line(digits, models))


def median(runs: Sequence[Sequence[float]], place: int) -> str:
    """Return the median over seeds, the least and the greatest, as text."""
    if place >= len(runs[0]):
        return ""
    values = [each[place] for each in runs]
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def table(found: Found) -> str:
    """Return the accuracies of each row, as medians over seeds with the spread."""
    heads = [f"{group}{what}" for group in GROUPS for what in ("", ", BatchNorm anew")]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for name in found[GROUPS[0]]:
        cells = [median(found[group][name], place) for group in GROUPS for place in (0, 1)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: Found, lines: Lines, path: Path) -> None:
    """Draw the losses along lines and the accuracies into a PNG at ``path``."""
    figure = Figure(figsize=(12.0, 6.6), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.25))
    _draw_lines(left, lines)
    _draw_accuracies(right, found)
    figure.savefig(path, format="png")


def _draw_lines(axes: Axes, lines: Lines) -> None:
    shares = [index / (POINTS - 1) for index in range(POINTS)]
    for colour, (group, runs) in zip(COLOURS, lines.items(), strict=True):
        for place, (style, what) in enumerate((("--", ""), ("-", ", BatchNorm anew"))):
            columns = [*zip(*(each[place] for each in runs), strict=True)]
            middle = [statistics.median(column) for column in columns]
            axes.plot(shares, middle, style, color=colour, label=group + what)
            if place:
                axes.fill_between(
                    shares, [*map(min, columns)], [*map(max, columns)], color=colour, alpha=0.15, lw=0
                )
    axes.set_title("between two models")
    axes.set_xlabel("share of the second model")
    axes.set_ylabel("loss, nats")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def _draw_accuracies(axes: Axes, found: Found) -> None:
    names = [*found[GROUPS[0]]]
    for height, (colour, group) in enumerate(zip(COLOURS, GROUPS, strict=True)):
        for row, name in enumerate(names):
            values = [each[-1] for each in found[group][name] if each]
            if not values:
                continue
            at = row + 0.22 * (height - 1)
            axes.plot([min(values), max(values)], [at, at], color=colour, linewidth=1.2, alpha=0.6)
            axes.plot(statistics.median(values), at, "o", color=colour, markersize=4)
    axes.set_yticks(range(len(names)), [name.replace("`", "") for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set_title("fused, BatchNorm anew")
    axes.set_xlabel("accuracy, %")
    axes.grid(alpha=0.3)


def main() -> None:
    """Train, fuse, and write figures, picture and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="how often all is done (default: 5)")
    seeds = range(parser.parse_args().seeds)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    found: Found = {}
    lines: Lines = {}
    rows = (row for seed in seeds for row in run(seed, found, lines))
    for _ in track(rows, "methods", total=len(seeds) * len(GROUPS) * len(METHODS)):
        pass
    draw(found, lines, ROOT / "docs" / "methods.png")
    figures: dict[str, Any] = {"seeds": len(seeds), "accuracy": found, "loss": lines}
    record("methods", figures, table(found))


if __name__ == "__main__":
    main()
