"""``lightning-tricks ema``: averages of any length of a run with ``PostHocEMA``, written and measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from lightning_tricks.averaging.lengths import Evaluate, Length, draw_lengths, metrics_of
from lightning_tricks.averaging.synthesis import Synthesis
from lightning_tricks.averaging.trajectory import Trajectory
from lightning_tricks.cli.named_objects import function_named
from lightning_tricks.cli.refusal import RefusedError
from lightning_tricks.core import checks
from lightning_tricks.core.extras import extra
from lightning_tricks.lifecycle import files
from lightning_tricks.lifecycle.checkpoints import without_training
from lightning_tricks.lifecycle.export import write_state
from lightning_tricks.lifecycle.table import text_table

__all__ = ["Order", "carry_out"]


@dataclass(frozen=True)
class Order:
    """What to put together, checked as far as can be before any tensor is read.

    Raises:
        OSError: If the snapshots are not there, or the output is.
        TypeError: If a setting is of another type.
        ValueError: If the snapshots cannot give a width, or a setting is wrong.
    """

    folder: str
    sigma_rel: str = "0.05,0.1,0.15"
    step: int | None = None
    output: str | None = None
    format: str = "ckpt"
    evaluate: str | None = None
    png: str | None = None
    dry_run: bool = False
    force: bool = False
    json: bool = False
    trajectory: Trajectory = field(init=False)
    plans: list[Synthesis] = field(init=False)
    paths: list[Path | None] = field(init=False)
    function: Evaluate | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Check the settings, read the index and fit the profiles."""
        checks.one_of("format", self.format, ("ckpt", "safetensors"))
        widths = _widths(self.sigma_rel)
        set_ = partial(object.__setattr__, self)
        set_("trajectory", Trajectory.read(self.folder))
        set_("plans", [Synthesis.of(self.trajectory, sigma_rel=each, step=self.step) for each in widths])
        output = self.output if self.output or self.evaluate else self.folder
        paths = [None if output is None else Path(output) / f"ema-{w:g}.{self.format}" for w in widths]
        set_("paths", paths)
        for path in filter(None, paths):
            files.check_new(path, overwrite=self.force)
        if self.png is not None:
            if self.evaluate is None:
                raise ValueError(f"png must be left out without --evaluate, got {self.png!r}")
            with extra("plots"):
                import matplotlib.figure  # noqa: F401  # found missing now, and not when all is measured
        if self.evaluate is not None:
            set_("function", function_named("evaluate", self.evaluate))


def _widths(text: str) -> list[float]:
    try:
        widths = [float(each) for each in text.split(",")]
    except ValueError:
        raise ValueError(f"sigma-rel must be numbers such as 0.05,0.1, got {text!r}") from None
    if len(set(widths)) < len(widths):
        raise ValueError(f"sigma-rel must name each width once, got {text!r}")
    return widths


def carry_out(order: Order) -> None:
    """Put the averages together, write and measure them, and print tables or JSON."""
    rows = [Length(plan.sigma_rel, plan.gamma, plan.error, {}) for plan in order.plans]
    if not order.dry_run:
        with _progress(order.plans) as advance:
            rows = [
                _one(order, plan, path, advance) for plan, path in zip(order.plans, order.paths, strict=True)
            ]
        if order.png is not None:
            draw_lengths(rows, order.png, title=f"{order.trajectory.folder}, step {order.plans[0].step}")
    print(json.dumps(_as_json(order, rows), indent=1) if order.json else _as_text(order, rows))


def _one(order: Order, plan: Synthesis, path: Path | None, advance: Callable[[], None]) -> Length:
    state: dict[str, Tensor] = {}
    for name, value in plan.tensors():
        state[name] = value
        advance()
    if path is not None:
        about = {"sigma_rel": plan.sigma_rel, "gamma": plan.gamma, "step": plan.step, "error": plan.error}
        write_state(state, path, {**_beside(order.trajectory.folder.parent, state), "post_hoc_ema": about})
    metrics = {} if order.function is None else _metrics(order.function, state)
    return Length(plan.sigma_rel, plan.gamma, plan.error, metrics)


def _metrics(function: Evaluate, state: dict[str, Tensor]) -> dict[str, float]:
    found = function(state)  # whose own errors keep their traceback
    try:
        return metrics_of(function, found)
    except TypeError as error:
        raise RefusedError(str(error)) from error


def _beside(folder: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a checkpoint in ``folder`` of the same module holds beside, such as hyperparameters."""
    found = [path for path in folder.glob("*.ckpt") if path.is_file()]
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            checkpoint = files.load(path)
        except ValueError:
            continue  # it holds more than plain values, which cannot be trusted
        if checkpoint.get("state_dict", {}).keys() == state.keys():
            return without_training(checkpoint)
    return {"pytorch-lightning_version": lightning.__version__}


@contextmanager
def _progress(plans: list[Synthesis]) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("tensors", total=sum(len(plan.names) for plan in plans))
        yield partial(bar.advance, task)


def _as_json(order: Order, rows: list[Length]) -> dict[str, Any]:
    return {
        "folder": str(order.trajectory.folder),
        "snapshots": [
            {
                "file": moment.name,
                "step": moment.updates,
                "gammas": list(moment.gammas),
                "every": moment.every,
            }
            for moment in order.trajectory.moments
        ],
        "step": order.plans[0].step,
        "averages": [
            {**vars(row), "file": None if path is None else str(path)}
            for row, path in zip(rows, order.paths, strict=True)
        ],
        "dry_run": order.dry_run,
        "png": None if order.dry_run else order.png,
    }


def _as_text(order: Order, rows: list[Length]) -> str:
    moments = order.trajectory.moments
    powers = ", ".join(f"{gamma:g}" for gamma in moments[-1].gammas)
    title = f"{len(moments)} snapshots in {order.trajectory.folder}, gammas {powers}"
    parts = []
    if order.dry_run:
        each = [(moment.name, str(moment.updates), str(moment.every)) for moment in moments]
        parts.append(text_table(title, {"file": "left", "step": "right", "every": "right"}, each))
        title = "What would be put together"
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    written = any(path is not None for path in order.paths)
    table = [
        (
            f"{row.sigma_rel:g}",
            f"{row.gamma:.2f}",
            f"{row.error:.2%}",
            *(f"{row.metrics[name]:.6g}" if name in row.metrics else "" for name in names),
            *([str(path)] if written else []),
        )
        for row, path in zip(rows, order.paths, strict=True)
    ]
    columns: dict[str, Literal["left", "right"]] = dict.fromkeys(
        ("sigma_rel", "gamma", "error", *names), "right"
    )
    if written:
        columns["file"] = "left"
    parts.append(text_table(title, columns, table))
    if order.png is not None and not order.dry_run:
        parts.append(f"written: {order.png}")
    return "\n\n".join(parts)
