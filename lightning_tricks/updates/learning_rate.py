"""The learning rate along any schedule, or along several for different parts of a network.

    rate of a group at step t = base rate of the group * m(t)

``t`` counts optimizer steps from 0 and ``m`` is the schedule. The formulas of all schedules and their
sources are in the documentation of the functions that build them, such as :func:`~lightning_tricks.step`.

References: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017,
https://arxiv.org/abs/1608.03983; Smith, "Cyclical Learning Rates for Training Neural Networks", 2017,
https://arxiv.org/abs/1506.01186; Haegele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed
Training Durations", 2024, https://arxiv.org/abs/2405.18392.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from lightning_tricks.core.checks import listed
from lightning_tricks.core.groups import group_sizes, saved_group_sizes, split_groups_
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Schedule
from lightning_tricks.core.select import Patterns, as_patterns, select
from lightning_tricks.lifecycle.rates import check_rates
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.updates.following import Following

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["LearningRate", "held_by"]

_LARGEST = 1e6  # a larger multiplier is a slip, and one of 1e308 would overflow within an optimizer


def held_by(
    optimizers: Iterable[torch.optim.Optimizer], parameters: Mapping[str, nn.Parameter]
) -> frozenset[int]:
    """Return the ``id`` of each of ``parameters``, by name, that is in one of ``optimizers``.

    Raises:
        ValueError: If none is.
    """
    stepped = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    found = stepped & {id(parameter) for parameter in parameters.values()}
    if not found:
        raise ValueError(
            f"params must match a parameter that an optimizer holds, got {', '.join(parameters)}, in none"
        )
    return frozenset(found)


@final
@dataclass(eq=False, repr=False, kw_only=True)
class LearningRate(Technique):
    """Drive the learning rate along any schedule, from steps at milestones to one-cycle.

    With several of them, each drives its own parameters.

    * **When** after each optimizer step, never after a micro-batch; the first rate is set before the first
      batch. Needs no change to ``configure_optimizers``.
    * **Changes** ``lr`` of the parameter groups that hold ``params``, to a multiple of the group's own base
      rate; ratios between groups stay. A group that holds other parameters too is split. Momentum stays as
      it is, also with ``cyclic`` and ``one_cycle``. A warning names the parts and milestones of the schedule
      that lie past the end of the run.
    * **Logs** ``learning_rate/factor``; Lightning's LearningRateMonitor shows the rates themselves.
    * **Saves** which parameters it split off, and how the parts of the schedule lie that have begun. Resumed
      with another length of the run, they keep their lengths, the last one stretches to the new end, and a
      line says so.
    * **Cost** a few multiplications per step; no memory.
    * **Use** for any schedule but the usual one, which has the short name ``WarmupCosine``; **not** beside a
      scheduler of the module's own.

    Args:
        schedule: Multiplier of the base rates, in [0, 1e6]: a schedule, its text, or a number.
        params: Name patterns of the parameters concerned. All others keep their rates.

    Example:
        >>> LearningRate(schedule="warmup('5 epochs') >> multistep(['30 epochs', '60 epochs'])")
        LearningRate(schedule="warmup('5 epochs') >> multistep(['30 epochs', '60 epochs'])", params='*')
    """

    schedule: float | str | Schedule
    params: Patterns = "*"
    _following: Following = field(default_factory=Following, init=False, repr=False)
    _chosen: dict[str, nn.Parameter] | None = field(default=None, init=False, repr=False)
    _held: frozenset[int] | None = field(default=None, init=False, repr=False)
    _split: list[str] = field(default_factory=list, init=False, repr=False)
    _found_sizes: list[list[int]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self._written()
        as_patterns("params", self.params)

    def _written(self) -> Schedule:
        return as_schedule("schedule", self.schedule, 0.0, _LARGEST)

    def attach(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._found_sizes = []

    def read_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._found_sizes = saved_group_sizes(checkpoint)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_rates(trainer, pl_module)
        if self.params == "*":  # with what an optimizer holds beside the module's own
            self._chosen, self._held = None, None
        else:
            self._chosen = select(pl_module, self.params)
            self._held = held_by(trainer.optimizers, self._chosen)

    def claims(self) -> Iterable[Claim]:
        return [self.claim("lr", self._chosen)]

    def regroup(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._split = []
        if self._chosen is None:
            return
        ends, rule = (f"not {self.state_key}", self.state_key), "params must be '*'"
        for optimizer in trainer.optimizers:
            before = len(optimizer.param_groups)
            split_groups_(optimizer, self._place, called=ends.__getitem__, rule=rule, value=self.params)
            if len(optimizer.param_groups) > before:
                self._split = list(self._chosen)

    def _place(self, parameter: Tensor) -> int:
        return int(self._held is None or id(parameter) in self._held)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sizes = group_sizes(optimizer.param_groups for optimizer in trainer.optimizers)
        if self._found_sizes not in ([], sizes):
            raise ValueError(
                f"params must split parameter groups as in the checkpoint, which has groups of "
                f"{self._found_sizes} tensors, got {self.params!r}, with which they are {sizes}"
            )
        self.conductor.rates.show(trainer)

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._following.begin(self, trainer, self._written(), among=self._held)

    def saved(self) -> dict[str, Any]:
        return {"split": list(self._split)}

    def restore(self, state: dict[str, Any]) -> None:
        if state["split"] != self._split:
            then, now = listed(state["split"]) or "nothing", listed(self._split) or "nothing"
            raise ValueError(
                "params must split off what they did in the checkpoint, with whose parameter groups the "
                f"optimizer's state comes back, {then}; got {now}"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._following.report(self, trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._following.advance(self, trainer)

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._following.finish(self, trainer)

    def outcome(self) -> dict[str, float | int | str]:
        return self._following.outcome(self)
