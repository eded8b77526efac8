"""Rates of newly opened stages, which rise from their opening on.

    m(k) = (k + 1) / (w + 1)    k < w
    m(k) = 1                    k >= w

``k`` counts optimizer steps from the opening, from 0, and ``w`` is the length of the warm-up in steps. An
optimizer such as Adam knows nothing of gradients yet that it has never seen: its first steps are full-sized
whatever the gradients are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from lightning_tricks.core.duration import Duration

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lightning_tricks.lifecycle.technique import Technique

__all__ = ["Rewarming", "rewarmed"]


def rewarmed(steps: int, length: int) -> float:
    """Return the multiplier m of a rate, ``steps`` after the opening, if the warm-up takes ``length`` steps.

    Example:
        >>> [rewarmed(steps, 3) for steps in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (steps + 1) / (length + 1))


class Rewarming:
    """The rates of stages that open within a run; a closed one waits at the first rate that it will have."""

    def __init__(self, length: Duration | None = None) -> None:
        """Let each rise over ``length``; without it, or if that is 0, none."""
        self._length = length if length and length.amount else None
        self._among: list[frozenset[int]] = []
        self._spans: dict[int, tuple[int, int]] = {}
        self._rising: set[int] = set()

    def __bool__(self) -> bool:
        return self._length is not None

    def begin(
        self,
        technique: Technique,
        trainer: Trainer,
        stages: Sequence[Mapping[str, nn.Parameter]],
        opened: int,
    ) -> None:
        """Set the rates of ``stages``, of which the first ``opened`` are open, at the start of a run."""
        self._among = [frozenset(map(id, stage.values())) for stage in stages]
        if self._length is None:
            return
        self._rising = set(self._spans)
        self.advance(technique, trainer)
        for stage in range(opened, len(stages)):
            self._scale(technique, trainer, stage, rewarmed(0, self._steps(technique)))

    def _steps(self, technique: Technique) -> int:
        """Return the steps of a warm-up that begins now."""
        assert self._length is not None
        clock = technique.clock
        return clock.horizon.end(clock.position, self._length) - clock.position

    def _scale(self, technique: Technique, trainer: Trainer, stage: int, factor: float) -> None:
        owner = f"{technique.state_key} {stage + 1}"
        technique.conductor.rates.scale(trainer, owner, factor, among=self._among[stage])

    def open(self, technique: Technique, trainer: Trainer, stages: Iterable[int]) -> None:
        """Let the rates of ``stages``, which open now, begin to rise."""
        if self._length is not None:
            begun = technique.clock.position, self._steps(technique)
            self._spans |= dict.fromkeys(stages, begun)
            self._rising |= set(stages)
            self.advance(technique, trainer)

    def advance(self, technique: Technique, trainer: Trainer) -> None:
        """Set the rates of the step to come."""
        for stage in sorted(self._rising):
            begun, length = self._spans[stage]
            passed = technique.clock.position - begun
            self._scale(technique, trainer, stage, rewarmed(passed, length))
            if passed >= length:
                self._rising.remove(stage)

    def saved(self) -> list[list[int]]:
        """Return of each stage that has begun to rise its index, at which step, and over how many."""
        return [[stage, *span] for stage, span in self._spans.items()]

    def restore(self, state: Iterable[Sequence[int]]) -> None:
        """Take them back; what has begun keeps its length."""
        self._spans = {stage: (begun, length) for stage, begun, length in state}
