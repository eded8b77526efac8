"""Weight decay: weights shrink a little at every step.

    decoupled    w <- (1 - rate * strength) w,     then the optimizer's own step
    l2           g <- g + strength * w,            the gradient of strength / 2 * |w|^2

``rate`` is that of the parameter's group. This is torch's convention: what the paper calls lambda is
rate * strength here.

Reference: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019,
https://arxiv.org/abs/1711.05101.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, final

from torch import nn

from lightning_tricks.core import checks
from lightning_tricks.core.conflicts import Claim
from lightning_tricks.core.gradients import sign_of
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course, Schedule
from lightning_tricks.core.select import Patterns, as_patterns
from lightning_tricks.lifecycle.cancelled import cancelled
from lightning_tricks.lifecycle.notice import warn
from lightning_tricks.lifecycle.strategies import flat_shapes
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.updates.decay import (
    LARGEST,
    add_l2_,
    coupled_adaptive,
    decay_,
    pairs_of,
    why_not_coupled,
)
from lightning_tricks.updates.decaying import check_steps, decaying_parameters, own_decay

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

__all__ = ["WeightDecay"]

_FORMS = ("decoupled", "l2")


@final
@dataclass(eq=False, repr=False, kw_only=True)
class WeightDecay(Technique):
    """Shrink weights a little at every step (:func:`decay_`, :func:`add_l2_`).

    It is decoupled or a penalty, its strength may change over the run, and biases, normalisation and
    embeddings are spared by default. For modules that configure their own optimizer: OptimizerMixin sets an
    optimizer's own decay.

    * **When** just before each optimizer step; a step that is cancelled decays nothing. ``"decoupled"`` comes
      after all work on gradients in the list of callbacks, ``"l2"`` before it, and is clipped with the rest.
    * **Changes** the weights themselves (``"decoupled"``), or their gradients (``"l2"``), in place; only of
      parameters that have a gradient. The logged loss does not hold the penalty.
    * **Logs** ``weight_decay/strength``.
    * **Saves** nothing but how a schedule of the strength lies.
    * **Cost** one pass over the weights; no memory, no read to the host.
    * **Use** against over-fitting, with a strength that changes over the run; **not** ``"l2"`` under Adam or
      another optimizer that divides by the size of past gradients (a warning says so), nor beside an
      optimizer's own decay, which AdamW has unless ``weight_decay=0.0`` is passed (refused).

    Args:
        strength: In [0, 1e6]; a number, a schedule or its text. 0.01 for fine-tuning, up to 0.1 in general,
            more for little data.
        form: ``"decoupled"``, as AdamW has it, or ``"l2"``, as SGD has it.
        params: Name patterns of the parameters to decay; ``None`` for all but biases, normalisation and
            embeddings.

    Example:
        >>> WeightDecay(strength="0.05 * cosine(to=0.1)")
        WeightDecay(strength='0.05 * cosine(to=0.1)', form='decoupled', params=None)
    """

    strength: float | str | Schedule = 0.01
    form: Literal["decoupled", "l2"] = "decoupled"
    params: Patterns | None = None
    _chosen: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _members: set[nn.Parameter] = field(default_factory=set, init=False, repr=False)
    _course: Course | None = field(default=None, init=False, repr=False)

    @property
    def gradient_stage(self) -> str:
        return "penalty" if self.form == "l2" else "decay"

    def __post_init__(self) -> None:
        as_schedule("strength", self.strength, 0.0, LARGEST)
        checks.one_of("form", self.form, _FORMS)
        if self.params is not None:
            as_patterns("params", self.params)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_steps(trainer.optimizers, alone=self.form == "decoupled")
        self._chosen = decaying_parameters(pl_module, self.params, trainer.optimizers, flat_shapes(trainer))
        self._members = set(self._chosen.values())
        if self.form == "l2" and (name := coupled_adaptive(trainer.optimizers)):
            warn(trainer, f"{self.state_key}: {why_not_coupled(name)}: use form='decoupled'")

    def claims(self) -> Iterable[Claim]:
        return [self.claim("weight_decay", self._chosen), *own_decay(self.conductor.trainer.optimizers)]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._course = self.lay(trainer, "strength", as_schedule("strength", self.strength))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        assert self._course is not None
        if self.form == "decoupled" and self.conductor.steps.again:
            kind = type(optimizer).__name__
            raise RuntimeError(
                f"the optimizer must ask for one gradient per step to be decayed past it, got {kind}, which "
                "asks for several: use form='l2'"
            )
        strength = self._course(self.clock.position)
        self.report(trainer, pl_module, optimizer, strength=strength)
        if strength == 0.0:
            return
        unless = cancelled(trainer, optimizer) if self.form == "decoupled" else None
        for group in optimizer.param_groups:
            weights, grads = pairs_of(group, self._members)
            if self.form == "l2":
                add_l2_(grads, weights, strength=strength * sign_of(group))
            else:
                decay_(weights, factor=1 - group["lr"] * strength, unless=unless)
