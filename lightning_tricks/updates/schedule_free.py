"""Schedule-Free optimizers, switched between the weights that they train and those to evaluate.

    y_t = (1 - beta) z_t + beta x_t                       where the gradient is taken: training
    z_{t+1} = z_t - gamma_t * the optimizer's direction at y_t
    x_{t+1} = (1 - c_{t+1}) x_t + c_{t+1} z_{t+1}         the average: evaluation
    c_{t+1} = w_t / (w_0 + ... + w_t),    w_t = (the largest of gamma_0 ... gamma_t) ** 2

``gamma`` is the learning rate and ``beta`` the optimizer's momentum, or the first of its ``betas``. The
optimizers of the ``schedulefree`` package hold y in the module and z in their state; their ``eval`` and
``train`` turn y into x and back, each with a rounding error. Here x is computed beside y, so that
evaluations and checkpoints change no bit of the training.

Reference: Defazio et al., "The Road Less Scheduled", 2024, https://arxiv.org/abs/2405.15682, equations 3 to
5; the weights w are those of the package.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_tricks.core import checks
from lightning_tricks.core.select import clean_name
from lightning_tricks.core.tensors import copy_, local
from lightning_tricks.lifecycle.batchnorm import learning_batchnorms, reestimate_batchnorm
from lightning_tricks.lifecycle.second_set import SecondSet
from lightning_tricks.lifecycle.technique import Technique

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["ScheduleFree", "evaluation_weights", "switchable"]


def switchable(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """Return those of ``optimizers`` that switch between weights to train and weights to evaluate.

    Raises:
        ValueError: If there is none, or one that switches by itself within a step.
    """
    optimizers = list(optimizers)
    for optimizer in optimizers:
        if "schedulefree" in type(optimizer).__module__ and not _switches(optimizer):
            name = type(optimizer).__name__
            raise ValueError(
                f"optimizers must have train() and eval() to be switched, got {name}, whose weights in the "
                f"module are those to evaluate: use {name.removesuffix('Closure')}"
            )
    found = [optimizer for optimizer in optimizers if _switches(optimizer)]
    if not found:
        names = ", ".join(type(optimizer).__name__ for optimizer in optimizers) or "none"
        raise ValueError(
            "configure_optimizers must return a Schedule-Free optimizer, such as AdamWScheduleFree of the "
            f"package schedulefree (pip install 'lightning_tricks[schedulefree]'), got {names}"
        )
    return found


def _switches(optimizer: Any) -> bool:
    modes = all("train_mode" in group for group in optimizer.param_groups)
    return modes and hasattr(optimizer, "train") and hasattr(optimizer, "eval")


def mark_(optimizer: Optimizer, *, training: bool) -> None:
    """Note which weights ``optimizer`` finds in the module; they are not touched."""
    for group in optimizer.param_groups:
        group["train_mode"] = training


@torch.no_grad()
def evaluation_weights(optimizer: Any) -> dict[Tensor, Tensor]:
    """Return x of each parameter of ``optimizer``, or this process's parts; they stay at y, to the bit.

    Raises:
        RuntimeError: If they are not at y.
    """
    if not all(group["train_mode"] for group in optimizer.param_groups):
        name = type(optimizer).__name__
        raise RuntimeError(
            f"{name} must be switched by ScheduleFree alone, got it in eval mode in training: call neither "
            "its train() nor its eval()"
        )
    copies = {p: p.detach().clone() for group in optimizer.param_groups for p in group["params"]}
    # Each form of optimizer keeps x in its own way, which its ``eval`` knows. It is asked of a double that
    # holds the copies, since there is no exact way back from x to y.
    double = object.__new__(type(optimizer))
    groups = [{**g, "params": [copies[p] for p in g["params"]]} for g in optimizer.param_groups]
    state = {copies[p]: held for p, held in optimizer.state.items() if p in copies}
    vars(double).update(vars(optimizer), param_groups=groups, state=defaultdict(dict, state))
    double.eval()
    return {parameter: local(copy) for parameter, copy in copies.items()}


def _statistics(layer: nn.Module) -> list[Tensor]:
    return list(layer.buffers(recurse=False))


@final
@dataclass(eq=False, repr=False, kw_only=True)
class ScheduleFree(Technique):
    """Train with Schedule-Free optimizers, and evaluate, save and keep the weights that they average.

    For the optimizers of the package ``schedulefree`` that ``configure_optimizers`` returns, but for its
    ``Closure`` and ``Wrapper`` forms. Other optimizers beside them are left alone.

    * **When** before and after each validation, at each checkpoint, and at the end of fit.
    * **Changes** what the module holds: the average x in validation, the trained weights y again after it,
      to the bit, also after an error; x once ``fit`` is over, and so in test and predict, with BatchNorm
      statistics estimated anew. The next ``fit`` of the Trainer takes y back, to begin with it. Callbacks
      listed before it see y in ``on_validation_start``, and those after it in ``on_validation_end``.
      Neither the module nor anybody else need call ``train()`` or ``eval()`` of the optimizer.
    * **Logs** nothing.
    * **Saves** x under ``state_dict`` in every checkpoint, weights-only ones included, and y beside it
      (``average_state`` and ``live_state`` read either). The state of the optimizer is that of its eval mode,
      as the package wants it, so that whoever loads both without this technique goes on by ``train()``.
    * **Cost** nothing in training; a copy of the weights in memory in validation, and two before it and while
      a checkpoint is written. No wait for the device. With BatchNorm one pass over the training data at the
      end.
      A run that is over when it is resumed is not measured anew: x then stands beside the statistics of y.
    * **Use** to train without knowing when to stop; **not** with BatchNorm if validations within ``fit``
      decide: they see x with the statistics of y. Nor with a rate that decays: the optimizer averages
      instead, and counts each step by the largest rate so far. Warm-up is its own ``warmup_steps``, or a
      schedule that only rises, which it weighs in the same way. Nor with layers that are opened later, to
      which it gives averages as old as the run.

    Args:
        update_batchnorm: Whether to estimate BatchNorm statistics anew for x at the end of fit.

    Example:
        >>> ScheduleFree()
        ScheduleFree(update_batchnorm=True)
    """

    update_batchnorm: bool = True
    _second: SecondSet = field(default_factory=SecondSet, init=False, repr=False)
    _loaded: bool = field(default=False, init=False, repr=False)
    _layers: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.flag("update_batchnorm", self.update_batchnorm)

    def read_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._loaded = self._second.read(trainer, pl_module, checkpoint) and self._second.values is not None

    def attach(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            vars(trainer.strategy)["setup_optimizers"] = self._set_up

    def _set_up(self, trainer: Trainer) -> None:
        """Let optimizers step as soon as there are any, since tuners and strategies do before all hooks."""
        del vars(trainer.strategy)["setup_optimizers"]
        trainer.strategy.setup_optimizers(trainer)
        for optimizer in filter(_switches, trainer.optimizers):
            mark_(optimizer, training=True)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        groups = (group for optimizer in switchable(trainer.optimizers) for group in optimizer.param_groups)
        held = {parameter for group in groups for parameter in group["params"]}
        self._second.shadows = None
        self._second.prepare(
            trainer,
            pl_module,
            self.conductor,
            params=lambda _, parameter: parameter in held,
            buffers=False,
            save="average",
            edit=self._write,
        )

    def claims(self) -> Iterable[Claim]:
        held = {name: slot.held for name, slot in self._second.slots.items()}
        # What is opened late would get an average in which its frozen weights count for as long as they were.
        return [self.claim(slot, held) for slot in ("eval_weights", "weights", "requires_grad")]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        optimizer: Any
        for optimizer in switchable(trainer.optimizers):
            if self._loaded:  # from a checkpoint that held y beside
                mark_(optimizer, training=True)
            else:
                optimizer.train()
        self._loaded = False
        self._second.tell(trainer, self.state_key)

    def _take(self, trainer: Trainer) -> None:
        """Let there be x beside y, if it is not in the module."""
        if self._second.shadows is None:
            self._second.reshard()
            found: dict[Tensor, Tensor] = {}
            for optimizer in switchable(trainer.optimizers):
                found |= evaluation_weights(optimizer)
            slots = self._second.slots.items()
            self._second.hold({name: found[slot.held] for name, slot in slots if slot.held in found})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # In a sanity check x and y are the same.
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._take(trainer)
            self._second.show(trainer)
            self._mark(trainer, training=False)

    def _mark(self, trainer: Trainer, *, training: bool) -> None:
        for optimizer in switchable(trainer.optimizers):
            mark_(optimizer, training=training)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.undo()

    def undo(self) -> None:
        if self._conductor is not None:  # an error may come before there is one
            vars(self.conductor.trainer.strategy).pop("setup_optimizers", None)
        if self._second.hide():
            self._second.shadows = None
            self._mark(self.conductor.trainer, training=True)

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        learning = learning_batchnorms(pl_module) if self.update_batchnorm else []
        self._rest(trainer, {path: each for path, each in pl_module.named_modules() if each in learning})
        if learning:
            reestimate_batchnorm(trainer, pl_module)

    def _rest(self, trainer: Trainer, layers: dict[str, nn.Module]) -> None:
        """Put x into the module until the next fit, where ``layers`` by name will get statistics for it."""
        self._take(trainer)
        self._layers = layers
        kept = {path: [value.clone() for value in _statistics(layer)] for path, layer in layers.items()}
        # Called after the weights were taken back, since it is the last to be called.
        self.conductor.on_next_fit(partial(self._statistics_back, kept))
        self._second.finish(trainer, self.state_key)
        self._mark(trainer, training=False)

    def _statistics_back(self, kept: dict[str, list[Tensor]]) -> None:
        layers, self._layers = self._layers, {}
        if self._second.shadows is not None:  # else there are other weights now
            for path, layer in layers.items():
                copy_(_statistics(layer), kept[path])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loaded:  # the run was over before it began, and no hook of training came
            self._stay(trainer, pl_module)
        self._second.rest(trainer, self.state_key)

    def _stay(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put x into the module with the statistics that the checkpoint held."""
        values = self._second.values or {}
        self.take_state(trainer)
        self.begin(trainer, pl_module)
        modules = pl_module.named_modules()
        self._rest(trainer, {path: each for path, each in modules if isinstance(each, _BatchNorm)})
        for path, layer in self._layers.items():
            for key, value in layer.named_buffers(recurse=False):
                value.copy_(values.get(clean_name(f"{path}.{key}"), value))

    @property
    def evaluates_average(self) -> bool:
        return True

    def average(self) -> dict[str, Tensor] | None:
        if not self._begun:
            return None
        held = self._second.shadows is not None
        self._take(self.conductor.trainer)
        assert self._second.shadows is not None
        found = self._second.shadows.named()
        if not held:
            self._second.shadows = None
        for path, layer in self._layers.items():
            found |= {clean_name(f"{path}.{key}"): value for key, value in layer.named_buffers(recurse=False)}
        return found

    def _write(self, checkpoint: dict[str, Any]) -> None:
        """Put x and y into a checkpoint; called by all processes."""
        if self._begun:
            held = self._second.shadows is not None
            self._take(self.conductor.trainer)
            self._second.write(checkpoint)
            if not held:
                self._second.shadows = None

    def edit_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._write(checkpoint)
        for state in checkpoint["optimizer_states"]:
            for group in state.get("param_groups", []):
                if "train_mode" in group:
                    group["train_mode"] = False
