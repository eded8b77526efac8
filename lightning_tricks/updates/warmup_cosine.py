"""Warm-up and cosine annealing of the learning rate, over the whole run.

    m(t) = (t + 1) / (w + 1)                                        t < w, shape "linear"
    m(t) = m_0 (1 / m_0) ** (t / w),   m_0 = 0.01                   t < w, shape "exponential"
    m(t) = final + (1 - final) (1 + cos(pi (t - w) / (T - w))) / 2  w <= t < T
    m(t) = final                                                    t >= T

``t`` counts optimizer steps from 0, ``w`` is the length of the warm-up and ``T`` that of the run, in
optimizer steps. The rate of each parameter group is m(t) times the group's own base rate.

References: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017,
https://arxiv.org/abs/1608.03983; Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour",
2017, https://arxiv.org/abs/1706.02677.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, final

from lightning_tricks.core import checks
from lightning_tricks.core.duration import as_duration
from lightning_tricks.core.schedule import Schedule
from lightning_tricks.core.shapes import WARMUP_SHAPES, cosine, warmup
from lightning_tricks.lifecycle.notice import warn
from lightning_tricks.lifecycle.rates import check_rates
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.updates.following import Following

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["WarmupCosine", "warmup_cosine"]


def warmup_cosine(over: int | str, *, shape: str, final: float) -> Schedule:
    """Return the multiplier m(t) as a schedule.

    Args:
        over: Length of the warm-up in optimizer steps, epochs or percent.
        shape: ``"linear"`` or ``"exponential"``.
        final: Share of the base rate at the end of the run.

    Example:
        >>> from lightning_tricks.core.duration import Horizon
        >>> course = warmup_cosine(1, shape="linear", final=0.0).resolve(Horizon(total=5))
        >>> [round(course(step), 3) for step in range(7)]
        [0.5, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    return warmup(over, shape=shape) >> cosine(to=final)


@final
@dataclass(eq=False, repr=False, kw_only=True)
class WarmupCosine(Technique):
    """Warm the learning rate up, then anneal it along half a cosine (:func:`warmup_cosine`).

    It counts optimizer steps of the whole run, for every parameter group, and is short for
    ``LearningRate(schedule="warmup('5%') >> cosine()")``.

    * **When** after each optimizer step, never after a micro-batch; the first rate is set before the first
      batch. Needs no change to ``configure_optimizers``. In manual optimization a batch counts once, if it
      steps.
    * **Changes** ``lr`` of every parameter group of every optimizer, to a multiple of the group's own base
      rate; ratios between groups stay.
    * **Logs** ``warmup_cosine/factor``; Lightning's LearningRateMonitor shows the rates themselves.
    * **Saves** the lengths of the parts that have begun. Resumed with another length of the run, a warm-up
      that has begun keeps its length, the decay stretches to the new end, and a line says so.
    * **Cost** a few multiplications per step; no memory.
    * **Use** for nearly any run of known length; **not** for very short runs or with a low rate, where a
      decay to zero leaves the model half trained.

    Args:
        warmup: Length of the warm-up: optimizer steps, ``"3 epochs"`` or ``"5%"`` of the run. With 0 the run
            starts at the full rate.
        shape: ``"linear"``, or ``"exponential"`` from a hundredth of the base rate.
        final: Share of each group's base rate at the end, in [0, 1]. No step up to that end has rate 0; if
            the run goes on past it, a warning says so.
        total: Length of the run in the same forms, where the Trainer does not know it: a loader without
            length, ``max_time`` alone, endless training. ``None`` takes it from the Trainer.

    Example:
        >>> WarmupCosine(warmup="2 epochs", final=0.1)
        WarmupCosine(warmup='2 epochs', shape='linear', final=0.1, total=None)
    """

    warmup: int | str = "5%"
    shape: Literal["linear", "exponential"] = "linear"
    final: float = 0.0
    total: int | str | None = None
    _following: Following = field(default_factory=Following, init=False, repr=False)

    def __post_init__(self) -> None:
        as_duration("warmup", self.warmup)
        checks.one_of("shape", self.shape, WARMUP_SHAPES)
        checks.in_range("final", self.final, 0.0, 1.0)
        if self.total is not None and as_duration("total", self.total).unit == "percent":
            raise ValueError(f"total must be in steps or epochs, got {self.total!r}")
        if self.total is not None and as_duration("total", self.total).amount == 0:
            raise ValueError(f"total must be above 0, got {self.total!r}")

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_rates(trainer, pl_module)

    def claims(self) -> Iterable[Claim]:
        return [self.claim("lr", None)]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.conductor.rates.show(trainer)

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        schedule = warmup_cosine(self.warmup, shape=self.shape, final=self.final)
        self._following.begin(self, trainer, schedule, total=self._total())

    def _total(self) -> int:
        horizon = self.clock.horizon
        if self.total is not None:
            return horizon.end(0, as_duration("total", self.total))
        if horizon.total is None:
            raise ValueError(f"total must be given, or Trainer(max_steps=...), since {horizon.unknown}")
        return horizon.total

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._following.report(self, trainer, pl_module)
        if self.final == 0.0 and self.clock.position == self.outcome()["end"]:
            told = "but the run goes on, with rate 0: raise total or final"
            warn(trainer, f"{self.state_key} ends at step {self.clock.position}, {told}")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._following.advance(self, trainer)

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._following.finish(self, trainer)

    def outcome(self) -> dict[str, float | int | str]:
        return self._following.outcome(self)
