"""Norm penalties: what large weights cost, by their absolute values, their squares, or both.

    L + l1 * |w|_1 + l2 / 2 * |w|^2

With ``proximal`` the first term is no part of the gradient: after the optimizer's own step

    w <- sign(w) max(|w| - k, 0),    k = rate * l1                          under SGD
                                     k = rate * l1 / (sqrt(v) + eps)        under Adam and its like

which makes weights exactly 0; ``v`` is the optimizer's mean of squared gradients, entry by entry, so that
``k`` is measured as the step itself is. ``rate`` is that of the parameter's group.

References: Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996,
https://doi.org/10.1111/j.2517-6161.1996.tb02080.x; Zou and Hastie, "Regularization and Variable Selection via
the Elastic Net", 2005, https://doi.org/10.1111/j.1467-9868.2005.00503.x; Parikh and Boyd, "Proximal
Algorithms", 2014, section 6.5.2, https://web.stanford.edu/~boyd/papers/prox_algs.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.core.conflicts import Claim
from lightning_tricks.core.gradients import sign_of
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course, Schedule
from lightning_tricks.core.select import Patterns, as_patterns
from lightning_tricks.core.tensors import local
from lightning_tricks.lifecycle.notice import warn
from lightning_tricks.lifecycle.strategies import flat_shapes
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.updates.decay import (
    LARGEST,
    add_l1_,
    add_l2_,
    coupled_adaptive,
    pairs_of,
    prox_,
    why_not_coupled,
    without_proximal,
)
from lightning_tricks.updates.decaying import check_steps, decaying_parameters, own_decay

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

__all__ = ["NormPenalty"]


@final
@dataclass(eq=False, repr=False, kw_only=True)
class NormPenalty(Technique):
    """Minimise an L1 or L2 penalty too, or both (:func:`add_l1_`, :func:`add_l2_`, :func:`prox_`).

    With ``proximal=True`` weights become exactly 0, under Adam too.

    * **When** just before each optimizer step, before all other work on gradients in the list of callbacks,
      so it is clipped with the rest; with ``proximal`` the L1 part comes right after the step, and not after
      one that was cancelled.
    * **Changes** the gradients of the parameters, or with ``proximal`` the weights themselves, in place; only
      of parameters that have a gradient. The logged loss does not hold the penalty.
    * **Logs** ``norm_penalty/l1`` and ``/l2``, the strengths, and ``/zeros``, the share of weights that are
      exactly 0 (over shards, of those that the first process holds).
    * **Saves** nothing but how schedules of the strengths lie.
    * **Cost** one pass over the weights for each part, with ``proximal`` a few more; no read to the host.
    * **Use** L1 with ``proximal`` for weights that can be left out, L2 with SGD against over-fitting; **not**
      L1 for zeros beside an average of weights or Lookahead, which undo them; nor
      in the gradients of Adam and its like, which divide it (a warning says so).

    Args:
        l1: Strength of the L1 part, in [0, 1e6]; a number, a schedule or its text. ``None`` for no such part.
        l2: Strength of the L2 part likewise.
        proximal: Whether the L1 part acts after the step and makes exact zeros; with SGD, Adam, AdamW,
            Adagrad and RMSprop. Without it weights come near 0 and hardly ever reach it.
        params: Name patterns of the parameters concerned; ``None`` for all but biases, normalisation and
            embeddings.

    Example:
        >>> NormPenalty(l1=1e-4, proximal=True)
        NormPenalty(l1=0.0001, l2=None, proximal=True, params=None)
    """

    l1: float | str | Schedule | None = None
    l2: float | str | Schedule | None = None
    proximal: bool = False
    params: Patterns | None = None
    _chosen: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _members: set[nn.Parameter] = field(default_factory=set, init=False, repr=False)
    _strengths: dict[str, Course] = field(default_factory=dict, init=False, repr=False)

    @property
    def gradient_stage(self) -> str:
        return "penalty"

    def __post_init__(self) -> None:
        if not self._given():
            raise ValueError("l1 or l2 must be given, got None for both")
        for name, strength in self._given().items():
            as_schedule(name, strength, 0.0, LARGEST)
        checks.flag("proximal", self.proximal)
        if self.proximal and self.l1 is None:
            raise ValueError("l1 must be given with proximal=True, got None")
        if self.params is not None:
            as_patterns("params", self.params)

    def _given(self) -> dict[str, float | str | Schedule]:
        return {name: value for name in ("l1", "l2") if (value := getattr(self, name)) is not None}

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_steps(trainer.optimizers, alone=False)
        for optimizer in trainer.optimizers if self.proximal else ():
            if kind := without_proximal(optimizer):
                raise ValueError(
                    f"proximal must be False with {kind}, of which it is unknown what its steps are divided "
                    "by, got True"
                )
        self._chosen = decaying_parameters(pl_module, self.params, trainer.optimizers, flat_shapes(trainer))
        self._members = set(self._chosen.values())
        in_gradients = self.l2 is not None or not self.proximal
        if in_gradients and (name := coupled_adaptive(trainer.optimizers)):
            instead = "WeightDecay for l2, proximal=True for l1"
            warn(trainer, f"{self.state_key}: {why_not_coupled(name)}: use {instead}")

    def claims(self) -> Iterator[Claim]:
        if self.l1 is not None:
            yield self.claim("l1_penalty", self._chosen)
        if self.l2 is not None:
            yield self.claim("weight_decay", self._chosen)
            yield from own_decay(self.conductor.trainer.optimizers)

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, strength in self._given().items():
            self._strengths[name] = self.lay(trainer, name, as_schedule(name, strength))

    def _strength(self, name: str) -> float:
        return self._strengths[name](self.clock.position) if name in self._strengths else 0.0

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        l1, l2 = self._strength("l1"), self._strength("l2")
        for group in optimizer.param_groups:
            weights, grads = pairs_of(group, self._members)
            add_l2_(grads, weights, strength=l2 * sign_of(group))
            if not self.proximal:
                add_l1_(grads, weights, strength=l1 * sign_of(group))
        if self.reports(trainer):
            values: dict[str, Any] = {name: self._strength(name) for name in self._strengths}
            self.report(trainer, pl_module, optimizer, **values, zeros=self._zeros(optimizer))

    def _zeros(self, optimizer: Optimizer) -> Tensor:
        held = [p for group in optimizer.param_groups for p in group["params"] if p in self._members]
        entries = sum(local(p.detach()).numel() for p in held)
        zeros = [(local(p.detach()) == 0).sum() for p in held]
        return (
            torch.stack([each.to(zeros[0]) for each in zeros]).sum() / entries if entries else torch.zeros(())
        )

    def after_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, applied: bool | Tensor
    ) -> None:
        if not self.proximal or (strength := self._strength("l1")) == 0.0:
            return
        for group in optimizer.param_groups:
            prox_(optimizer, group, self._members, strength=strength, applied=applied)
