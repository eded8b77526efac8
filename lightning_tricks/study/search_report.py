"""What a search found, for people: tables for the terminal, Markdown, a picture, a run in W&B."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_tricks.lifecycle.figures import BLUE, GREY, ORANGE, RED, new_figure
from lightning_tricks.study.found import Found, Tried
from lightning_tricks.study.wandb_runs import WandbGroup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

__all__ = ["draw_search", "log_search", "search_markdown", "search_notes", "search_tables"]

_HEADS = ("trial", "value", "other than the default")
_SHARES = ("setting", "importance")
_SHOWN = 10


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _changes(found: Found, trial: Tried) -> str:
    if trial.number == 0:
        return "the default"
    return ", ".join(f"{name} {_said(value)}" for name, value in found.changed(trial).items()) or "nothing"


def _rows(found: Found, trials: Sequence[Tried]) -> list[tuple[str, ...]]:
    return [(str(each.number), f"{each.value:.4g}", _changes(found, each)) for each in trials]


def _best_trials(found: Found) -> list[Tried]:
    """Return the trials that a table shows: the best, and the default if it is not among them."""
    best = found.ranked[:_SHOWN]
    return best + [each for each in found.ranked[_SHOWN:] if each.number == 0]


def _shares(found: Found) -> list[tuple[str, str]]:
    return [(name, f"{share:.0%}") for name, share in found.importance.items()]


def search_notes(found: Found) -> list[str]:
    """Return what stands under the tables: what was found, what the numbers mean, and what died."""
    notes = [_verdict(found)]
    counts = [sum(each.outcome == kind for each in found.trials) for kind in ("done", "pruned", "died")]
    if found.importance:
        notes.append(
            "Importance: share of a setting in what sets the better trials apart (PED-ANOVA), of "
            f"{counts[0]} trials; with few it says little."
        )
    done, pruned, died = counts
    notes.append(
        f"{len(found.trials)} of {found.wanted} trials have ended: {done} done, {pruned} pruned, {died} died."
    )
    return notes + [
        f"Died: trial {each.number}: {each.error}" for each in found.trials if each.outcome == "died"
    ]


def _verdict(found: Found) -> str:
    better = "lower" if found.mode == "min" else "higher"
    best = found.best
    if best is None:
        return f"No trial has measured {found.metric}."
    value = f"{found.metric} {best.value:.4g} ({better} is better)"
    if best.number == 0:
        return f"Nothing better than the default was found: {value}."
    if found.gain is None:
        return f"Best: trial {best.number} with {value}; the default has no value to compare with."
    assert found.default is not None
    return (
        f"Best: trial {best.number} with {value}, better by {found.gain:.3g} than the default's "
        f"{found.default.value:.4g}; measured with one seed, on the data that it was chosen by."
    )


def search_tables(found: Found) -> list[Table]:
    """Return the tables for a terminal: of the best trials, and of the settings' importance."""
    tables = [_table(_HEADS, _rows(found, _best_trials(found)), right=2)]
    return tables + ([_table(_SHARES, _shares(found), right=0)] if found.importance else [])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for index, head in enumerate(heads):
        table.add_column(
            head, justify="right" if index < right or head == heads[-1] == "importance" else "left"
        )
    for cells in rows:
        table.add_row(*map(Text, cells))
    return table


def search_markdown(found: Found) -> str:
    """Return the tables, of all trials that are done, and the notes as Markdown."""
    lines = [f"# A search for better settings: {found.metric}\n", *_lines(_HEADS, _rows(found, found.ranked))]
    if found.importance:
        lines += ["", *_lines(_SHARES, _shares(found))]
    said = [f"{' '.join(note.replace('|', '/').split())}\n" for note in search_notes(found)]
    return "\n".join([*lines, "", *said])


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    shown = [heads, ["---"] * len(heads), *([cell.replace("|", "/") for cell in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in shown]


def draw_search(found: Found, path: str | os.PathLike[str]) -> None:
    """Draw values and importance as a PNG at ``path``.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed; names the extra to install.
        OSError: If the picture cannot be written.
    """
    both = bool(found.importance)
    with new_figure(path, width=9.0 if both else 6.0, height=3.6) as figure:
        panels = figure.subplots(1, 1 + both, squeeze=False, width_ratios=(1.8, 1.0) if both else (1.0,))[0]
        _draw_values(panels[0], found)
        if both:
            _draw_shares(panels[1], found)


def _draw_values(panel: Axes, found: Found) -> None:
    done = [each for each in found.trials if each.outcome == "done" and each.value is not None]
    pruned = [each for each in found.trials if each.outcome == "pruned" and each.value is not None]
    died = [each for each in found.trials if each.outcome == "died"]
    pick = min if found.mode == "min" else max
    if found.default is not None and found.default.outcome == "done" and found.default.value is not None:
        panel.axhline(found.default.value, color=GREY, linewidth=0.8, linestyle="--", label="the default")
    so_far = [pick(each.value or 0.0 for each in done[: index + 1]) for index in range(len(done))]
    if done:
        ends = [*(each.number for each in done), found.trials[-1].number]
        panel.step(ends, [*so_far, so_far[-1]], where="post", color=ORANGE, label="best so far")
    panel.plot(*_points(done), "o", color=BLUE, markersize=4, label="trial")
    if pruned:
        label = "pruned, its last value"
        panel.plot(*_points(pruned), "o", color=BLUE, markersize=4, fillstyle="none", label=label)
    for each in died:
        label = "died" if each is died[0] else "_"
        panel.axvline(each.number, ymax=0.04, color=RED, linewidth=2.0, label=label)
    better = "lower" if found.mode == "min" else "higher"
    panel.set_xlabel("trial")
    panel.set_ylabel(f"{found.metric} ({better} is better)")
    panel.locator_params(axis="x", integer=True)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, frameon=False)


def _points(trials: Sequence[Tried]) -> tuple[list[int], list[float]]:
    return [each.number for each in trials], [each.value or 0.0 for each in trials]


def _draw_shares(panel: Axes, found: Found) -> None:
    names, shares = list(found.importance), list(found.importance.values())
    panel.barh(range(len(names)), shares, color=BLUE, alpha=0.75, height=0.6)
    panel.set_yticks(range(len(names)), [name.removeprefix("model.init_args.") for name in names], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlim(0.0, 1.0)
    panel.set_xlabel("importance")
    panel.grid(alpha=0.3, axis="x")
    panel.set_axisbelow(True)


def log_search(group: WandbGroup, found: Found, picture: str | os.PathLike[str]) -> None:
    """Log what came of the trials as a run of their group, with a picture of it."""
    shares = {f"importance/{name}": share for name, share in found.importance.items()}
    best = {} if found.best is None else {"best": found.best.value, "gain": found.gain}
    config, rows = {"metric": found.metric, "mode": found.mode}, [_HEADS, *_rows(found, found.ranked)]
    group.conclude("search", config, shown="trials", rows=rows, picture=picture, summary={**best, **shares})
