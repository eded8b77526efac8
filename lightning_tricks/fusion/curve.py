"""The curve of a metric along the straight line between models, and the barrier on it.

    L(t) = loss((1 - t) theta_1 + t theta_2),    0 <= t <= 1
    barrier = max over t of L(t) - ((1 - t) L(0) + t L(1))

Without a barrier both models lie in one basin, and what is fused from them works; where it is high, their
mean is worse than both.

Reference: Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis", 2020,
https://arxiv.org/abs/1912.05671; the barrier as Entezari et al., "The Role of Permutation Invariance in
Linear Mode Connectivity of Neural Networks", 2022, https://arxiv.org/abs/2110.06296.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from os import PathLike
from typing import Any, Literal

from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.fusion.average import Average
from lightning_tricks.fusion.fuse import Fusion
from lightning_tricks.fusion.interpolate import Interpolate
from lightning_tricks.fusion.plan import Matching
from lightning_tricks.lifecycle.figures import BLUE, GREY, new_figure
from lightning_tricks.lifecycle.opening import Readable, Reading

__all__ = ["Curve", "along", "barrier", "check_points", "draw_curve", "interpolation_curve"]

Mode = Literal["min", "max"]


def barrier(values: Sequence[float], *, mode: Mode = "min") -> float:
    """Return how much worse a curve gets than the straight line between its ends, at least 0.

    Args:
        values: At points of equal distance, two at least.
        mode: Whether lower values are better, ``"min"``, or higher ones, ``"max"``.

    Returns:
        In the unit of the values; NaN if one of them is none, or an end is infinite.

    Example:
        >>> barrier([1.0, 4.0, 3.0])
        2.0
    """
    last, sign = len(values) - 1, 1.0 if mode == "min" else -1.0
    straight = [((last - i) * values[0] + i * values[-1]) / last for i in range(len(values))]
    rises = [0.0, *(sign * (value - line) for value, line in zip(values, straight, strict=True))]
    return math.nan if any(map(math.isnan, rises)) else max(rises)


@dataclass(frozen=True)
class Curve:
    """A metric along the lines from one model to the next.

    Attributes:
        positions: 0 is the first model, 1 the second and so on; between them, the share of the later one.
        values: The metric there.
        barriers: For each line between two models, how much worse it gets than a straight one
            (:func:`barrier`).
    """

    positions: tuple[float, ...]
    values: tuple[float, ...]
    barriers: tuple[float, ...]

    @property
    def barrier(self) -> float:
        """The highest barrier; NaN if one of them is."""
        return math.nan if any(map(math.isnan, self.barriers)) else max(self.barriers)

    def plain(self) -> dict[str, list[float]]:
        """Return it as plain values."""
        return {name: list(values) for name, values in vars(self).items()}


def along(models: int, points: int, measure: Callable[[int, float], float], *, mode: Mode) -> Curve:
    """Measure each line from one of several models to the next.

    Args:
        models: How many there are.
        points: How many points a line has, both ends included.
        measure: Gets the index of a model and the share of the next, below 1; of the last it is 0.
        mode: As in :func:`barrier`.
    """
    steps = points - 1
    places = [(index, step / steps) for index in range(models - 1) for step in range(steps)]
    values = [measure(index, share) for index, share in [*places, (models - 1, 0.0)]]
    lines = [values[start : start + points] for start in range(0, len(values) - 1, steps)]
    positions = (*(index + share for index, share in places), float(models - 1))
    return Curve(positions, tuple(values), tuple(barrier(line, mode=mode) for line in lines))


def check_points(name: str, value: object) -> int:
    """Return a number of points that a line can have.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If there is none between the ends.
    """
    return checks.whole(name, value, 3)


def interpolation_curve(  # noqa: PLR0913  # settings
    models: Sequence[Readable],
    evaluate: Callable[[dict[str, Any]], float | Tensor],
    *,
    points: int = 11,
    mode: Mode = "min",
    which: Literal["state_dict", "live", "average"] = "state_dict",
    prefix: str = "",
    allow_pickle: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Curve:
    """Measure the straight line from each model to the next, one fused model in memory at a time.

    Args:
        models: At least two, as :func:`~lightning_tricks.fuse` takes them.
        evaluate: Gets a state dict, returns the loss or another metric; such as a function that loads it
            into a module and calls ``trainer.validate``. For a network with BatchNorm it should also estimate
            the statistics anew, or much of the barrier is theirs.
        points: How many points each line has, its ends included; at least 3.
        mode: ``"min"`` if less is better, as of a loss; ``"max"`` as of an accuracy.
        which: As in :func:`~lightning_tricks.fuse`, as for all below.
        prefix: Of names.
        allow_pickle: Whether files may hold more than tensors and plain values.
        progress: Is told of how many points are measured, and how many will be.

    Returns:
        The positions, the values there, and the barrier of each line.

    Raises:
        FileNotFoundError: If a model is not there.
        TypeError: If ``evaluate`` returns no number.
        ValueError: If the models do not fit one another, or are fewer than two.

    Example:
        >>> from torch import tensor
        >>> models = [{"w": tensor(0.0)}, {"w": tensor(4.0)}]
        >>> interpolation_curve(models, lambda model: float(model["w"] - 1) ** 2, points=3)
        Curve(positions=(0.0, 0.5, 1.0), values=(1.0, 1.0, 9.0), barriers=(0.0,))
    """
    check_points("points", points)
    checks.one_of("mode", mode, ("min", "max"))
    if isinstance(models, str | PathLike) or len(models) < 2:
        raise ValueError(f"models must be at least 2 to lie on a line, got {models!r:.80}")
    reading, matching = Reading(which, checks.flag("allow_pickle", allow_pickle)), Matching(prefix)
    with Fusion(models=models, method=Average(), reading=reading, matching=matching).opened():
        pass  # that they fit one another is known before the first is measured
    total, done = (len(models) - 1) * (points - 1) + 1, 0

    def measure(index: int, share: float) -> float:
        nonlocal done
        # The model itself where it is met, for integers come from the last of those that are fused.
        chosen = models[index : index + 2] if share else models[index : index + 1]
        method = Interpolate(1.0 - share) if share else Average()
        with Fusion(models=chosen, method=method, reading=reading, matching=matching).opened() as found:
            value = _number(evaluate(found.returned()))
        done += 1
        if progress is not None:
            progress(done, total)
        return value

    return along(len(models), points, measure, mode=mode)


def _number(value: object) -> float:
    if isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1):
        return float(value)
    raise TypeError(f"evaluate must return a number for a curve, got {value!r:.80}")


def draw_curve(curve: Curve, path: str | PathLike[str], *, axes: tuple[str, str]) -> None:
    """Draw ``curve``, with the straight lines above which barriers rise, as a PNG at ``path``.

    Args:
        curve: What is drawn.
        path: Where to.
        axes: What the models are, which stand there by their numbers, and the values.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed; names the extra to install.
        OSError: If the picture cannot be written.
    """
    lines = len(curve.barriers)
    steps = (len(curve.values) - 1) // lines
    ends = curve.positions[::steps], curve.values[::steps]
    with new_figure(path, width=max(6.0, 1.3 * (lines + 1)), height=3.8) as figure:
        panel = figure.subplots()
        panel.plot(*ends, "--", color=GREY, label="without a barrier")
        panel.plot(curve.positions, curve.values, "o-", color=BLUE, markersize=4, label="measured")
        panel.set_xticks(range(lines + 1))
        panel.set_xlabel(axes[0])
        panel.set_ylabel(axes[1])
        panel.set_title(f"barrier {curve.barrier:.4g}")
        panel.legend()
