"""Sharpness-aware minimization: each step takes the gradient at the worst weights near by.

    SAM     e = rho g / ||g||,                      g  = gradient of L at w
    ASAM    e = rho T ** 2 g / ||T g||,             T  = |w| + eta, entry by entry
    both    w <- w - step(gradient of L at w + e)

``||.||`` is the Euclidean norm of all entries of all gradients, ``rho`` has the unit of a weight (SAM) or of
a weight's relative change (ASAM), ``eta`` is 0.01, and the step is that of the optimizer.

References: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", 2021,
https://arxiv.org/abs/2010.01412, equation 2 and algorithm 1; Kwon et al., "ASAM: Adaptive Sharpness-Aware
Minimization for Scale-Invariant Learning of Deep Neural Networks", 2021, https://arxiv.org/abs/2102.11600,
algorithm 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.core.gradients import Groups, gradients_of, sign_of
from lightning_tricks.core.norms import total_norm
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course, Schedule
from lightning_tricks.core.tensors import copy_, local
from lightning_tricks.lifecycle.closures import Closures, Pass, check_automatic, unseen
from lightning_tricks.lifecycle.strategies import flat_shards, reshard
from lightning_tricks.lifecycle.technique import Technique

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["SharpnessAware", "climb_", "scale_"]

Window = list[tuple[Pass, Tensor | None]]
"""The passes of a step, each with its loss."""

ETA = 0.01
"""What ASAM adds to the magnitude of each weight, so that those at 0 can move; the paper's."""

TINY = 1e-12
"""The least norm that is divided by, so that gradients of 0 move nothing."""


@torch.no_grad()
def scale_(grads: list[Tensor], weights: list[Tensor]) -> None:
    """Multiply each entry of ``grads`` in place by ``|w| + 0.01`` of its entry of ``weights``."""
    for grad, weight in zip(grads, weights, strict=True):
        grad.mul_(weight.abs() + ETA)


@torch.no_grad()
def climb_(weights: list[Tensor], grads: list[Tensor], norm: Tensor, *, rho: float) -> None:
    """Move ``weights`` in place by ``rho`` along ``grads``, whose common norm is ``norm``.

    Args:
        weights: Tensors of any shapes and types.
        grads: As many, of equal shapes.
        norm: A 0-d tensor. If it is not finite, nothing moves; nothing is read back to the host.
        rho: How far, at least 0.

    Example:
        >>> weight = torch.zeros(2)
        >>> climb_([weight], [torch.tensor([3.0, 4.0])], torch.tensor(5.0), rho=0.5)
        >>> weight
        tensor([0.3000, 0.4000])
    """
    finite, factor = torch.isfinite(norm), rho / norm.clamp(min=TINY)
    for weight, grad in zip(weights, grads, strict=True):
        way = grad * factor.to(grad.device)
        weight += torch.where(finite.to(grad.device), way, 0.0)


@final
@dataclass(eq=False, repr=False, kw_only=True)
class SharpnessAware(Technique):
    """Step with the gradient at the worst weights within ``rho`` (:func:`climb_`).

    This is SAM, or ASAM; accumulation, gradient scalers and shards are included.

    * **When** in each step of automatic optimization, after its backward pass: the weights move, the batches
      of the step pass forward and backward once more, the weights are put back to the bit. All work on
      gradients, clipping too, acts on the second gradient only.
    * **Changes** the gradients of all parameters of the module. The second pass draws the same random numbers
      as the first, so that both see one loss, with one dropout mask; those of generators of the module's own
      are drawn anew. A ``training_step`` that changes its batch, or metrics that are no part of the
      module, does so twice, and one that reads a buffer which it changes sees it changed. Of the
      module it leaves nothing else: what it logs, counts in metrics and writes into buffers
      (BatchNorm) is taken back. Hooks of the backward pass are called for both. The way up follows the
      gradient of all processes; over shards too. Where that is not finite, as under a gradient scaler that is
      still too high, the weights do not move, and the second gradient decides about the step. Refused in
      manual optimization and with LBFGS.
    * **Logs** ``sharpness_aware/norm``, of the first gradient (that of ``T g`` if ``adaptive``), and
      ``/sharpness``, how much higher the loss of this process was up there.
    * **Saves** nothing.
    * **Cost** twice the time of a step; a copy of all weights and buffers during the second pass, and under
      accumulation the batches of the step; no read to the host.
    * **Use** for better generalisation, above all of vision models without much augmentation or with noisy
      labels; **not** where compute is short, nor in bf16-true, which rounds small moves away.

    Args:
        rho: How far the weights move, at least 0; a number, a schedule or its text. With 0 there is no second
            pass. The papers take 0.05 to 0.2, and about ten times as much if ``adaptive``.
        adaptive: Whether each weight moves in proportion to its magnitude (ASAM), so that it does not matter
            how layers share a scale.

    Example:
        >>> SharpnessAware(rho="0.1 * linear(to=0.5)")
        SharpnessAware(rho='0.1 * linear(to=0.5)', adaptive=False)
    """

    rho: float | str | Schedule = 0.05
    adaptive: bool = False
    _course: Course | None = field(default=None, init=False, repr=False)
    _closures: Closures | None = field(default=None, init=False, repr=False)
    _spread: dict[nn.Parameter, Groups] = field(default_factory=dict, init=False, repr=False)
    _members: set[nn.Parameter] = field(default_factory=set, init=False, repr=False)
    _window: Window = field(default_factory=list, init=False, repr=False)
    _seen: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        as_schedule("rho", self.rho, 0.0, open_high=True)
        checks.flag("adaptive", self.adaptive)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_automatic(pl_module, self.state_key)
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                raise ValueError(f"{self.state_key} needs an optimizer that asks for one gradient, got LBFGS")
        if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
            raise ValueError(f"training_step must take a batch for {self.state_key}, got dataloader_iter")
        for name, layer in pl_module.named_modules():
            if getattr(layer, "sparse", False) is True:
                raise ValueError(f"{self.state_key} needs dense gradients, got the sparse ones of {name!r}")
        # What an optimizer steps besides is in no checkpoint, and must not bear on the rest.
        self._members, self._spread = set(pl_module.parameters()), flat_shards(trainer)

    def claims(self) -> Iterable[Claim]:
        return [self.claim("passes", None)]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._course = self.lay(trainer, "rho", as_schedule("rho", self.rho))
        self._closures = Closures(trainer, lambda each: self._run(trainer, pl_module, each))

    def undo(self) -> None:
        if self._closures is not None:
            self._closures.remove()
            self._closures = None
        self._window = []

    def _run(self, trainer: Trainer, pl_module: LightningModule, each: Pass) -> Any:
        assert self._course is not None
        rho = self._course(self.clock.position)
        result = each.run()
        if rho > 0.0:
            self._window = [*([] if each.begins else self._window), (each, result.loss)]
        if each.steps:
            window, self._window, self._seen = self._window, [], {}
            self._climb(trainer, pl_module, window, rho)
        return result

    def _climb(self, trainer: Trainer, pl_module: LightningModule, window: Window, rho: float) -> None:
        """Replace the gradients of ``window``, the passes of a step, by those at the weights up there."""
        optimizer = trainer.optimizers[0]
        found = gradients_of(optimizer, self._members, self._spread) if window else []
        if not found:
            return
        reshard(trainer)  # FSDP may hold whole weights, beside the parts that are moved here
        held = [(p, sign_of(group)) for group in optimizer.param_groups for p in group["params"]]
        own = [(p, sign) for p, sign in held if p in self._members and p.grad is not None]
        parameters = [parameter for parameter, _ in own]
        weights = [local(parameter.detach()) for parameter in parameters]
        grads = [local(parameter.grad) for parameter in parameters]
        if self.adaptive:
            scale_(grads, weights)
        norm = total_norm(found, 2.0)
        if self.adaptive:
            scale_(grads, weights)
        copies = [weight.clone() for weight in weights]  # to be put back to the bit
        try:
            for grad in [grad for grad, (_, sign) in zip(grads, own, strict=True) if sign < 0]:
                grad.neg_()  # where the optimizer climbs, the worst is down
            climb_(weights, grads, norm, rho=rho)
            optimizer.zero_grad()
            del found, grads  # else a set of gradients would stay beside that of the second pass
            with unseen(trainer, pl_module):
                pairs = [(first, each.run_again()) for each, first in window]
        finally:
            reshard(trainer)
            copy_(weights, copies)
        if self.reports(trainer):
            gaps = [up - first for first, up in pairs if first is not None and up is not None]
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            scale = 1.0 if scaler is None else scaler.get_scale()
            self._seen = {"norm": norm / scale}
            if gaps:  # else no batch gave a loss up there
                self._seen["sharpness"] = torch.stack(gaps).sum()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._seen:
            self.report(trainer, pl_module, optimizer, **self._seen)
