"""Stochastic weight averaging: the mean of snapshots of the weights from late in the training.

    m_n = m_{n-1} + (theta - m_{n-1}) / n

at the n-th multiple of ``every`` from ``start`` on, where theta are the weights. With ``lr`` the rate of
each group goes there from ``start`` on, along half a cosine wave, and stays:

    rate = (1 - s) * rate without it + s * lr,    s = (1 - cos(pi t / T)) / 2

with t the steps since ``start`` and T those of ``anneal``, and s = 1 after them.

Reference: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018,
https://arxiv.org/abs/1803.05407, algorithm 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from lightning_tricks.averaging.snapshot_mean import SnapshotMean
from lightning_tricks.core import checks
from lightning_tricks.core.conflicts import Claim
from lightning_tricks.core.duration import Duration, as_duration
from lightning_tricks.lifecycle.notice import warn
from lightning_tricks.lifecycle.rates import check_rates

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["SWAWeights", "anneal_share", "goal_rate"]

_LARGEST = 1e6
_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*%\s*")


def anneal_share(step: int, *, begin: int, end: int) -> float:
    """Return the share s of the way to a goal that is made at ``step``, from 0 at ``begin`` to 1 at ``end``.

    Example:
        >>> [round(anneal_share(step, begin=2, end=6), 3) for step in range(8)]
        [0.0, 0.0, 0.0, 0.146, 0.5, 0.854, 1.0, 1.0]
    """
    if step >= end:
        return 1.0
    return 0.5 * (1.0 - math.cos(math.pi * (step - begin) / (end - begin))) if step > begin else 0.0


def goal_rate(lr: float | str) -> tuple[float, bool]:
    """Return the number that ``lr`` stands for, and whether it is a share of the base rate.

    Args:
        lr: A rate, above 0, or a share of the base rate, such as ``"10%"``.

    Raises:
        TypeError: If it is of another type.
        ValueError: If it is not above 0, or not written as above.

    Example:
        >>> goal_rate(0.05), goal_rate("10%")
        ((0.05, False), (0.1, True))
    """
    if not isinstance(lr, str):
        return checks.in_range("lr", lr, 0.0, _LARGEST, open_low=True), False
    found = _SHARE.fullmatch(lr)
    if not found or not 0.0 < float(found[1]) <= _LARGEST:
        raise ValueError(f"lr must be a number above 0 or a share of the base rate, as '10%', got {lr!r}")
    return float(found[1]) / 100, True


@final
@dataclass(eq=False, repr=False, kw_only=True)
class SWAWeights(SnapshotMean):
    """Evaluate the mean of snapshots of the weights from late in the training (equations above).

    It is also checkpointed and kept. Snapshots have a rate that they are taken at, and the mean BatchNorm
    statistics of its own; with several optimizers, manual optimization and shards too.

    * **When** at each multiple of ``every`` from ``start`` on, counted in optimizer steps from the start of
      the run; several optimizers in one batch count once. Until the first snapshot nothing happens.
    * **Changes** what the module holds: the mean in validation, the live weights again after it, also after
      an error; the mean once ``fit`` is over, and so in test and predict. The next ``fit`` of the Trainer
      takes the live weights back. BatchNorm statistics are estimated for the mean before each validation of
      it and at the end of ``fit``, unless no step was made since the last time; the live ones stay as they
      are. With ``lr`` the learning rates too: what schedules of this package make of them counts until
      ``start``, ever less within ``anneal``, and then no more; a scheduler of the module's own is refused.
    * **Logs** ``swa_weights/snapshots``, how many the mean is of, and ``swa_weights/distance``, that of the
      mean and the live weights as a share of the norm of these.
    * **Saves** both sets of weights in every checkpoint, weights-only ones included (``live_state`` and
      ``average_state`` read either), the mean with the statistics last estimated for it; its counts; a mean
      that is wider than its weight also unrounded. Before the first snapshot a checkpoint stays as it is.
    * **Cost** one copy of the weights in memory, one pass over them per snapshot and one per step that logs.
      With BatchNorm a forward pass over ``batches`` batches, and another copy of the weights for as long,
      per validation of the mean. No wait for the device, unless ``device`` is another.
    * **Use** late in a run at a constant or cyclic rate that is still high: ``lr``, or for cycles
      ``LearningRate(schedule="constant(over='75%') >> cosine_restarts('2 epochs', to=0.01)")`` beside
      ``every="2 epochs"``, whose ends are the low points; **not** where the rate falls to 0, so that all
      snapshots are nearly the same, nor with ``PreciseBatchNorm``, but for ``update_batchnorm=False``.

    Args:
        start: When the first snapshot may be taken and ``lr`` begins: optimizer steps, ``"3 epochs"`` or
            ``"75%"`` of the run.
        lr: The rate of all parameter groups, above 0, or the share of each group's own base rate, such as
            ``"10%"``; ``None`` leaves rates alone.
        anneal: How long the rate takes to get there, in the same forms as ``start``. A warning says so if
            the run ends before.
        every: When snapshots are taken: optimizer steps, ``"1 epoch"`` or ``"10%"``, above 0. As for
            ``start``, only steps where the training loader has no length.
        update_batchnorm: Whether to estimate BatchNorm statistics for the mean, if there are any that move
            in training. Else it is evaluated with the live ones.
        batches: How many training batches to look at for that, at least 1; at most an epoch.
        params: As in ``EMAWeights``, like all that follow.
        buffers: Those but the statistics that are estimated.
        device: Where to keep the mean.
        dtype: Its type.
        evaluate: Whether evaluations see it, and the module holds it after ``fit``.
        validate: Whether one that is kept apart is validated too.
        save: Which set stands under ``state_dict``: ``"average"`` or ``"live"``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SWAWeights(lr=0.05)], logger=False)
        >>> SWAWeights(start="60%", every=500)
        SWAWeights(start='60%', lr=None, anneal='5%', every=500, update_batchnorm=True, batches=200, \
params='*', buffers='copy', device=None, dtype=None, evaluate=True, validate=False, save='average')
    """

    start: int | str = "75%"
    lr: float | str | None = None
    anneal: int | str = "5%"
    _way: list[int] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        as_duration("start", self.start)
        if self.lr is not None:
            goal_rate(self.lr)
        as_duration("anneal", self.anneal)
        super().__post_init__()

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().prepare(trainer, pl_module)
        if self.lr is not None:
            check_rates(trainer, pl_module)

    def claims(self) -> Iterable[Claim]:
        remedy = f"leave out lr of {self.state_key}"
        leads = [] if self.lr is None else [Claim("lr_goal", self.state_key, None, remedy)]
        return [*leads, *super().claims()]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.lr is not None:
            self.conductor.rates.show(trainer)

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._way = state["way"]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().begin(trainer, pl_module)
        self._tell_of_end(trainer)
        self._lead(trainer)

    def _tell_of_end(self, trainer: Trainer) -> None:
        """Warn of a goal that no step of the run has, or that the annealing does not get to."""
        (begin, end), total = self._way or self._moments(), self.clock.total
        if self.lr is None or total is None or (begin < total and end <= total):
            return
        who, run = self.state_key, f"but the run has {total} steps"
        if begin >= total:
            warn(trainer, f"{who}: lr begins at step {begin}, {run}: it has no effect")
            return
        made = anneal_share(total - 1, begin=begin, end=end)
        warn(trainer, f"{who}: anneal ends at step {end}, {run}: only {made:.0%} of the way to lr is made")

    def _lead(self, trainer: Trainer) -> None:
        """Set the rates of the next step, and keep from ``start`` on what its moments were."""
        begin, end = way = self._way or self._moments()
        if (step := self.clock.position) >= begin:
            self._way = way
            if self.lr is not None and (share := anneal_share(step, begin=begin, end=end)):
                goal, of_base = goal_rate(self.lr)
                self.conductor.rates.lead(trainer, self.state_key, goal, share=share, of_base=of_base)

    def _moments(self) -> list[int]:
        begin = self.clock.step_after(0, as_duration("start", self.start))
        end = begin if self.lr is None else self.clock.step_after(begin, as_duration("anneal", self.anneal))
        return [begin, end]

    def moments(self) -> list[Duration]:
        return [as_duration("start", self.start), *super().moments()]

    def reached(self) -> bool:
        return self._way is not None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.clock.attempted:
            self._lead(trainer)
        super().on_train_batch_end(trainer, pl_module)

    def take(self, trainer: Trainer) -> None:
        self._snapshots += 1
        self._second.lerp_(1 / self._snapshots)

    def saved(self) -> dict[str, Any]:
        return {**super().saved(), "way": self._way}
