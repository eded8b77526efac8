"""What a run was like so far, window by window, in bounded space; and how steadily a sequence falls.

    trend     slope of the least-squares line through y_0 ... y_(n-1), per position
    t         slope / its standard error;  below -3 a fall is hardly chance

Reference: Draper and Smith, "Applied Regression Analysis", 3rd edition, 1998, sections 1.2 and 1.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

__all__ = ["History", "Validation", "Window", "trend"]

_MOST = 256  # windows; more are joined in pairs


class Window(NamedTuple):
    """Some steps of a run, one after another.

    Attributes:
        step: Optimizer steps attempted at its end.
        loss: Mean of the training loss.
        spread: Standard deviation of the training loss from step to step.
        rate: Learning rate of the first group, as a share of the highest that the run has had, in [0, 1].
        update: Median over layers of ``||w' - w|| / ||w||`` at its last step.
        gradient: Norm of all gradients there.
    """

    step: int
    loss: float
    spread: float
    rate: float
    update: float
    gradient: float


class Validation(NamedTuple):
    """A validation.

    Attributes:
        step: Optimizer steps attempted before it.
        epoch: Epochs that had begun, from 1.
        value: The loss that it measured.
        training: The training loss of the windows since the one before.
    """

    step: int
    epoch: int
    value: float
    training: float


@dataclass
class History:
    """Windows and validations of a run.

    Attributes:
        windows: In order; as many as :data:`_MOST` or fewer.
        validations: In order.
        total: Optimizer steps of the run; ``None`` if nobody knows.
    """

    windows: list[Window]
    validations: list[Validation]
    total: int | None = None

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> Self:
        """Return the history that :meth:`saved` wrote."""
        windows = [Window(*each) for each in saved["windows"]]
        return cls(windows, [Validation(*each) for each in saved["validations"]], saved["total"])

    def saved(self) -> dict[str, Any]:
        """Return plain values."""
        plain = asdict(self)
        for name in ("windows", "validations"):
            plain[name] = [list(each) for each in getattr(self, name)]
        return plain

    def add(self, window: Window) -> None:
        """Add a window; where there are too many, join the older ones in pairs."""
        self.windows.append(window)
        if len(self.windows) > _MOST:
            pairs = zip(self.windows[::2], self.windows[1::2], strict=False)
            self.windows = [_joined(*pair) for pair in pairs] + self.windows[len(self.windows) // 2 * 2 :]

    @property
    def losses(self) -> list[float]:
        """The training loss of each window."""
        return [window.loss for window in self.windows]


def _joined(first: Window, second: Window) -> Window:
    spread = math.hypot(first.spread, second.spread) / math.sqrt(2)
    return second._replace(loss=(first.loss + second.loss) / 2, spread=spread)


def trend(values: Sequence[float]) -> tuple[float, float]:
    """Return the slope per position of ``values``, and that over its standard error.

    Args:
        values: At least three, in order.

    Example:
        >>> slope, t = trend([3.0, 2.1, 0.9, 0.0])
        >>> round(slope, 2), t < -3
        (-1.02, True)
        >>> trend([1.0, 1.0, 1.0])
        (0.0, 0.0)
    """
    n, middle = len(values), (len(values) - 1) / 2
    mean = math.fsum(values) / n
    square = n * (n * n - 1) / 12
    slope = math.fsum((i - middle) * (value - mean) for i, value in enumerate(values)) / square
    rest = math.fsum((value - mean - slope * (i - middle)) ** 2 for i, value in enumerate(values))
    error = math.sqrt(rest / (n - 2) / square)
    if slope == 0.0:
        return 0.0, 0.0
    return slope, slope / error if error else math.copysign(math.inf, slope)
