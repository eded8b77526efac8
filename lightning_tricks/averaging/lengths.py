"""How good averages of several lengths are: a row for each, and a picture of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from os import PathLike
from typing import Any

from torch import Tensor

from lightning_tricks.averaging.synthesis import Synthesis
from lightning_tricks.averaging.trajectory import Trajectory
from lightning_tricks.core.extras import extra
from lightning_tricks.lifecycle.figures import BLUE, new_figure

__all__ = ["Length", "draw_lengths", "evaluate_lengths", "measured", "metrics_of"]

Evaluate = Callable[[dict[str, Tensor]], float | Mapping[str, float]]


@dataclass(frozen=True)
class Length:
    """An average of one length, measured.

    Attributes:
        sigma_rel: Its relative width.
        gamma: The power of its profile.
        error: How far its profile is from that of this power, as a share of the norm.
        metrics: What the evaluation returned, by name.
    """

    sigma_rel: float
    gamma: float
    error: float
    metrics: dict[str, float]


def evaluate_lengths(
    path: str | PathLike[str],
    evaluate: Evaluate,
    *,
    sigma_rels: Sequence[float] = (0.05, 0.075, 0.1, 0.125, 0.15, 0.2),
    step: int | None = None,
    png: str | PathLike[str] | None = None,
) -> list[Length]:
    """Measure averages of several lengths of a run with ``PostHocEMA``, one model at a time.

    Args:
        path: As :func:`~lightning_tricks.synthesize_ema` takes it.
        evaluate: Gets a state dict and returns a number, or numbers by name; such as a function that loads it
            into a module and calls ``trainer.validate``. For a network with BatchNorm it should also estimate
            the statistics anew.
        sigma_rels: Relative widths, at least one.
        step: At which snapshot; ``None`` for the last.
        png: Where a picture of the metrics over the lengths is written, for which the extra ``plots`` must
            be installed; ``None`` for none.

    Returns:
        One for each of ``sigma_rels``, in their order.

    Raises:
        FileNotFoundError: As :func:`~lightning_tricks.synthesize_ema`, before anything is measured.
        ModuleNotFoundError: If a picture is asked for, but matplotlib is not installed.
        TypeError: If ``evaluate`` returns something else.
        ValueError: As the first, likewise before, or if there are no ``sigma_rels``.
    """
    if png is not None:
        with extra("plots"):
            import matplotlib.figure  # noqa: F401  # missing, it is told before anything is measured
    trajectory = Trajectory.read(path)
    plans = [Synthesis.of(trajectory, sigma_rel=sigma_rel, step=step) for sigma_rel in sigma_rels]
    if not plans:
        raise ValueError(f"sigma_rels must hold at least one, got {sigma_rels!r}")
    from rich.console import Console
    from rich.progress import track

    rows = []
    console = Console(stderr=True)
    for plan in track(plans, "lengths", console=console, disable=not sys.stderr.isatty(), transient=True):
        metrics = measured(evaluate, dict(plan.tensors()))
        rows.append(Length(plan.sigma_rel, plan.gamma, plan.error, metrics))
    if png is not None:
        draw_lengths(rows, png, title=f"{trajectory.folder}, step {plans[0].step}")
    return rows


def measured(evaluate: Evaluate, state: dict[str, Tensor]) -> dict[str, float]:
    """Return what ``evaluate`` says of ``state``; one number by the function's name.

    Raises:
        TypeError: If it is neither a number nor numbers by name.
    """
    return metrics_of(evaluate, evaluate(state))


def metrics_of(evaluate: Evaluate, found: Any) -> dict[str, float]:
    """Return by name what ``evaluate`` has returned; one number by the function's name.

    Raises:
        TypeError: As :func:`measured`.
    """
    if not isinstance(found, Mapping):
        found = {getattr(evaluate, "__name__", "metric"): found}
    for name, value in found.items():
        if not (isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)):
            raise TypeError(f"evaluate must return a number, or numbers by name, got {name}: {value!r}")
    return {str(name): float(value) for name, value in found.items()}


def draw_lengths(rows: Sequence[Length], path: str | PathLike[str], *, title: str) -> None:
    """Draw each metric of ``rows`` over the relative width, as a PNG at ``path``.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed; names the extra to install.
        OSError: If the picture cannot be written.
    """
    ordered = sorted(rows, key=lambda row: row.sigma_rel)
    names = list(dict.fromkeys(name for row in ordered for name in row.metrics))
    with new_figure(path, width=6.5, height=1.2 + 2.6 * len(names)) as figure:
        figure.suptitle(title, fontsize=9)
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(panels, names, strict=True):
            held = [row for row in ordered if name in row.metrics]
            axes.plot([row.sigma_rel for row in held], [row.metrics[name] for row in held], "o-", color=BLUE)
            axes.set_ylabel(name)
        panels[-1].set_xlabel("length of the average: relative width sigma_rel")
