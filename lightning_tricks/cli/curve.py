"""``lightning-tricks fuse --curve``: a loss along the line between models, as table, JSON and picture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from lightning_tricks.cli.fuse_settings import Asked
from lightning_tricks.cli.refusal import RefusedError
from lightning_tricks.core.extras import extra
from lightning_tricks.fusion.curve import Curve, draw_curve, interpolation_curve
from lightning_tricks.lifecycle.table import text_table

__all__ = ["run_curve"]


def run_curve(task: Asked, evaluate: Callable[..., Any]) -> None:
    """Measure and show what ``task`` asks for.

    Raises:
        ModuleNotFoundError: If a picture is asked for and matplotlib is not installed.
        OSError: If a file cannot be read or written.
        RefusedError: If the models do not fit, or ``evaluate`` returns no number.
    """
    if task.png is not None:
        with extra("plots"):
            import matplotlib.figure  # noqa: F401  # found missing now, and not when all is measured
    curve = _measured(task, evaluate)
    metric = getattr(evaluate, "__name__", "metric")
    if task.png is not None:
        models = "\n".join(f"{index} is {Path(model).name}" for index, model in enumerate(task.models))
        draw_curve(curve, task.png, axes=(models, metric))
    if task.json:
        print(json.dumps({"models": task.models, **_plain(curve.plain()), "png": task.png}))
        return
    print(_table(curve, task, metric))
    if task.png is not None:
        print(f"written: {task.png}")


def _measured(task: Asked, evaluate: Callable[..., Any]) -> Curve:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=task.json or not console.is_terminal) as bar:
        advance = bar.add_task("points")
        try:
            return interpolation_curve(
                task.models,
                evaluate,
                points=task.points,
                which=task.which,  # type: ignore[arg-type]  # it checks that
                prefix=task.prefix,
                allow_pickle=task.allow_pickle,
                progress=lambda done, total: bar.update(advance, completed=done, total=total),
            )
        except (TypeError, ValueError) as error:
            raise RefusedError(str(error)) from error


def _plain(values: dict[str, list[float]]) -> dict[str, list[float | None]]:
    # JSON knows neither NaN nor infinities.
    return {name: [each if math.isfinite(each) else None for each in found] for name, found in values.items()}


def _table(curve: Curve, task: Asked, metric: str) -> str:
    pairs = zip(pairwise(task.models), curve.barriers, strict=True)
    lines = [f"barrier {height:.6g} between {first} and {second}" for (first, second), height in pairs]
    rows = [(f"{at:g}", f"{value:.6g}") for at, value in zip(curve.positions, curve.values, strict=True)]
    title = f"{metric} along the line; {', '.join(f'{i} is {name}' for i, name in enumerate(task.models))}"
    return "\n".join([text_table(title, {"position": "right", metric: "right"}, rows), *lines])
