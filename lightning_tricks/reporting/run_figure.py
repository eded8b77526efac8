"""What was logged in a run as a picture: a panel for each kind of number.

Numbers of one kind share a panel: losses; rates; norms of gradients with their thresholds; distances of
averages from live weights; parameters that learn; and of each technique each other number that changed in
the run, with a line for each layer where there are several.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from os import PathLike
from typing import TYPE_CHECKING

from lightning_tricks.lifecycle.figures import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RATE", "Record", "changes", "draw_run", "panels_of"]

_MOST = 2000  # points of a line; of more every second one is left out
_NARROW = 24  # letters of labels of which two stand side by side below a panel
RATE = "learning rate"
_KINDS = {
    "loss": ("loss",),
    RATE: (RATE,),
    "gradient norm": ("/norm", "/threshold"),
    "distance of the average, share of the weights' norm": ("/distance",),
    "parameters that learn": ("/trainable",),
}
_LOGARITHMIC = ("gradient norm", RATE)


class Record:
    """Numbers by name, each at some steps.

    Attributes:
        lines: For each name its steps and its values.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self.lines: dict[str, tuple[list[int], list[float]]] = {}

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add numbers that were logged at ``step``."""
        for name, value in values.items():
            steps, line = self.lines.setdefault(name, ([], []))
            steps.append(step)
            line.append(value)
            if len(line) > _MOST:
                del steps[-2::-2], line[-2::-2]


def panels_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the titles of panels with the names of the lines in each, in the order of the panels.

    Example:
        >>> panels_of(["train_loss", "gradient_clip/norm", "ema_weights/decay", "gradient_clip/threshold"])
        {'loss': ['train_loss'], 'gradient norm': ['gradient_clip/norm', 'gradient_clip/threshold'], \
'ema_weights/decay': ['ema_weights/decay']}
    """
    panels: dict[str, list[str]] = {title: [] for title in _KINDS}
    for name in dict.fromkeys(names):
        whole = name.rstrip("0123456789").rstrip("/")  # with several optimizers their number follows
        own = "/".join(name.split("/")[:2])
        title = next((kind for kind, ends in _KINDS.items() if whole.endswith(ends)), own)
        panels.setdefault(title, []).append(name)
    return {title: lines for title, lines in panels.items() if lines}


def changes(record: Record) -> list[str]:
    """Return the names of the lines that are not flat."""
    return [name for name, (_, line) in record.lines.items() if len(set(line)) > 1]


def draw_run(record: Record, path: str | PathLike[str], *, title: str) -> None:
    """Draw all numbers of ``record`` that changed over optimizer steps, as a PNG at ``path``.

    Args:
        record: At least one of its lines has two different values.
        path: Where to.
        title: Of the picture.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed; names the extra to install.
        OSError: If the picture cannot be written.
    """
    # A threshold that never changes is what its norm is looked at beside.
    panels = panels_of([*changes(record), *(name for name in record.lines if "/threshold" in name)])
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    legends = [_legend_size(names, title)[0] for title, names in panels.items()]
    below = sum(max(legends[row * columns : (row + 1) * columns]) for row in range(rows))
    with new_figure(path, width=4.2 * columns, height=0.4 + 2.6 * rows + 0.16 * below) as figure:
        figure.suptitle(title)
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, (name, lines) in zip(axes, panels.items(), strict=False):
            _draw_panel(axis, name, lines, record)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()


def _draw_panel(axis: Axes, title: str, names: Sequence[str], record: Record) -> None:
    if title == RATE:  # groups that learn at one rate are one line
        first = {tuple(record.lines[name][1]): name for name in reversed(names)}
        names = [name for name in names if name in first.values()]
    for name, colour in zip(names, cycle(COLOURS), strict=False):
        steps, values = record.lines[name]
        style, marker = "--" if "/threshold" in name else "-", "o" if len(steps) <= 20 else None
        label = _label(name, title)
        axis.plot(steps, values, style, color=colour, label=label, marker=marker, markersize=3, linewidth=1.2)
    axis.set(title=title, xlabel="optimizer step")
    if title in _LOGARITHMIC and min(min(record.lines[name][1]) for name in names) > 0:
        axis.set_yscale("log")
    rows, columns = _legend_size(names, title)
    if rows:
        # Below the panel, in heights of its letters: in it, it would lie on lines.
        axis.legend(ncols=columns, loc="upper center", bbox_to_anchor=(0.5, 0.0), borderaxespad=4.5)


def _label(name: str, title: str) -> str:
    if title == RATE:
        return f"group {name.removeprefix(RATE).removeprefix('/') or 0}"
    return name.removeprefix(f"{title}/")


def _legend_size(names: Sequence[str], title: str) -> tuple[int, int]:
    """Return the rows and columns of a panel's legend; no rows where colours do not tell lines apart."""
    if not 1 < len(names) <= len(COLOURS):
        return 0, 1
    columns = 2 if max(len(_label(name, title)) for name in names) <= _NARROW else 1
    return -(-len(names) // columns), columns
