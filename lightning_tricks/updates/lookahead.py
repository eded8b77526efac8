"""Lookahead: every k steps, slow weights go a part of the way to the fast ones, which begin there again.

    theta_{t,0} = phi_t
    theta_{t,i+1} = the optimizer's step from theta_{t,i},    i = 0 ... k - 1
    phi_{t+1} = phi_t + alpha (theta_{t,k} - phi_t)

``theta`` are the fast weights, which the module holds and the optimizer steps, ``phi`` the slow ones; phi_0
are the weights that the run begins with. The optimizer's own state goes on through all cycles, as in the
paper's experiments.

Reference: Zhang, Lucas, Hinton and Ba, "Lookahead Optimizer: k steps forward, 1 step back", 2019,
https://arxiv.org/abs/1907.08610, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.duration import as_duration
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course, Schedule
from lightning_tricks.core.select import Patterns, as_patterns, select
from lightning_tricks.core.tensors import copy_, lerp_
from lightning_tricks.lifecycle.layouts import Layouts, layouts_of, parts_of, wholes_of
from lightning_tricks.lifecycle.notice import warn
from lightning_tricks.lifecycle.shadow import Shadows
from lightning_tricks.lifecycle.slots import Slot, find_slots
from lightning_tricks.lifecycle.strategies import any_of, check_parts, reshard
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.updates.learning_rate import held_by

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["Lookahead", "synchronize_"]


@torch.no_grad()
def synchronize_(slow: list[Tensor], fast: list[Tensor], *, alpha: float, due: bool | Tensor = True) -> None:
    """Move ``slow`` towards ``fast`` by ``alpha`` of the way, and ``fast`` to where ``slow`` is then.

    Args:
        slow: Tensors of one type and device.
        fast: Likewise, of the same shapes in the same order; their type may be narrower.
        alpha: In [0, 1].
        due: Whether to do it; a 0-d bool tensor if only its device knows.
    """
    if not isinstance(due, Tensor):
        if due:
            lerp_(slow, fast, alpha)
            copy_(fast, slow)
        return
    for phi, theta in zip(slow, fast, strict=True):
        here = due.to(phi.device)
        moved = torch.lerp(phi, theta.to(phi), alpha)
        theta.copy_(torch.where(here, moved, theta))
        phi.copy_(torch.where(here, moved, phi))


@final
@dataclass(eq=False, repr=False, kw_only=True)
class Lookahead(Technique):
    """Let slow weights follow the trained ones, and call these back to them every ``k`` steps.

    * **When** after every ``k``-th optimizer step that was really applied; a step that was skipped counts for
      nothing, and several optimizers in one batch count once. Averages and snapshots of other techniques are
      taken after it, whatever the order of the list.
    * **Changes** the weights that ``params`` matches, of all optimizers. Momentum stays. Frozen weights stay
      as they are; one that is opened later begins its slow weight then. Evaluations and checkpoints see the
      fast weights. At the end of a cycle these are the slow ones, so let ``k`` divide the steps between two
      validations to evaluate slow weights, which the paper found to be the better ones.
    * **Logs** ``lookahead/alpha``.
    * **Saves** the slow weights and where in the cycle it is. A second ``fit`` begins a new cycle from the
      weights that it finds.
    * **Cost** one copy of the weights in memory, in at least 32 bits, and one pass over them in ``k`` steps;
      where an optimizer is fused and its steps may be cancelled on the device, one pass per step. No wait for
      the device.
    * **Use** for optimizers that oscillate, at high rates; **not** beside Schedule-Free optimizers, which
      average by themselves.

    Args:
        k: Steps of a cycle, at least 1; the paper tries 5 and 10.
        alpha: Share of the way from the slow to the fast weights, in [0, 1]; a number, a schedule or its
            text. With 1 training is unchanged.
        params: Name patterns of the parameters concerned; of these, those that an optimizer holds.

    Example:
        >>> Lookahead(k=10, alpha=0.8)
        Lookahead(k=10, alpha=0.8, params='*')
    """

    k: int = 5
    alpha: float | str | Schedule = 0.5
    params: Patterns = "*"
    _slots: dict[str, Slot] = field(default_factory=dict, init=False, repr=False)
    _layouts: Layouts = field(default_factory=dict, init=False, repr=False)
    _slow: Shadows | None = field(default=None, init=False, repr=False)
    _state: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _course: Course | None = field(default=None, init=False, repr=False)
    _steps: int | Tensor = field(default=0, init=False, repr=False)
    _cycles: int | Tensor = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.whole("k", self.k, 1)
        as_schedule("alpha", self.alpha, 0.0, 1.0)
        as_patterns("params", self.params)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_parts(trainer)
        self._layouts = layouts_of(trainer, pl_module)
        held = held_by(trainer.optimizers, select(pl_module, self.params))
        slots = find_slots(pl_module, self.params, buffers=False)
        self._slots = {name: slot for name, slot in slots.items() if id(slot.held) in held}

    def claims(self) -> Iterable[Claim]:
        return [self.claim("weights", {name: slot.held for name, slot in self._slots.items()})]

    def restore(self, state: dict[str, Any]) -> None:
        self._state = state

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._course = self.lay(trainer, "alpha", as_schedule("alpha", self.alpha))
        if late := self.clock.too_late(as_duration("k", self.k)):
            warn(trainer, f"{self.state_key}: {late}")
        state, self._state = self._state, {}
        self._steps, self._cycles = state.get("steps", 0), state.get("cycles", 0)
        self._reshard(trainer)
        self._slow = Shadows(
            self._slots,
            dtype=None,
            device=None,
            values=parts_of(state.get("slow", {}), self._layouts),
            agree=partial(any_of, trainer) if self._layouts else list,
        )

    def _reshard(self, trainer: Trainer) -> None:
        """Let the module hold parts, which an evaluation or a step may have left whole."""
        if self._layouts:
            reshard(trainer)

    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        assert self._slow is not None
        self._reshard(trainer)
        self._slow.join_opened()

    def after_update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._slow is not None and self._course is not None
        alpha = self._course(self.clock.position - 1)
        self._steps = self._steps + self.clock.applied
        due = self._steps >= self.k
        if due is not False:
            self._reshard(trainer)
            for slow, fast in self._slow.lists():
                synchronize_(slow, fast, alpha=alpha, due=due)
            self._steps = self._steps * (due ^ True)
            self._cycles = self._cycles + due
        self.report(trainer, pl_module, alpha=alpha)

    def saved(self) -> dict[str, Any]:
        slow = {} if self._slow is None else self._slow.named()
        slow = wholes_of(slow, self._layouts) if self._layouts else slow
        return {"slow": slow, "steps": int(self._steps), "cycles": int(self._cycles)}

    def outcome(self) -> dict[str, float | int | str]:
        return {"cycles": int(self._cycles)}
