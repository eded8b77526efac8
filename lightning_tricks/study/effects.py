"""What each technique brought and what it cost, from the trials of an ablation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning_tricks.study.arms import Names, arms_of
from lightning_tricks.study.bootstrap import Estimate, paired_effect

__all__ = ["TOGETHER", "Cost", "Effect", "Effects", "Outcome"]

TOGETHER = "all together"


@dataclass(frozen=True)
class Outcome:
    """What came of one trial.

    Attributes:
        arm: What its arm is called.
        names: The techniques that it had.
        seed: Its seed.
        result: What was measured, or ``None``.
        error: Why nothing was.
    """

    arm: str
    names: Names
    seed: int
    result: Mapping[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Cost:
    """What a technique costs, against the trials of the same seeds without any.

    Attributes:
        step: The time of a step with it, by that without; the median over seeds.
        step_low: The least.
        step_high: The greatest.
        memory_mib: More memory than without, in MiB, the median over seeds; None where it was not measured.
    """

    step: float
    step_low: float
    step_high: float
    memory_mib: float | None


@dataclass(frozen=True)
class Effect:
    """What one technique brings, in the unit of the metric; above 0, it helps.

    Attributes:
        name: Of the technique, or :data:`TOGETHER`.
        alone: Added to a training without any.
        among: Added to all the others.
        cost: Alone.
    """

    name: str
    alone: Estimate | None
    among: Estimate | None
    cost: Cost | None


@dataclass(frozen=True)
class Effects:
    """The result of an ablation.

    Attributes:
        metric: What was measured in validation.
        mode: Whether less of it is better, ``"min"``, or more, ``"max"``.
        names: Of the techniques.
        outcomes: Of all trials that ended.
        wanted: How many trials there are.
    """

    metric: str
    mode: Literal["min", "max"]
    names: Names
    outcomes: tuple[Outcome, ...]
    wanted: int

    @property
    def rows(self) -> list[Effect]:
        """The effect of all techniques together, and that of each."""
        whole = Effect(TOGETHER, self._gain(self.names, ()), None, self._cost(self.names))
        return [whole, *(self._of(name) for name in self.names)] if len(self.names) > 1 else [self._only()]

    def _only(self) -> Effect:
        (name,) = self.names
        return Effect(name, self._gain(self.names, ()), None, self._cost(self.names))

    def _of(self, name: str) -> Effect:
        alone, others = arms_of(self.names, name)
        return Effect(name, self._gain(alone, ()), self._gain(self.names, others), self._cost(alone))

    @property
    def dead(self) -> list[Outcome]:
        """The trials that died."""
        return [outcome for outcome in self.outcomes if outcome.result is None]

    def values(self, names: Names) -> dict[int, float]:
        """Return the metric of the arm with ``names``, by seed."""
        return {seed: result["value"] for seed, result in self._results(names).items()}

    def _results(self, names: Names) -> dict[int, Mapping[str, Any]]:
        return {o.seed: o.result for o in self.outcomes if o.names == names and o.result is not None}

    def _pairs(self, names: Names, others: Names) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        with_, without = self._results(names), self._results(others)
        return [(with_[seed], without[seed]) for seed in sorted(with_.keys() & without.keys())]

    def _gain(self, names: Names, others: Names) -> Estimate | None:
        pairs = self._pairs(names, others)
        if not pairs:
            return None
        sign = 1.0 if self.mode == "max" else -1.0
        values = [(sign * a["value"], sign * b["value"]) for a, b in pairs]
        # Metrics are rounded to single precision: what differs by that is the same.
        near = [(a, a if math.isclose(a, b, rel_tol=1e-6) else b) for a, b in values]
        return paired_effect([a for a, _ in near], [b for _, b in near])

    def _cost(self, names: Names) -> Cost | None:
        # Of trials on unlike machines a difference would be that of the machines.
        pairs = [
            (a, b) for a, b in self._pairs(names, ()) if (a["host"], a["device"]) == (b["host"], b["device"])
        ]
        ratios = [a["step_ms"] / b["step_ms"] for a, b in pairs if "step_ms" in a and "step_ms" in b]
        if not ratios:
            return None
        more = [
            a["memory_mib"] - b["memory_mib"] for a, b in pairs if "memory_mib" in a and "memory_mib" in b
        ]
        memory = statistics.median(more) if more else None
        return Cost(statistics.median(ratios), min(ratios), max(ratios), memory)

    def plain(self) -> dict[str, Any]:
        """Return effects and trials as plain values."""
        return {
            "metric": self.metric,
            "mode": self.mode,
            "wanted": self.wanted,
            "effects": [_finite(asdict(row)) for row in self.rows],
            "trials": [asdict(outcome) for outcome in self.outcomes],
        }


def _finite(values: Any) -> Any:
    """Return ``values`` with None for NaN, which JSON does not know."""
    if isinstance(values, dict):
        return {key: _finite(each) for key, each in values.items()}
    return None if values != values else values
