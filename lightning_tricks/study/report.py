"""What an ablation found, for people: a table for the terminal, Markdown, a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_tricks.lifecycle.figures import BLUE, GREY, ORANGE, new_figure
from lightning_tricks.study.bootstrap import Estimate
from lightning_tricks.study.effects import Cost, Effect, Effects

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase
    from rich.table import Table

__all__ = ["draw_effects", "draw_panels", "markdown", "notes", "rich_table", "table_rows"]

_HEADS = ("technique", "alone", "among the others", "step time", "memory, MiB")
_ENOUGH = 5  # seeds, with which intervals hold the mean nearly as often as they say


def _estimate(found: Estimate | None, wanted: int) -> str:
    if found is None:
        return ""
    interval = f" ({found.low:+.2g} to {found.high:+.2g})" if found.low == found.low else ""
    pairs = f" [{found.pairs} of {wanted}]" if found.pairs < wanted else ""
    return f"{found.mean:+.3g}{interval}{pairs}"


def _cost(found: Cost | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    memory = "" if found.memory_mib is None else f"{found.memory_mib:+.1f}"
    return f"{found.step:.2f} ({found.step_low:.2f} to {found.step_high:.2f})", memory


def table_rows(effects: Effects, mark: tuple[str, str] = ("", "")) -> list[tuple[str, ...]]:
    """Return the heads and the rows of the table; ``mark`` stands around effects that are clear."""
    return [_HEADS, *(_row(row, _seeds(effects), mark) for row in effects.rows)]


def _row(row: Effect, seeds: int, mark: tuple[str, str]) -> tuple[str, ...]:
    def cell(found: Estimate | None) -> str:
        text = _estimate(found, seeds)
        clear = found is not None and found.is_clear and seeds >= _ENOUGH
        return f"{mark[0]}{text}{mark[1]}" if clear else text

    return row.name, cell(row.alone), cell(row.among), *_cost(row.cost)


def _seeds(effects: Effects) -> int:
    return len({outcome.seed for outcome in effects.outcomes})


def _held(seeds: int) -> int:
    """Return in how many of 100 cases an interval of so many seeds holds the mean, as far as it can."""
    return 95 if seeds >= _ENOUGH else round(100 * (1 - 2.0 ** (1 - seeds)))


def notes(effects: Effects) -> list[str]:
    """Return what stands under the table: what the numbers mean, and what died."""
    plain = effects.values(())
    better = "lower" if effects.mode == "min" else "higher"
    without = f"Without any: {sum(plain.values()) / len(plain):.4g} on average. " if plain else ""
    devices = sorted({outcome.result["device"] for outcome in effects.outcomes if outcome.result})
    mean = (
        f"the mean over {seeds} seeds with its {_held(seeds)} % interval, each by itself"
        + (", bold where it leaves out 0" if seeds >= _ENOUGH else "")
        if (seeds := _seeds(effects)) > 1
        else "of 1 seed, which tells nothing of how far another would differ: take more for an interval"
    )
    found = [
        f"How much better {effects.metric} ({better} is better) gets, above 0 if the technique helps; "
        f"{mean}. {without}Added to none, and to all the others.",
        "Step time by that without any, alone: median over seeds, least and greatest. Memory beyond that "
        "without any, alone: on a GPU the peak of tensors, else of the process while it trained. "
        f"Measured on {', '.join(devices) or 'nothing'}.",
    ]
    if 1 < seeds < _ENOUGH:
        found.append(
            f"Of {seeds} seeds an interval reaches at most from the least difference to the greatest, which "
            f"holds the true mean in about {_held(seeds)} of 100 cases: take {_ENOUGH} or more."
        )
    if len(effects.outcomes) < effects.wanted:
        found.append(f"{len(effects.outcomes)} of {effects.wanted} trials have ended.")
    return found + [f"Died: {each.arm}, seed {each.seed}: {each.error}" for each in effects.dead]


def rich_table(effects: Effects) -> Table:
    """Return the table for a terminal."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    heads, *rows = table_rows(effects, ("[bold]", "[/bold]"))
    for index, head in enumerate(heads):
        table.add_column(head.replace(", ", ",\n"), justify="right" if index else "left")
    for name, *cells in rows:
        # Narrow enough for 80 columns; in a name a label stands in brackets, as marks of rich do.
        table.add_row(escape(name), *(cell.replace(" (", "\n(").replace(" to ", ", ") for cell in cells))
    return table


def markdown(effects: Effects) -> str:
    """Return the table and the notes as Markdown."""
    heads, *rows = table_rows(effects, ("**", "**"))
    lines = [f"| {' | '.join(row)} |" for row in (heads, ("---", *["---:"] * 4), *rows)]
    said = [f"{' '.join(note.replace('|', '/').split())}\n" for note in notes(effects)]
    return "\n".join([f"# What each technique brings: {effects.metric}\n", *lines, "", *said])


def draw_effects(effects: Effects, path: str | os.PathLike[str]) -> None:
    """Draw what each technique brings and costs, as a PNG at ``path``.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed; names the extra to install.
        OSError: If the picture cannot be written.
    """
    with new_figure(path, width=9.0, height=max(3.0, 1.6 + 0.5 * len(effects.rows))) as figure:
        draw_panels(figure, effects)


def draw_panels(figure: FigureBase, effects: Effects) -> None:
    """Draw them into a figure of Matplotlib's, or a part of one."""
    rows = effects.rows
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1.0))
    _draw_gains(left, effects, rows)
    _draw_costs(right, rows)
    left.set_yticks(range(len(rows)), [row.name for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)  # from above; rows of which all trials died have their place too


def _draw_gains(panel: Axes, effects: Effects, rows: Sequence[Effect]) -> None:
    panel.axvline(0.0, color=GREY, linewidth=0.8)
    kinds: tuple[tuple[str, str, float, str], ...] = (
        ("alone", BLUE, -0.19, "added to none"),
        ("among", ORANGE, 0.19, "added to all others"),
    )
    for kind, colour, offset, label in kinds:
        found: list[tuple[int, Estimate]] = [
            (at, estimate) for at, row in enumerate(rows) if (estimate := getattr(row, kind)) is not None
        ]
        if not found:
            continue
        heights = [at + offset for at, _ in found]
        means = [estimate.mean for _, estimate in found]
        panel.barh(heights, means, height=0.34, color=colour, alpha=0.75, label=label)
        ends: list[Any] = [
            [_at_least_0(estimate.mean - estimate.low) for _, estimate in found],
            [_at_least_0(estimate.high - estimate.mean) for _, estimate in found],
        ]
        panel.errorbar(means, heights, xerr=ends, fmt="none", ecolor="#222222", elinewidth=1.0, capsize=2.5)
    seeds = _seeds(effects)
    interval = f" ({_held(seeds)} % interval)" if seeds > 1 else ""
    panel.set_xlabel(f"gain in {effects.metric}, right of 0 is better{interval}")
    panel.set_title(f"What it brings ({seeds} seed{'s' * (seeds != 1)})", fontsize=10)
    panel.set_axisbelow(True)
    panel.use_sticky_edges = False  # else the line at 0 would be the frame where all bars end on one side
    panel.locator_params(axis="x", nbins=6)
    if panel.patches:
        below = {"bbox_to_anchor": (0.5, 0.0), "borderaxespad": 5.0}  # in heights of its letters
        panel.legend(fontsize=8, loc="upper center", ncols=2, frameon=False, **below)


def _at_least_0(length: float) -> float:
    return max(0.0, length) if length == length else 0.0


def _draw_costs(panel: Axes, rows: Sequence[Effect]) -> None:
    panel.axvline(1.0, color=GREY, linewidth=0.8)
    found = [(at, row.cost) for at, row in enumerate(rows) if row.cost is not None]
    for at, cost in found:
        panel.plot([cost.step_low, cost.step_high], [at, at], color=BLUE, linewidth=1.2)
    panel.plot([cost.step for _, cost in found], [at for at, _ in found], "o", color=BLUE, markersize=5)
    panel.set_xlabel("step time, 1 is that without any")
    panel.set_title("What it costs", fontsize=10)
    panel.set_axisbelow(True)
