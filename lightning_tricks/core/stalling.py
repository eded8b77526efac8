"""Whether a metric has stopped improving: counted value by value.

    improved   value < best - min_delta   (mode "min"),   value > best + min_delta   (mode "max")
    bad        0 after an improvement, else one more; NaN never improves

``min_delta`` has the metric's own unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from lightning_tricks.core import checks

__all__ = ["MODES", "check_stalling", "observed", "unseen"]

MODES = ("min", "max")


def check_stalling(monitor: str, patience: int, min_delta: float, mode: str) -> None:
    """Check the settings of what waits for a metric to stall.

    Raises:
        TypeError: If one is of another type.
        ValueError: If one is out of its range.
    """
    checks.text("monitor", monitor)
    checks.whole("patience", patience, 1)
    checks.in_range("min_delta", min_delta, 0.0, open_high=True)
    checks.one_of("mode", mode, MODES)


def unseen(mode: str) -> dict[str, float]:
    """Return the state before the first value."""
    return {"best": math.inf if mode == "min" else -math.inf, "bad": 0}


def observed(state: Mapping[str, float], value: float, *, min_delta: float, mode: str) -> dict[str, float]:
    """Return the state after one more ``value``; what else ``state`` holds stays.

    Args:
        state: The best value as ``"best"``, and how many in a row did not beat it as ``"bad"``.
        value: The value.
        min_delta: By how much it must beat the best, at least 0.
        mode: ``"min"`` where lower is better, else ``"max"``.

    Example:
        >>> observed({"best": 0.5, "bad": 3}, 0.6, min_delta=0.0, mode="min")
        {'best': 0.5, 'bad': 4}
    """
    best = state["best"]
    improved = value < best - min_delta if mode == "min" else value > best + min_delta
    return {**state, **({"best": value, "bad": 0} if improved else {"bad": state["bad"] + 1})}
