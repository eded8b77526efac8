"""Gradient clipping by value, by global norm, or both, and what happens to gradients that are not finite.

The mathematics is that of :mod:`lightning_tricks.gradients.norms`, and for thresholds that follow the norms
seen so far that of :mod:`lightning_tricks.gradients.thresholds`. Thresholds have the unit of a gradient entry
and of a gradient norm.

Reference: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013,
https://arxiv.org/abs/1211.5063.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, final

from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.core.chosen import chosen_parameters
from lightning_tricks.core.conflicts import ConflictError
from lightning_tricks.core.gradients import Groups, gradients_of
from lightning_tricks.core.norms import total_norm
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course, Schedule
from lightning_tricks.core.select import Patterns, as_patterns
from lightning_tricks.gradients.norms import clip_, within
from lightning_tricks.gradients.skipping import (
    cancel_step_,
    cancels_on_device,
    counts_skipped_steps,
    drop_gradients_,
    non_finite_names,
)
from lightning_tricks.gradients.thresholds import AdaptiveThreshold, State
from lightning_tricks.lifecycle.notice import warn
from lightning_tricks.lifecycle.strategies import flat_shards
from lightning_tricks.lifecycle.technique import Technique

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["GradientClip"]

_POLICIES = ("skip", "raise", "keep")


@final
@dataclass(eq=False, repr=False, kw_only=True)
class GradientClip(Technique):
    """Clip gradients by value, by global norm, or both (:func:`clip_`).

    The norm may be any; thresholds may be schedules or follow the norms seen so far (``Percentile``,
    ``ZScore``); a step whose gradients are not finite does not happen.

    * **When** just before each optimizer step, on unscaled and accumulated gradients, in automatic and in
      manual optimization; only those that this optimizer steps.
    * **Changes** the gradients of the parameters that ``params`` matches, in place. A step whose gradient
      norm is not finite does not happen at all (``non_finite="skip"``). Over shards the norm is that of all
      processes. DeepSpeed clips by itself: a number for ``max_norm`` with ``non_finite="keep"`` becomes its
      ``gradient_clipping``, and all else is refused.
    * **Logs** ``gradient_clip/norm`` (before clipping), ``/threshold``, ``/clipped`` (share of this run's
      steps), ``/skipped`` (count).
    * **Saves** how many steps it saw, clipped and skipped; the statistics of an adaptive threshold.
    * **Cost** one pass to measure and one to scale. ``non_finite="skip"`` reads the norm back to the host
      at each step, unless the optimizer is fused, ``"raise"`` always; with a fixed threshold, the second
      pass is then made only where it clips. Adaptive ones add no read: their statistics stay on the device.
    * **Use** for spiking or diverging losses, recurrent networks, long sequences, policy gradients; **not**
      against vanishing gradients or over-fitting. If nearly all steps are clipped, or none, the threshold is
      wrong.

    Args:
        max_norm: Largest global norm, at least 0; a number, a schedule or its text; ``None`` for no limit.
            Or a policy that derives it from the norms seen so far, for each optimizer by itself: AutoClip's
            ``Percentile(10)`` or ``ZScore()``.
        max_value: Largest magnitude of an entry, likewise, but no policy, nor beside one.
        norm_type: Order of the norm, above 0; infinity for the largest magnitude.
        params: Name patterns of the parameters to clip.
        non_finite: What to do where the norm of the gradients that ``params`` matches is not finite:
            ``"skip"`` the whole step of the optimizer (counted; weights, momentum and decay stay as they
            are), ``"raise"`` an error that names the parameters, or ``"keep"`` and step all the same. With a
            gradient scaler an overflow is left to the scaler, whatever this says.

    Example:
        >>> GradientClip(max_norm="5 * linear(to=0.2)", params=("encoder.*", "head"))
        GradientClip(max_norm='5 * linear(to=0.2)', max_value=None, norm_type=2.0, \
params=('encoder.*', 'head'), non_finite='skip')
    """

    max_norm: float | str | Schedule | AdaptiveThreshold | None = 1.0
    max_value: float | str | Schedule | None = None
    norm_type: float = 2.0
    params: Patterns = "*"
    non_finite: Literal["skip", "raise", "keep"] = "skip"
    _chosen: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _members: set[nn.Parameter] | None = field(default=None, init=False, repr=False)
    _spread: dict[nn.Parameter, Groups] = field(default_factory=dict, init=False, repr=False)
    _limits: dict[str, Course] = field(default_factory=dict, init=False, repr=False)
    _handed_over: bool = field(default=False, init=False, repr=False)
    _seen: dict[int, State] = field(default_factory=dict, init=False, repr=False)
    _complained: bool = field(default=False, init=False, repr=False)
    _steps: int = field(default=0, init=False, repr=False)
    _clipped: int | Tensor = field(default=0, init=False, repr=False)
    _skipped: int | Tensor = field(default=0, init=False, repr=False)

    @property
    def gradient_stage(self) -> str:
        return "clipping"

    def __post_init__(self) -> None:
        if self.max_norm is None and self.max_value is None:
            raise ValueError("max_norm or max_value must be given, got None for both")
        if isinstance(self.max_norm, AdaptiveThreshold) and self.max_value is not None:
            raise ValueError(f"max_value must be None with max_norm={self.max_norm}, got {self.max_value!r}")
        for name in ("max_norm", "max_value"):
            limit = getattr(self, name)
            if limit is not None and not (name == "max_norm" and isinstance(limit, AdaptiveThreshold)):
                as_schedule(name, limit, 0.0)
        self.norm_type = checks.in_range("norm_type", self.norm_type, 0.0, open_low=True)
        as_patterns("params", self.params)
        checks.one_of("non_finite", self.non_finite, _POLICIES)

    def hand_over(self, config: dict[str, Any]) -> None:
        wanted = {"max_value": None, "norm_type": 2.0, "params": "*", "non_finite": "keep"}
        for name, value in wanted.items():
            if (got := getattr(self, name)) != value:
                raise ValueError(
                    f"{name} must be {value!r} under DeepSpeed, which clips by itself, got {got!r}"
                )
        if isinstance(self.max_norm, bool) or not isinstance(self.max_norm, int | float):
            raise ValueError(f"max_norm must be a number under DeepSpeed, got {self.max_norm!r}")
        if config.get("gradient_clipping", self.max_norm) != self.max_norm:
            other = config["gradient_clipping"]
            raise ConflictError(f"gradient_clipping of DeepSpeed's config must be left out, got {other!r}")
        config["gradient_clipping"] = float(self.max_norm)
        self._handed_over = True

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._chosen = chosen_parameters(pl_module, self.params, trainer.optimizers)
        chosen = set(self._chosen.values())
        stepped = {p for opt in trainer.optimizers for group in opt.param_groups for p in group["params"]}
        # All of them may be more than those: what the module does not know has no name.
        self._members = None if as_patterns("params", self.params) == ("*",) or stepped <= chosen else chosen
        self._spread = flat_shards(trainer)
        for name, parameter in self._chosen.items():
            if parameter.is_complex() and self.max_value is not None:
                raise ValueError(f"max_value must be None for complex parameters, got {name!r}")
        for optimizer in trainer.optimizers:
            if self.non_finite == "skip" and counts_skipped_steps(optimizer):
                kind = type(optimizer).__name__
                raise ValueError(f"non_finite must be 'raise' or 'keep' with {kind}, got 'skip'")

    def claims(self) -> Iterable[Claim]:
        return [self.claim("clipping", self._chosen)]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in ("max_norm", "max_value"):
            limit = getattr(self, name)
            if limit is not None and not isinstance(limit, AdaptiveThreshold):
                self._limits[name] = self.lay(trainer, name, as_schedule(name, limit))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        gradients = [] if self._handed_over else gradients_of(optimizer, self._members, self._spread)
        if not gradients:
            return
        max_value = self._limit("max_value")
        norm = total_norm(gradients, self.norm_type)
        # Before clipping, which would spread one bad entry over all gradients.
        value, skipped = self._refuse(trainer, optimizer, norm)
        if isinstance(self.max_norm, AdaptiveThreshold):
            max_norm: float | Tensor | None = self._adapt(self.max_norm, trainer, optimizer, norm)
        else:
            max_norm = self._limit("max_norm")
        if skipped is not True and not (max_value is None and within(value, max_norm, norm.dtype)):
            self._clipped = self._clipped + clip_(
                gradients,
                norm,
                max_norm=max_norm,
                max_value=max_value,
                norm_type=self.norm_type,
                value=value,
            )
        self._steps += 1
        self._skipped = self._skipped + skipped
        if self.reports(trainer):
            limit = max_norm if max_norm is not None else max_value
            share = self._clipped / self._steps
            self.report(
                trainer,
                pl_module,
                optimizer,
                norm=norm,
                threshold=limit,
                clipped=share,
                skipped=1.0 * self._skipped,
            )

    def _limit(self, name: str) -> float | None:
        return self._limits[name](self.clock.position) if name in self._limits else None

    def _adapt(
        self, policy: AdaptiveThreshold, trainer: Trainer, optimizer: Optimizer, norm: Tensor
    ) -> Tensor:
        """Let ``policy`` see the norm of one optimizer; return the threshold for it."""
        index = trainer.optimizers.index(optimizer)
        seen = self._seen[index] if index in self._seen else policy.start(norm)
        self._seen[index], limit = policy.observe(seen, norm)
        if self.reports(trainer) and not self._complained and (why := policy.complaint(self._seen[index])):
            self._complained = True
            warn(trainer, f"{self.state_key}: {why}")
        return limit

    def _refuse(
        self, trainer: Trainer, optimizer: Optimizer, norm: Tensor
    ) -> tuple[float | None, bool | Tensor]:
        """Apply ``non_finite``; return the norm if it had to be read, and whether the step is cancelled."""
        if self.non_finite == "keep" or getattr(trainer.precision_plugin, "scaler", None) is not None:
            return None, False
        if self.non_finite == "skip" and cancels_on_device(optimizer):
            return None, cancel_step_(optimizer, norm)
        value = norm.item()
        if math.isfinite(value):
            return value, False
        if self.non_finite == "skip":
            drop_gradients_(optimizer)
            return value, True
        names = ", ".join(non_finite_names(self._chosen)[:5]) or "none alone, only their norm"
        raise FloatingPointError(
            f"gradients must be finite, got norm {value} at step {self.clock.position}: {names}"
        )

    def outcome(self) -> dict[str, float | int | str]:
        return {"steps": self._steps, "clipped": int(self._clipped), "skipped": int(self._skipped)}

    def saved(self) -> dict[str, Any]:
        seen = {
            index: {name: value.detach().cpu().clone() for name, value in state.items()}
            for index, state in self._seen.items()
        }
        return {**self.outcome(), "seen": seen}

    def restore(self, state: dict[str, Any]) -> None:
        self._steps, self._clipped, self._skipped = state["steps"], state["clipped"], state["skipped"]
        if isinstance(policy := self.max_norm, AdaptiveThreshold):
            # What another kind of policy has seen is of no use to this one.
            self._seen = {index: seen for index, seen in state["seen"].items() if policy.knows(seen)}
