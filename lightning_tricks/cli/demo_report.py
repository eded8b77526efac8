"""What the demo shows at the end: two tables for the terminal, and a figure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from lightning_tricks.cli.demo_record import Record, Score
from lightning_tricks.lifecycle.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Arm", "Deed", "deed_table", "draw", "score_table", "verdict"]


@dataclass(frozen=True)
class Deed:
    """What one technique did in one phase, in its own words."""

    phase: str
    technique: str
    outcome: dict[str, float | int | str]


@dataclass
class Arm:
    """One side of the comparison.

    Attributes:
        name: Of the run.
        records: One per phase.
        scores: For each set of weights the score after each phase; ``None`` where the set did not exist.
        deeds: What its techniques did.
    """

    name: str
    records: list[Record] = field(default_factory=list)
    scores: dict[str, list[Score | None]] = field(default_factory=dict)
    deeds: list[Deed] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Return the scores after the last phase as metrics."""
        last = {weights: scores[-1] for weights, scores in self.scores.items()}
        return {
            f"final/{kind}/{weights}": value
            for weights, score in last.items()
            if score is not None
            for kind, value in score._asdict().items()
        }


def score_table(arms: Sequence[Arm], phases: Sequence[str], *, note: str = "") -> Table:
    """Return the table of accuracies, losses and times: a row for each set of weights of each arm.

    Args:
        arms: Of the comparison.
        phases: Their names.
        note: Stands under the table.
    """
    table = _table("Validation after each phase")
    table.caption, table.caption_justify, table.caption_style = note and f"{note}\n", "left", "bold"
    for heading in ("\nrun", "\nweights"):
        table.add_column(heading)
    for phase in phases:
        for heading in (f"{phase}\naccuracy", "\nloss", "\nper step"):
            table.add_column(heading, justify="right")
    for arm in arms:
        times = [f"{1000 * statistics.median(record.seconds):.1f} ms" for record in arm.records]
        for row, (weights, scores) in enumerate(arm.scores.items()):
            cells = [
                cell
                for score, time in zip(scores, times, strict=True)
                for cell in (*_written(score), "" if row else time)
            ]
            table.add_row("" if row else arm.name, weights, *cells)
    return table


def _table(title: str) -> Table:
    # Narrow enough for 80 columns.
    return Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )


def _written(score: Score | None) -> tuple[str, str]:
    return ("", "") if score is None else (f"{score.accuracy:.1%}", f"{score.loss:.3f}")


def deed_table(arm: Arm) -> Table:
    """Return the table of what each technique of ``arm`` did."""
    table = _table("What each technique did")
    for heading in ("phase", "technique", "outcome"):
        table.add_column(heading)
    previous = ""
    for deed in arm.deeds:
        outcome = ", ".join(f"{name} {_short(value)}" for name, value in deed.outcome.items())
        table.add_row("" if deed.phase == previous else deed.phase, deed.technique, outcome)
        previous = deed.phase
    return table


def _short(value: float | int | str) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.3g}"
    return value


def verdict(plain: Arm, arm: Arm, images: int) -> str:
    """Return the result in words, how sure it is, and what stopping at the best epoch would have given.

    Args:
        plain: The run without techniques.
        arm: The run with them.
        images: That the last phase was validated on.
    """
    before = plain.scores["raw"][-1]
    assert before is not None
    found = [(score, name) for name, scores in arm.scores.items() if (score := scores[-1]) is not None]
    after, name = max(found, key=lambda pair: pair[0].accuracy)
    error = (before.accuracy * (1 - before.accuracy) / images) ** 0.5
    return (
        f"After the last epoch: {name} weights {after.accuracy:.1%}, plain run {before.accuracy:.1%}. "
        f"At the best epoch: averaged weights {_best(arm.records[-1].validated)}, "
        f"plain run {_best(plain.records[-1].live)}. "
        f"One seed and {images} images: the standard error of an accuracy is {100 * error:.1f} points."
    )


def _best(scores: Sequence[Score]) -> str:
    epoch = max(range(len(scores)), key=lambda index: scores[index].accuracy)
    return f"{scores[epoch].accuracy:.1%} (epoch {epoch + 1} of {len(scores)})"


def draw(plain: Arm, arm: Arm, phases: Sequence[str], path: Path) -> None:
    """Draw rates, gradient norms, trainable parameters and accuracies over steps, as a PNG at ``path``."""
    with new_figure(path, width=9.5, height=6.2) as figure:
        panels = figure.subplots(2, 2, sharex=True)
        _draw_rates(panels[0, 0], plain, arm)
        _draw_norms(panels[0, 1], arm)
        _draw_trainable(panels[1, 0], plain, arm)
        _draw_accuracies(panels[1, 1], plain, arm)
        boundary = arm.records[0].steps
        for panel in panels.flat:
            panel.axvline(boundary, color=GREY, linewidth=0.8, linestyle=":")
        for panel in panels[1]:
            panel.set_xlabel(f"optimizer step ({phases[0]} left of the dotted line, {phases[1]} right)")


def _starts(arm: Arm) -> Iterator[tuple[int, Record]]:
    """Yield each record with the number of steps before it."""
    before = 0
    for record in arm.records:
        yield before, record
        before += record.steps


def _draw_rates(panel: Axes, plain: Arm, arm: Arm) -> None:
    panel.set(title="Learning rate of each parameter group", ylabel="learning rate", yscale="log")
    colours = cycle([BLACK, RED, ORANGE, GREEN, SKY, BLUE, PURPLE])
    for before, record in _starts(arm):
        steps = range(before, before + record.steps)
        for name, rates in record.rates.items():
            panel.plot(steps, rates, color=next(colours), label=name)
    for before, record in _starts(plain):
        for rates in record.rates.values():
            label = None if before else "plain run"
            steps = range(before, before + record.steps)
            panel.plot(steps, rates, color=GREY, linestyle="--", label=label)
    panel.legend(ncols=2, loc="lower left")


def _draw_norms(panel: Axes, arm: Arm) -> None:
    panel.set(title="Gradient norm", ylabel="global L2 norm")
    for before, record in _starts(arm):
        steps = range(before, before + record.steps)
        labels = (None, None) if before else ("before clipping", "after clipping")
        # Wider, so that it is seen where nothing was clipped.
        panel.plot(steps, record.norms, color=ORANGE, linewidth=2.2, label=labels[0])
        panel.plot(steps, record.clipped_norms, color=BLUE, linewidth=0.8, label=labels[1])
    panel.set_ylim(bottom=0)
    panel.legend(loc="best")


def _draw_trainable(panel: Axes, plain: Arm, arm: Arm) -> None:
    panel.set(title="Trainable parameters", ylabel="thousands")
    for each, colour, line in ((plain, GREY, "--"), (arm, BLUE, "-")):
        trainable = [count / 1000 for record in each.records for count in record.trainable]
        panel.plot(trainable, color=colour, linestyle=line, label=f"{each.name} run", drawstyle="steps-post")
    panel.set_ylim(bottom=0)
    panel.legend(loc="lower right")


def _draw_accuracies(panel: Axes, plain: Arm, arm: Arm) -> None:
    panel.set(title="Validation accuracy", ylabel="percent")
    lines = (
        (plain, "live", GREY, "--", "plain run"),
        (arm, "live", ORANGE, "-", "raw weights"),
        (arm, "validated", BLUE, "-", "averaged weights"),
    )
    for each, kind, colour, line, label in lines:
        for before, record in _starts(each):
            steps = [before + end for end in record.epoch_ends]
            accuracies = [100 * score.accuracy for score in getattr(record, kind)]
            panel.plot(steps, accuracies, color=colour, linestyle=line, label=None if before else label)
    if "fused" in arm.scores and (fused := arm.scores["fused"][-1]) is not None:
        end = sum(record.steps for record in arm.records)
        panel.plot([end], [100 * fused.accuracy], "*", color=RED, markersize=11, label="fused weights")
    panel.legend(loc="best")
