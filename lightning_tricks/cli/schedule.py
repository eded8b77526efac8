"""``lightning-tricks schedule``: a schedule as a plot of plain characters, as a table, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from operator import mul
from pathlib import Path
from textwrap import fill

from lightning_tricks.core import checks
from lightning_tricks.core.duration import Horizon
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course
from lightning_tricks.core.unreached import unreached
from lightning_tricks.lifecycle.figures import BLUE, new_figure

__all__ = ["Preview", "draw", "plot", "show", "table", "values"]

_WIDTH, _HEIGHT = 72, 13
_FINE = 20  # values that are looked at for each column of the plot
_TICKS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class Preview:
    """A schedule over a run.

    Args:
        text: The schedule, as it is written.
        steps: Optimizer steps of the run.
        epochs: Epochs of the run, all equally long up to rounding; ``None`` if they do not matter.
        png: Where the picture is written; ``None`` for none.
        json: Whether to print JSON.

    Raises:
        TypeError: If a setting is of another type.
        ValueError: If the text cannot be read, or needs epochs that are not given.
    """

    text: str
    steps: int = 1000
    epochs: int | None = None
    png: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        checks.whole("steps", self.steps, 1)
        if self.epochs is not None and checks.whole("epochs", self.epochs, 1) > self.steps:
            raise ValueError(f"epochs must be at most steps, {self.steps}, got {self.epochs}")
        if self.png is not None:
            checks.text("png", self.png)
        self.course()

    def course(self) -> Course:
        """Return the schedule laid over the run."""
        ends = None
        if self.epochs is not None:
            ends = tuple(round(self.steps * done / self.epochs) for done in range(1, self.epochs + 1))
        horizon = Horizon(self.steps, ends, "--epochs is not given")
        return as_schedule("schedule", self.text).resolve(horizon)

    def epoch(self, step: float) -> float | None:
        """Return the epochs done after ``step``; ``None`` if they do not matter."""
        return None if self.epochs is None else step * self.epochs / self.steps


def show(preview: Preview) -> None:
    """Print the plot, the table and what has no effect, and write the picture if there is to be one."""
    if preview.png is not None:
        draw(preview, preview.png)
    notes = list(unreached(preview.course()))
    if preview.json:
        about = {name: getattr(preview, name) for name in ("text", "steps", "epochs", "png")}
        print(json.dumps({**about, "values": list(values(preview)), "notes": notes}, indent=1))
        return
    told = [f"\nnote: {line}" for line in notes]
    print("\n".join(["", preview.text, "", *plot(preview), "", *table(preview), *told]))
    if preview.png is not None:
        print(f"\nwritten: {preview.png}")


def plot(preview: Preview) -> list[str]:
    """Return the lines of a plot: each column a part of the run, from its least value to its greatest."""
    course, steps = preview.course(), preview.steps
    values = [course(steps * index // (_WIDTH * _FINE)) for index in range(_WIDTH * _FINE)]
    # With the last value of the column before, so that a sudden fall is drawn as one.
    columns = [values[max(0, _FINE * column - 1) : _FINE * (column + 1)] for column in range(_WIDTH)]
    low = min(0.0, *(min(column) for column in columns))
    high = max(max(column) for column in columns)
    if high == low:
        high = low + 1.0
    scale = (_HEIGHT - 1) / (high - low)
    marks = [(round((min(c) - low) * scale), round((max(c) - low) * scale)) for c in columns]
    lines = []
    for row in reversed(range(_HEIGHT)):
        value = f"{low + row / scale:.4g}" if row % 3 == 0 else ""
        cells = "".join("*" if least <= row <= most else " " for least, most in marks)
        lines.append(f"{value:>10} |{cells}".rstrip())
    lines.append(" " * 11 + "+" + "-" * _WIDTH)
    lines.append(_axis("step", [str(0), str(steps // 2), str(steps)]))
    if preview.epochs is not None:
        lines.append(_axis("epoch", [f"{share * preview.epochs:g}" for share in (0.0, 0.5, 1.0)]))
    return lines


def _axis(name: str, labels: list[str]) -> str:
    left, middle, right = labels
    line = left.ljust(_WIDTH // 2 - len(middle) // 2) + middle
    return f"{name:>10}  {line}{right:>{_WIDTH - len(line)}}"


def values(preview: Preview) -> Iterator[dict[str, float]]:
    """Yield the value at some steps, among them the ends of parts and milestones."""
    course, steps = preview.course(), preview.steps
    chosen = {round(share * steps) for share in _TICKS} | {steps - 1}
    for leg in course.legs:
        moments = (at for at, _ in leg.part.moments(leg.span) if at < leg.span.end)
        chosen |= {at for at in (*moments, leg.span.end) if at <= steps}
    for step in sorted(chosen):
        epoch = preview.epoch(step)
        yield {"step": step, **({} if epoch is None else {"epoch": epoch}), "value": course(step)}


def table(preview: Preview) -> list[str]:
    """Return the lines of a table of these values."""
    lines = [f"{'step':>10}{'' if preview.epochs is None else '     epoch'}{'value':>14}"]
    for row in values(preview):
        shown = f"{row['epoch']:>10.2f}" if "epoch" in row else ""
        after = "  after the last step" if row["step"] == preview.steps else ""
        lines.append(f"{row['step']:>10}{shown}{row['value']:>14.6g}{after}")
    return lines


def draw(preview: Preview, path: str | Path) -> None:
    """Draw the schedule over optimizer steps, as a PNG at ``path``.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed; names the extra to install.
        OSError: If the picture cannot be written.
    """
    course, steps = preview.course(), preview.steps
    fine = _WIDTH * _FINE
    positions = range(steps) if steps <= fine else [steps * index // fine for index in range(fine)]
    with new_figure(path, width=8.0, height=4.0) as figure:
        axes = figure.subplots()
        values = [*map(course, positions), course(steps)]
        axes.step([*positions, steps], values, where="post", color=BLUE)
        axes.set_title(fill(preview.text, 90), fontsize=9, family="monospace")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("value")
        axes.set_xlim(0, steps)
        if preview.epochs is not None:
            ratio = preview.epochs / steps
            above = axes.secondary_xaxis("top", functions=(partial(mul, ratio), partial(mul, 1 / ratio)))
            above.set_xlabel("epoch")
