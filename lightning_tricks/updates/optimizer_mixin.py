"""``configure_optimizers`` for any module: an optimizer by name, in groups that decay and learn as told.

    no decay on biases, normalisation and embeddings, told by type and shape
    LLRD    rate of layer l = base rate * layer_decay ** (L - l),    l = 0 (input) .. L (output)

References: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019,
https://arxiv.org/abs/1711.05101; Clark et al., "ELECTRA: Pre-training Text Encoders as Discriminators Rather
Than Generators", 2020, https://arxiv.org/abs/2003.10555, for layer-wise rates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from torch.optim import LBFGS, Optimizer

from lightning_tricks.lifecycle.mixin_hooks import check_first
from lightning_tricks.lifecycle.notice import callbacks_of, say
from lightning_tricks.lifecycle.strategies import flat_shapes
from lightning_tricks.lifecycle.table import text_table
from lightning_tricks.updates.combined import CombinedOptimizer
from lightning_tricks.updates.group_table import GROUP_COLUMNS, group_rows, in_force
from lightning_tricks.updates.optimizer_settings import OptimizerSettings
from lightning_tricks.updates.parameter_groups import build_optimizer, divide, groups_of
from lightning_tricks.updates.schedule_free import ScheduleFree

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

__all__ = ["OptimizerMixin"]


class OptimizerMixin:
    """Configure the optimizer that ``optimizer_settings`` describes; inherit it before LightningModule.

    It is any optimizer by name, with groups that decay and learn by type, shape and layer, each parameter in
    one; several become one; the table of groups is printed.

    * **When** Lightning asks for optimizers, before training.
    * **Changes** nothing but what ``configure_optimizers`` returns: one optimizer, and of several settings
      one that steps them all, or in manual optimization a list of them.
    * **Logs** nothing; prints a table of the groups: what each holds, its rate, its decay, and the bytes that
      the optimizer will remember for it.
    * **Saves** nothing beyond what Lightning saves of an optimizer. Groups follow from the settings and the
      module, so a run resumes with the same ones.
    * **Cost** none in training; at the start a step on stand-ins of the weights, to tell those bytes.
    * **Use** wherever ``configure_optimizers`` would be written by hand; schedules come as callbacks beside
      it. **Not** for an optimizer that steps what the module does not hold.

    Attributes:
        optimizer_settings: What the optimizer is to be; several, if different weights take different
            optimizers: each is for the parameters that it matches and none before it took.
        found_lr: Base rate instead of that of the settings, for a search:
            ``Tuner(trainer).lr_find(module, attr_name="found_lr")``.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule
        >>> class Net(OptimizerMixin, LightningModule):
        ...     optimizer_settings = OptimizerSettings("AdamW", lr=3e-4, weight_decay=0.05)
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.head = torch.nn.Linear(4, 3)
        >>> [group["weight_decay"] for group in Net().configure_optimizers().param_groups]
        [0.05, 0.0]
    """

    optimizer_settings: OptimizerSettings | Sequence[OptimizerSettings] = OptimizerSettings()
    found_lr: float | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a class in which the ``configure_optimizers`` of another base would come first.

        Raises:
            TypeError: If it would.
        """
        super().__init_subclass__(**options)
        check_first(cls, OptimizerMixin, "configure_optimizers")

    def configure_optimizers(self) -> Optimizer | list[Optimizer]:
        """Return the optimizer; in manual optimization one for each of several settings.

        Raises:
            TypeError: If ``optimizer_settings`` is neither settings nor several of them.
            ValueError: If a pattern matches nothing, a parameter is left over, or Schedule-Free optimizers
                have nobody to switch them.
        """
        module = cast("LightningModule", self)
        several = _several(self.optimizer_settings)
        trainer = module._trainer
        if trainer is not None:
            _check_finders(callbacks_of(trainer))
        if self.found_lr is not None:
            several = [replace(each, lr=self.found_lr) for each in several]
        shapes = {} if trainer is None else flat_shapes(trainer)
        if shapes and any(each.optimizer == "Muon" for each in several):
            raise ValueError("Muon needs whole matrices, of which FSDP1 holds flat pieces: use FSDP2")
        optimizers: list[Optimizer] = []
        for settings, members in zip(several, divide(module, several, shapes), strict=True):
            groups = groups_of(module, settings, members, shapes)
            optimizer = build_optimizer(settings, groups)
            optimizers.append(optimizer)
            if trainer is not None:
                title = f"{type(self).__name__}: {in_force(optimizer)}"
                say(trainer, text_table(title, GROUP_COLUMNS, group_rows(optimizer, groups)))
        _check_kinds(
            optimizers,
            switched=trainer is None or any(isinstance(each, ScheduleFree) for each in callbacks_of(trainer)),
            together=module.automatic_optimization,
        )
        if len(optimizers) == 1:
            return optimizers[0]
        return CombinedOptimizer(optimizers) if module.automatic_optimization else optimizers


def _several(settings: object) -> list[OptimizerSettings]:
    found: list[Any] = list(settings) if isinstance(settings, list | tuple) else [settings]
    for each in found:
        if not isinstance(each, OptimizerSettings):
            raise TypeError(f"optimizer_settings must be OptimizerSettings, or several of them, got {each!r}")
    if not found:
        raise ValueError(f"optimizer_settings must not be empty, got {settings!r}")
    return found


def _check_kinds(optimizers: Sequence[Optimizer], *, switched: bool, together: bool) -> None:
    names = [type(each).__name__ for each in optimizers if "schedulefree" in type(each).__module__]
    if names and together and len(optimizers) > 1:
        raise ValueError(
            f"{names[0]} must be the only optimizer in automatic optimization, got {len(optimizers)}"
        )
    if together and len(optimizers) > 1 and any(isinstance(each, LBFGS) for each in optimizers):
        raise ValueError(f"LBFGS must be the only optimizer in automatic optimization, got {len(optimizers)}")
    if names and not switched:
        raise ValueError(
            f"{names[0]} must be switched between training and evaluation: add ScheduleFree() to "
            "Trainer(callbacks=[...])"
        )


def _check_finders(callbacks: Iterable[object]) -> None:
    for each in callbacks:
        if type(each).__name__ == "LearningRateFinder" and getattr(each, "_attr_name", "") != "found_lr":
            raise ValueError(
                "attr_name of LearningRateFinder must be 'found_lr' with OptimizerMixin, or what it finds is "
                f"not used, got {getattr(each, '_attr_name', '')!r}"
            )
