"""Elastic weight consolidation: weights that an old task is sure of are held while a new one is learnt.

    L + strength / 2 * sum over old tasks t and weights j of F_tj (w_j - a_tj) ** 2

``a_t`` are the weights at the end of task t, the anchors, and ``F_t`` is the diagonal of the Fisher
information there: the mean over single samples of squared gradients of the log-likelihood
(:mod:`lightning_tricks.core.fisher`). The online form keeps one anchor, the latest, and

    F <- decay F + F_new

References: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017,
https://arxiv.org/abs/1612.00796; Schwarz et al., "Progress & Compress: A scalable framework for continual
learning", 2018, https://arxiv.org/abs/1805.06370, section 3.2, for the online form; Huszar, "Note on the
quadratic penalties in elastic weight consolidation", 2018, https://arxiv.org/abs/1712.03847, for its anchor.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.core.chosen import chosen_parameters
from lightning_tricks.core.fisher import squared_gradients
from lightning_tricks.core.gradients import sign_of
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.core.schedule import Course, Schedule
from lightning_tricks.core.select import Patterns, as_patterns, clean_name
from lightning_tricks.lifecycle.notice import say, warn
from lightning_tricks.lifecycle.other_data import check_data, other_batches
from lightning_tricks.lifecycle.step_loss import looking_at_loss
from lightning_tricks.lifecycle.strategies import check_whole
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.objectives.anchors import (
    Anchors,
    consolidate_,
    consolidation_penalty,
    of_parameters,
    sgd_limit,
)
from lightning_tricks.objectives.old_tasks import OldTask, anchors_of, read_tasks
from lightning_tricks.objectives.single_samples import loss_of_single_samples, with_drawn_labels

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, LightningModule, Trainer
    from torch.optim import Optimizer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["ElasticWeightConsolidation"]

_LARGEST = 1e12  # one of 1e308 would overflow within an optimizer


@final
@dataclass(eq=False, repr=False, kw_only=True)
class ElasticWeightConsolidation(Technique):
    """Hold the weights that old tasks need (:func:`consolidate_`, :func:`consolidation_penalty`).

    Fisher information per sample, empirical or true, tells which; one anchor per task, or one for all, holds
    them while a new one is learnt.

    * **When** once when training starts, to look at ``data`` with the weights that the module then holds;
      and just before each optimizer step, before all other work on gradients, so that the penalty is
      clipped with the rest.
    * **Changes** the gradients of the parameters that ``params`` matches and that have one, in place. The
      logged loss does not hold the penalty. Random numbers, metrics and modes stay as they are; ``data`` is
      gone through once.
    * **Logs** ``elastic_weight_consolidation/penalty``, in units of the loss, and ``/strength``.
    * **Saves** anchors and Fisher information of each old task. From any checkpoint of this run the next one
      takes them as its ``previous``, and gives the task of this run as its ``data``.
    * **Cost** one forward and backward pass per sample of ``data``, many samples at a time; two numbers per
      weight and old task (with ``decay``, in all); a pass over the weights per step, no read to the host.
    * **Use** for one task after another whose data are not kept; **not** where the old data can be trained on
      too, which forgets less; nor with BatchNorm that goes on learning, whose statistics it cannot hold
      (``ReplaceNorm(to="frozen_batch")``). It needs whole weights, not those of FSDP, and ``data`` automatic
      optimization.

    The loss of a sample is what ``training_step`` returns for it alone, in evaluation mode. Under SGD there
    is a strength above which the penalty diverges; a warning names it.

    Args:
        strength: Weight of the penalty, at least 0; a number, a schedule or its text. Papers take 10 to 1e4.
        data: DataLoader or LightningDataModule (its training data) of the task that the module has just
            learnt; in YAML a datamodule by class path, which LightningCLI makes only beside one of the run.
        previous: Checkpoint of the run before, which had this technique, with the anchors of older tasks.
        samples: How many of ``data`` to look at, in each process; ``None`` for all.
        fisher: ``"empirical"`` with the labels of the data, ``"true"`` with labels drawn from predictions,
            for batches of inputs and class labels, where ``module(inputs)`` returns logits.
        decay: Share that is kept of earlier Fisher information, in [0, 1], for the online form, with one
            anchor for all tasks. ``None`` for an anchor of each.
        params: Name patterns of the parameters to hold.

    Example:
        A network has learnt the digits 0 to 4, and learns 5 to 9 next, with the same five outputs.

        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from torch import nn
        >>> from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
        >>> old, new = DigitsData(classes=range(5)), DigitsData(classes=range(5, 10))
        >>> def learn(data, *techniques, weights=None):
        ...     torch.manual_seed(0)
        ...     network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
        ...     module = DigitsClassifier(network, classes=5, lr=0.02, weight_decay=0.0)
        ...     module.load_state_dict(weights or module.state_dict())
        ...     Trainer(max_epochs=8, callbacks=list(techniques), **QUIET).fit(module, data)
        ...     found = [Trainer(**QUIET).validate(module, each, verbose=False)[0] for each in (old, new)]
        ...     print("old {:.2f}, new {:.2f}".format(*(each["val_accuracy"] for each in found)))
        ...     return module.state_dict()
        >>> weights = learn(old)
        old 0.9..., new 0...

        Learning the new ones, it forgets. With the penalty, it keeps seven eighths of what it knew:

        >>> _ = learn(new, weights=weights)
        old 0.3..., new 0.9...
        >>> _ = learn(new, ElasticWeightConsolidation(strength=300, data=old), weights=weights)
        old 0.8..., new 0...

        With squares of batches' mean gradients, which other implementations take, it would keep 0.38: they
        are some 60 times smaller here, and the larger the batch, the smaller they are.

        The same for LightningCLI::

            trainer:
              callbacks:
              - class_path: lightning_tricks.ElasticWeightConsolidation
                init_args:
                  strength: 300
                  data:
                    class_path: lightning_tricks.recipes.digits.DigitsData
                    init_args:
                      classes: [0, 1, 2, 3, 4]
    """

    strength: float | str | Schedule
    data: LightningDataModule | Iterable[Any] | None = None
    previous: str | None = None
    samples: int | None = None
    fisher: Literal["empirical", "true"] = "empirical"
    decay: float | None = None
    params: Patterns = "*"
    _members: dict[nn.Parameter, str] = field(default_factory=dict, init=False, repr=False)
    _tasks: list[OldTask] | None = field(default=None, init=False, repr=False)
    _anchors: list[Anchors] = field(default_factory=list, init=False, repr=False)
    _course: Course | None = field(default=None, init=False, repr=False)

    @property
    def gradient_stage(self) -> str:
        return "penalty"

    def __post_init__(self) -> None:
        as_schedule("strength", self.strength, 0.0, _LARGEST)
        checks.one_of("fisher", self.fisher, ("empirical", "true"))
        as_patterns("params", self.params)
        if self.samples is not None:
            checks.whole("samples", self.samples, 1)
        if self.decay is not None:
            self.decay = checks.in_range("decay", self.decay, 0.0, 1.0)
        self._check_source()

    def _check_source(self) -> None:
        if isinstance(self.previous, os.PathLike):
            self.previous = os.fspath(self.previous)
        if self.previous is not None:
            checks.text("previous", self.previous)
        if self.data is not None:
            check_data("data", self.data)
            return
        if self.previous is None:
            raise ValueError("data of the old task must be given, or previous, got None for both")
        for name in ("samples", "decay"):
            if getattr(self, name) is not None:
                raise ValueError(f"data must be given with {name}={getattr(self, name)!r}, got None")

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_whole(trainer, self.state_key)
        if self.data is not None and not pl_module.automatic_optimization:
            raise ValueError(
                f"automatic_optimization must be True for {self.state_key} to take the loss of data from "
                f"training_step, got False in {type(pl_module).__name__}: give previous alone"
            )
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
            raise ValueError(f"the optimizer must step once per gradient for {self.state_key}, got LBFGS")
        chosen = set(chosen_parameters(pl_module, self.params, trainer.optimizers).values())
        self._members = {
            parameter: clean_name(name)
            for name, parameter in pl_module.named_parameters()
            if parameter in chosen and (parameter.is_floating_point() or parameter.is_complex())
        }

    def claims(self) -> Iterable[Claim]:
        return []  # several may pull at the same weights, as several tasks do

    def touched(self) -> Iterable[nn.Parameter]:
        return self._members

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._course = self.lay(trainer, "strength", as_schedule("strength", self.strength))
        if self._tasks is None:
            if self.clock.position > 0:
                say(trainer, f"{self.state_key}: anchors are the weights of step {self.clock.position}")
            self._tasks = self._learnt(trainer, pl_module)
        self._anchors = [anchors_of(task, pl_module, self._members) for task in self._tasks]
        if (strength := self._strength()) > (limit := sgd_limit(trainer.optimizers, self._anchors)):
            warn(
                trainer,
                f"{self.state_key}: strength should be below {limit:g} for SGD with its rate, got "
                f"{strength:g}: above that, the penalty alone makes weights diverge",
            )

    def _learnt(self, trainer: Trainer, pl_module: LightningModule) -> list[OldTask]:
        """Return what is kept of each old task, that of ``data`` last."""
        before = [] if self.previous is None else read_tasks(self.previous, self.state_key)
        if self.data is None:
            return before
        former = [anchors_of(task, pl_module, self._members) for task in before]
        fisher = self._fisher(trainer, pl_module)
        anchors = {name: parameter.detach().clone() for parameter, name in self._members.items()}
        if self.decay is None:
            return [*before, OldTask(anchors, fisher)]
        for task in former:
            for parameter, (_, sure) in task.items():
                fisher[self._members[parameter]] += self.decay * sure
        return [OldTask(anchors, fisher)]

    def _fisher(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """Return the Fisher information of ``data`` by clean name; the same in all processes."""
        named, device = dict(pl_module.named_parameters()), trainer.strategy.root_device
        with looking_at_loss(trainer, pl_module) as loss:
            for parameter in named.values():
                parameter.requires_grad_(parameter in self._members)
            batches = other_batches(trainer, pl_module, self.data, self.samples)
            if self.fisher == "true":
                batches = map(partial(with_drawn_labels, pl_module), batches)
            tensors = {**named, **dict(pl_module.named_buffers())}
            sums, count = squared_gradients(pl_module, tensors, batches, loss_of_single_samples(loss))
        if not count:
            raise ValueError(f"data must hold a sample of the old task, got none in {self.data!r:.80}")
        total = trainer.strategy.reduce(torch.tensor(float(count), device=device), reduce_op="sum")
        found: dict[str, Tensor] = {}
        for name, own in sums.items():
            mean = trainer.strategy.reduce(own.to(device), reduce_op="sum") / total
            if not mean.isfinite().all():
                raise ValueError(
                    f"the loss of data must have finite gradients, got others of {name!r}: look for NaN in "
                    "data and weights"
                )
            wide = torch.promote_types(named[name].dtype, torch.float32).to_real()
            found[clean_name(name)] = mean.to(named[name].device, wide)
        if not any(mean.any() for mean in found.values()):
            raise ValueError("the loss of data must depend on what params matches, got gradients of 0 alone")
        return found

    def _strength(self) -> float:
        assert self._course is not None
        return self._course(self.clock.position)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        strength, held = self._strength(), list[nn.Parameter]()
        for group in optimizer.param_groups:
            held += group["params"]
            for anchors in self._anchors:
                moved = [p for p in group["params"] if p.grad is not None and p in anchors]
                grads = [p.grad for p in moved]
                consolidate_(grads, *of_parameters(moved, anchors), strength=strength * sign_of(group))
        if self.reports(trainer):
            each = [consolidation_penalty(*of_parameters(held, anchors)) for anchors in self._anchors]
            self.report(trainer, pl_module, optimizer, strength=strength, penalty=strength * sum(each))

    def saved(self) -> dict[str, Any]:
        return {"tasks": [{"anchors": t.anchors, "fisher": t.fisher} for t in self._tasks or []]}

    def restore(self, state: dict[str, Any]) -> None:
        self._tasks = [OldTask(**task) for task in state["tasks"]]
